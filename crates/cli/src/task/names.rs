//! Who resolves the names of a task: the `dns` block of its group, or the machine. In a network of its own a task cannot reach a
//! server on the machine's loopback, where systemd-resolved is; then those are asked that it would ask. Names of the machine's
//! own list come first in any case, as they do for its own resolver.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::task::{TaskDns, TaskSpec};
use api::{Code, Problem};
use futures::future::BoxFuture;
use node::dialer::{Nameserver, Nameservers, Resolve};

/// Who resolves this machine's names.
const MACHINE: &str = "/etc/resolv.conf";
/// Whom systemd-resolved asks: resolved.conf(5) and systemd-resolved.service(8).
const BEHIND: &str = "/run/systemd/resolve/resolv.conf";
const DNS_PORT: u16 = 53;
/// Names that no server is asked for.
const HOSTS: &str = "/etc/hosts";
/// All questions for one name: a connection by name takes 5 seconds at most, and some are for the connection.
const WITHIN: Duration = Duration::from_secs(4);
/// What resolv.conf(5) has where it says nothing.
const DEFAULT: TaskDns =
    TaskDns { servers: Vec::new(), searches: Vec::new(), ndots: 1, timeout: 5, attempts: 2, rotate: false };

/// The task's resolver; `None` for the machine's own.
///
/// # Errors
/// Where the block names no servers and the machine has none.
pub(super) fn resolver(spec: &TaskSpec) -> Result<Option<Arc<dyn Resolve>>, Problem> {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let machine = || machine(&read(MACHINE), &read(BEHIND), spec.network.is_some());
    let dns = match &spec.dns {
        Some(dns) if !dns.servers.is_empty() => dns.clone(),
        Some(dns) => {
            let servers = machine().servers;
            if servers.is_empty() {
                let why = format!("the `dns` block names no servers, and {MACHINE} of this machine has none either");
                let help = "name them in the block: servers = [\"192.0.2.53\"]";
                return Err(Problem::new(Code::ManifestInvalid, why).help(help));
            }
            TaskDns { servers, ..dns.clone() }
        }
        None if spec.network.is_some() => match machine() {
            found if unreachable(&read(MACHINE)) && !found.servers.is_empty() => found,
            _ => return Ok(None),
        },
        None => return Ok(None),
    };
    // Each is asked once before the time is up, whoever is silent.
    let each = WITHIN / u32::try_from(dns.servers.len()).unwrap_or(u32::MAX).max(1);
    let servers = Nameserver::of(Nameservers {
        servers: dns.servers.into_iter().map(|address| SocketAddr::new(address, DNS_PORT)).collect(),
        searches: dns.searches,
        ndots: dns.ndots,
        timeout: Duration::from_secs(dns.timeout).min(each),
        attempts: dns.attempts,
        rotate: dns.rotate,
        within: WITHIN,
    });
    Ok(Some(Arc::new(HostsFirst { file: HOSTS, servers })))
}

/// Asks the servers for what the file does not have, which is read each time: it may change.
#[derive(Debug)]
struct HostsFirst {
    file: &'static str,
    servers: Nameserver,
}

impl Resolve for HostsFirst {
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let (file, asked) = (self.file, self.servers.resolve(name.clone()));
        Box::pin(async move {
            let text = tokio::fs::read(file).await.unwrap_or_default();
            match listed(&String::from_utf8_lossy(&text), &name) {
                found if found.is_empty() => asked.await,
                found => Ok(found),
            }
        })
    }
}

/// What a file of hosts(5) has of a name.
fn listed(text: &str, name: &str) -> Vec<IpAddr> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    lines
        .filter_map(|mut words| {
            let address = words.next()?.parse().ok()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
        })
        .collect()
}

/// The words after `key` of every line that begins with it.
fn words<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines()
        .filter_map(move |line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(key)).then_some(words)
        })
        .flatten()
}

fn servers(text: &str) -> Vec<IpAddr> {
    words(text, "nameserver").filter_map(|word| word.parse().ok()).collect()
}

/// Whether all servers are on loopback.
fn unreachable(text: &str) -> bool {
    servers(text).iter().all(IpAddr::is_loopback)
}

/// What the machine's files say, `apart` from its loopback where the task is.
fn machine(own: &str, behind: &str, apart: bool) -> TaskDns {
    let text = if apart && unreachable(own) { behind } else { own };
    TaskDns { servers: servers(text), searches: words(text, "search").map(str::to_owned).collect(), ..DEFAULT }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_machine_s_list_have_what_it_says() {
        let text = "127.0.0.1 localhost\n# 192.0.2.9 db\n192.0.2.1\tDB.corp.example db # the old one\n2001:db8::1 db\nnone db\n";
        let (four, six): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        assert_eq!(listed(text, "db"), [four, six]);
        assert_eq!(
            (listed(text, "db.CORP.example."), listed(text, "old"), listed(text, "d")),
            (vec![four], vec![], vec![])
        );
    }

    /// No server is asked for those, and each of those for anything else.
    #[tokio::test]
    async fn the_machine_s_list_comes_before_the_servers() {
        let own = Nameservers { within: Duration::ZERO, ..Nameservers::one(SocketAddr::from(([127, 0, 0, 1], 1))) };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hosts");
        std::fs::write(&file, "192.0.2.1 db\n").unwrap();
        let file: &'static str = file.to_str().unwrap().to_owned().leak();
        let both = HostsFirst { file, servers: Nameserver::of(own) };
        assert_eq!(both.resolve("db".into()).await.unwrap(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(both.resolve("other".into()).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_server_on_loopback_is_none_for_a_task_with_a_network_of_its_own() {
        let stub = "# a comment\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch stub.example\n";
        let real = "nameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch corp.example eu.example\n";
        let found = machine(stub, real, true);
        assert_eq!(found.servers, ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
        assert_eq!(found.searches, ["corp.example", "eu.example"]);
        assert_eq!(machine(stub, real, false).searches, ["stub.example"]);
        assert_eq!(machine(real, "", true).servers.len(), 2);
        assert!(unreachable(stub) && !unreachable(real));
    }
}
