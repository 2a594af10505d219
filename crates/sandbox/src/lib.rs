//! What stands between a process that runs a tenant's code and the machine: each [`Layer`] holds alone, and a process is
//! started only with all of them but those an operator waived by name.
//!
//! A confined program is started in two stages of one binary. The first ([`outer::run`]) takes the tenant's user id and
//! cgroup, leaves the machine's namespaces, and starts the second as the first process of its own pid namespace. The second
//! ([`inner::enter`]) empties its root, gives up every capability and asks the kernel to refuse what it will not need; then
//! it goes on as what it is, without another `exec`, so nothing but itself has to be in its root.
//!
//! Nothing in here knows a node: whoever may start processes can start confined ones.
#![forbid(unsafe_code)]

pub mod cgroup;
pub mod handoff;
pub mod inner;
pub mod memory;
pub mod outer;
pub mod program;
mod root;
pub mod syscalls;
mod view;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use view::View;

/// The limit of a core file that forbids one, bytes. None is so small; and where the kernel hands cores to a program that collects
/// them, it asks no limit but this one, which it takes for a refusal (`core(5)`, `do_coredump`): with 0 it would hand it over.
pub const NO_CORE: u64 = 1;

/// The exit code of a process that could not be confined, or made ready otherwise, and so ran nothing: what it was to do is not
/// judged by it. (`EX_TEMPFAIL`.)
pub const NOT_READY: u8 = 75;

/// One thing the kernel does for us. Any other may fail and this one still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// A user id that nobody else on the machine has.
    Uid,
    /// A user namespace: no right in it is a right outside.
    User,
    /// A pid namespace: no other process can be named.
    Pid,
    /// A mount namespace with an empty root.
    Root,
    /// A network namespace without an interface.
    Net,
    /// Its own System V and POSIX message queues and shared memory.
    Ipc,
    /// Its own host name.
    Uts,
    /// No capability, and none to be had.
    Caps,
    /// Files, TCP, abstract sockets and signals refused once more, by another part of the kernel.
    Landlock,
    /// System calls that are not on the list are refused.
    Seccomp,
    /// Memory and processes are the tenant's share.
    Cgroup,
}

impl Layer {
    /// Every layer, in the order they are put on.
    pub const ALL: [Self; 11] = [
        Self::Cgroup,
        Self::Uid,
        Self::User,
        Self::Pid,
        Self::Root,
        Self::Net,
        Self::Ipc,
        Self::Uts,
        Self::Caps,
        Self::Landlock,
        Self::Seccomp,
    ];

    /// Its name, as an operator writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uid => "uid",
            Self::User => "user",
            Self::Pid => "pid",
            Self::Root => "root",
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Caps => "caps",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Cgroup => "cgroup",
        }
    }

    /// What to do where it is refused, as the end of a sentence.
    pub fn help(self) -> &'static str {
        match self {
            Self::Uid => "run the platform as root, so that it can give each tenant a user id",
            Self::User => {
                "allow user namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns"
            }
            Self::Pid | Self::Root | Self::Net | Self::Ipc | Self::Uts => {
                "run the platform as root or allow user namespaces; a container needs them from its runtime"
            }
            Self::Caps => "this follows from another layer that is refused",
            Self::Landlock => "use a kernel with Landlock (5.13 or newer, `landlock` among lsm=)",
            Self::Seccomp => "use a kernel with seccomp filters",
            Self::Cgroup => "run the platform as root or in a delegated cgroup (systemd: Delegate=yes)",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Layer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|layer| layer.as_str() == text).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|layer| layer.as_str()).collect();
            format!("`{text}` is no layer of the sandbox; there are {}", known.join(", "))
        })
    }
}

/// What a confined process is started with. It travels in its arguments and holds nothing secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Layers the operator does without.
    #[serde(default)]
    pub waived: BTreeSet<Layer>,
    /// User id of the process, where [`Layer::Uid`] is not waived.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Its group id; the number of `uid` where absent.
    #[serde(default)]
    pub gid: Option<u32>,
    /// The cgroups it joins, one for each hierarchy, where [`Layer::Cgroup`] is not waived.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
    /// What it has beside the system, where it is a program that is not ours; a root with nothing in it where absent.
    #[serde(default)]
    pub view: Option<View>,
}

impl Spec {
    /// Whether a layer is put on.
    pub fn has(&self, layer: Layer) -> bool {
        !self.waived.contains(&layer)
    }

    /// As an argument of a program.
    pub fn encode(&self) -> String {
        // Of strings, numbers and a set of names: there is nothing in it that JSON cannot say.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// From an argument of a program.
    ///
    /// # Errors
    /// Where it is not what [`Spec::encode`] writes.
    pub fn decode(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|cause| cause.to_string())
    }
}

/// Why a process is not confined, and so does not go on.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel, or the rights of the user, refuse a layer.
    #[error("{MARK}{layer}: {what}: {cause}")]
    Refused {
        /// Which.
        layer: Layer,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        cause: String,
    },
    /// Layers are put on by a process with one thread: another thread would stay outside.
    #[error("the process has {0} threads before it is confined")]
    Threads(usize),
    /// A limit that is never waived cannot be set.
    #[error("the process cannot be limited: {0}")]
    Limit(String),
    /// The second stage cannot be started or waited for.
    #[error("the confined process cannot be started: {0}")]
    Start(std::io::Error),
    /// What a process is handed did not arrive.
    #[error("the sockets of the process did not arrive: {0}")]
    Handoff(String),
}

/// What a refusal's text begins with: a parent reads it in the child's last words.
const MARK: &str = "sandbox layer refused: ";

/// The layer and the cause from the last words of a process that was refused one.
pub fn refused(words: &str) -> Option<(Layer, &str)> {
    let (_, rest) = words.split_once(MARK)?;
    let (layer, cause) = rest.lines().next()?.split_once(": ")?;
    Some((layer.parse().ok()?, cause))
}

/// Turns a failed call into the refusal of a layer.
trait OrRefused<T> {
    fn or_refused(self, layer: Layer, what: &'static str) -> Result<T, SandboxError>;
}

impl<T, E: fmt::Display> OrRefused<T> for Result<T, E> {
    fn or_refused(self, layer: Layer, what: &'static str) -> Result<T, SandboxError> {
        self.map_err(|cause| SandboxError::Refused { layer, what, cause: cause.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_its_argument_and_a_refusal_its_words() {
        let spec = Spec {
            waived: [Layer::Uid, Layer::Cgroup].into(),
            uid: Some(7),
            gid: Some(8),
            cgroups: vec!["/a".into()],
            view: Some(View::default()),
        };
        assert_eq!(Spec::decode(&spec.encode()), Ok(spec));
        assert!(Spec::decode("{\"waived\":[\"everything\"]}").is_err());
        let refusal = SandboxError::Refused { layer: Layer::Net, what: "unshare", cause: "no: way".into() };
        assert_eq!(refused(&format!("Error: {refusal}")), Some((Layer::Net, "unshare: no: way")));
        assert_eq!(refused("something else"), None);
        assert!(Layer::ALL.iter().all(|layer| layer.as_str().parse() == Ok(*layer)));
    }
}
