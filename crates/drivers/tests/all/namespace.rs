//! Network namespaces: those that agents make for groups, and one that stands for the network of a whole client, whose addresses are
//! not loopback as the machine's may be where tests run.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A network namespace with its loopback up; removed when dropped.
pub struct Namespace(String);

fn ip(args: &[&str]) -> bool {
    Command::new("ip").args(args).output().is_ok_and(|output| output.status.success())
}

impl Namespace {
    /// One that has these addresses as well; where this user cannot make any, `what` is said not to be run.
    pub fn new(what: &str, addresses: &[&str]) -> Option<Self> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("sidereal-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        if !ip(&["netns", "add", &name]) {
            crate::not_run(&format!("{what}: this user cannot make a network namespace with `ip netns`"));
            return None;
        }
        let made = Self(name);
        assert!(made.ip(&["link", "set", "lo", "up"]));
        for address in addresses {
            assert!(made.ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"]), "{address}");
        }
        Some(made)
    }

    /// Gives it an interface of this name, with this address and its network; false where the machine has none to give.
    pub fn interface(&self, name: &str, address: &str) -> bool {
        self.ip(&["link", "add", name, "type", "veth", "peer", "name", "peer"])
            && self.ip(&["addr", "add", address, "dev", name])
            && self.ip(&["link", "set", "peer", "up"])
            && self.ip(&["link", "set", name, "up"])
    }

    fn ip(&self, args: &[&str]) -> bool {
        ip(&[&["-n", self.0.as_str()][..], args].concat())
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// Runs something inside, with everything that it starts.
    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = self.path();
        let thread = std::thread::spawn(move || {
            let file = std::fs::File::open(path).unwrap();
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind).unwrap();
            work()
        });
        thread.join().unwrap()
    }

    /// Runs a whole test inside.
    pub fn run<F: Future<Output = ()>>(&self, test: impl FnOnce() -> F + Send + 'static) {
        self.inside(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(test());
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.0]);
    }
}
