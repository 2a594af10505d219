//! What confines the processes that this node starts: which layers of the sandbox are on, whose user id and control group
//! each process has, and how the node finds out, before it starts any, what this machine refuses.

mod groups;
mod probe;
mod uids;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use api::services::Standing;
use api::{Code, Problem};
use model::TenantName;
use model::tenant::Quotas;
use sandbox::{Layer, Spec, View};

use groups::Groups;
pub(crate) use groups::Held;
pub use uids::UidRange;
use uids::Uids;

/// Layers an operator does without.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiver {
    /// By name: these are not even tried.
    pub layers: BTreeSet<Layer>,
    /// Whatever this machine refuses.
    pub missing: bool,
}

impl Waiver {
    /// The word for whatever this machine refuses.
    pub const MISSING: &str = "missing";
}

impl std::str::FromStr for Waiver {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut waiver = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            if word == Self::MISSING {
                waiver.missing = true;
            } else {
                let layer = word
                    .parse()
                    .map_err(|why| format!("{why}; `{}` stands for whatever this machine refuses", Self::MISSING))?;
                waiver.layers.insert(layer);
            }
        }
        Ok(waiver)
    }
}

/// Whose process it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who<'a> {
    /// A host of this tenant.
    Tenant(&'a TenantName),
    /// A compilation.
    Compiler,
    /// The process of an external provider of this tenant, by a name that no other process has.
    External(&'a TenantName, &'a str),
}

impl Who<'_> {
    /// What its user id is kept by: the programs of a tenant have one, which is not that of its hosts.
    fn account(&self) -> String {
        match self {
            Self::External(tenant, _) => format!("external.{tenant}"),
            Self::Tenant(_) | Self::Compiler => self.to_string(),
        }
    }
}

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant(name) => write!(f, "{}{name}", groups::TENANT),
            Self::Compiler => f.write_str("compiler"),
            Self::External(tenant, process) => write!(f, "{}{tenant}.{process}", groups::EXTERNAL),
        }
    }
}

/// How a node confines what it starts.
#[derive(Debug)]
pub struct Confinement {
    /// Without these layers, and why.
    waived: BTreeMap<Layer, String>,
    uids: Option<Mutex<Uids>>,
    /// Whom tenants' processes run as, in place of an id of their own.
    user: Option<User>,
    groups: Groups,
}

/// A user of the machine and its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub uid: u32,
    /// Its group's.
    pub gid: u32,
}

/// What a confinement is made from.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The program that starts itself confined.
    pub exe: PathBuf,
    /// The node's directory, where it writes down whose id is whose.
    pub data_dir: PathBuf,
    /// Layers the operator does without.
    pub waiver: Waiver,
    /// User ids it may give; its own choice where absent.
    pub uids: Option<UidRange>,
    /// Whom the processes of tenants run as; each tenant has a user of its own where absent.
    pub user: Option<User>,
    /// Control groups that somebody else made, for whatever it starts; it makes its own where there are none.
    pub join: Vec<PathBuf>,
    /// What the operator types to go on without some layers: `sidereal up --waive`.
    pub command: String,
}

impl Confinement {
    /// Nothing is confined: for programs that are not this one, which only tests have.
    pub fn bare() -> Arc<Self> {
        let waived = Layer::ALL.into_iter().map(|layer| (layer, "nothing is confined".to_owned())).collect();
        Arc::new(Self { waived, uids: None, user: None, groups: Groups::none() })
    }

    /// Tries every layer that is not waived on a process that does nothing.
    ///
    /// # Errors
    /// `isolation-refused`, with all layers that are refused and not waived, why, and what to do.
    pub async fn establish(wanted: &Wanted) -> Result<Arc<Self>, Problem> {
        let by_name = |layer: &Layer| (*layer, "waived by the operator".to_owned());
        let mut waived: BTreeMap<Layer, String> = wanted.waiver.layers.iter().map(by_name).collect();
        let unusable =
            |what: &str, cause: &dyn fmt::Display| Problem::new(Code::StoreUnavailable, format!("{what}: {cause}"));
        let dir = wanted.data_dir.canonicalize().unwrap_or_else(|_| wanted.data_dir.clone());
        let uids = if waived.contains_key(&Layer::Uid) {
            None
        } else {
            let uids = Uids::open(&dir, wanted.uids).map_err(|cause| unusable("whose user ids are whose", &cause))?;
            Some(Mutex::new(uids))
        };
        let mut refused = BTreeMap::new();
        let groups = if waived.contains_key(&Layer::Cgroup) {
            Groups::none()
        } else if wanted.join.is_empty() {
            Groups::own(&dir).unwrap_or_else(|why| {
                refused.insert(Layer::Cgroup, why);
                Groups::none()
            })
        } else {
            Groups::joined(wanted.join.clone())
        };
        let this = Self { waived: BTreeMap::new(), uids, user: wanted.user, groups };
        let spec = |without: BTreeSet<Layer>| {
            this.spec_without(Who::Compiler, without).map_err(|cause| unusable("a process cannot be confined", &cause))
        };
        let tried = try_all(&wanted.exe, &waived, &mut refused, spec).await;
        let refusal = tried.err().or_else(|| {
            let refuses = !wanted.waiver.missing && !refused.is_empty();
            refuses.then(|| refusal(&refused, &waived, &wanted.command))
        });
        if let Some(problem) = refusal {
            // Nothing is started, so nothing is left behind.
            this.groups.close().await;
            return Err(problem);
        }
        waived.append(&mut refused);
        Ok(Arc::new(Self { waived, ..this }))
    }

    /// How a process is to be confined. Its control groups are made where they are not there.
    ///
    /// # Errors
    /// Where there is no user id left, or it cannot be written down.
    pub fn spec(&self, who: Who<'_>) -> io::Result<Spec> {
        self.spec_without(who, self.waived.keys().copied().collect())
    }

    /// As [`Confinement::spec`], for a program that is not this one.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn program(&self, who: Who<'_>, view: View) -> io::Result<Spec> {
        let mut waived: BTreeSet<Layer> = self.waived.keys().copied().collect();
        if waived.contains(&Layer::Root) {
            // Its folders are below those of the platform, where another user cannot look: in a root of its own it need not.
            waived.insert(Layer::Uid);
        }
        Ok(Spec { view: Some(view), ..self.spec_without(who, waived)? })
    }

    /// How the process of a tenant's databases is to be confined. It is this program and runs nothing of a tenant but its SQL,
    /// on files of the node's own user; `view` is what it sees of them.
    ///
    /// # Errors
    /// As [`Confinement::spec`].
    pub(crate) fn databases(&self, tenant: &TenantName, view: View) -> io::Result<Spec> {
        let mut waived: BTreeSet<Layer> = self.waived.keys().copied().collect();
        waived.insert(Layer::Uid);
        Ok(Spec { view: Some(view), ..self.spec_without(Who::Tenant(tenant), waived)? })
    }

    /// Whether programs run as a user that has nothing to do with that of the platform.
    pub fn gives_users(&self) -> bool {
        !self.waived.contains_key(&Layer::Uid) && !self.waived.contains_key(&Layer::Root)
    }

    fn spec_without(&self, who: Who<'_>, mut waived: BTreeSet<Layer>) -> io::Result<Spec> {
        let own = |uids: &Mutex<Uids>| uids.lock().unwrap_or_else(PoisonError::into_inner).of(&who.account());
        let (uid, gid) = match (&self.uids, who, self.user) {
            _ if waived.contains(&Layer::Uid) => (None, None),
            (Some(_), Who::Tenant(_), Some(User { uid, gid })) => (Some(uid), Some(gid)),
            (Some(uids), ..) => (Some(own(uids)?), None),
            (None, ..) => (None, None),
        };
        let cgroups = if waived.contains(&Layer::Cgroup) { Vec::new() } else { self.groups.dirs(who)? };
        if cgroups.is_empty() {
            // Somebody else's groups are for their tenant: what the platform does for it is not charged to it.
            waived.insert(Layer::Cgroup);
        }
        Ok(Spec { waived, uid, gid, cgroups, view: None })
    }

    /// The layers that are not on, and why.
    pub fn waived(&self) -> BTreeMap<String, String> {
        self.waived.iter().map(|(layer, why)| (layer.to_string(), why.clone())).collect()
    }

    /// The layers that are on, in the order they are put on.
    pub fn layers(&self) -> Vec<String> {
        let on = Layer::ALL.into_iter().filter(|layer| !self.waived.contains_key(layer));
        on.map(|layer| layer.to_string()).collect()
    }

    /// For people: where the control groups are; absent where this node makes none.
    pub fn groups(&self) -> Option<String> {
        self.groups.describe()
    }

    /// What the kernel says so far of the group of `who`.
    pub(crate) fn held(&self, who: Who<'_>) -> Held {
        self.groups.held(&who.to_string())
    }

    /// What a tenant may use together from now on.
    pub(crate) async fn limit(&self, tenant: &TenantName, quotas: &Quotas) {
        if let Err(cause) = self.groups.limit(&Who::Tenant(tenant).to_string(), quotas).await {
            tracing::error!(%tenant, %cause, "the quotas of a tenant cannot be set; the last ones stay in force");
        }
    }

    /// A process of `who` is there.
    pub(crate) fn started(&self, who: Who<'_>) {
        if let Err(cause) = self.groups.gather(&who.to_string()) {
            tracing::error!(%who, %cause, "a process is not in every control group of its tenant");
        }
    }

    /// A host says where it stands in the queue for the cores; `None`: it is gone.
    pub(crate) fn stand(&self, tenant: &TenantName, shard: u32, standing: Option<Standing>) {
        if let Err(cause) = self.groups.stand(&Who::Tenant(tenant).to_string(), shard, standing) {
            tracing::debug!(%tenant, shard, ?standing, %cause, "the control group of a tenant stays where it is in the queue");
        }
    }

    /// Nothing of `who` runs any more.
    pub(crate) async fn release(&self, who: Who<'_>) {
        self.groups.release(&who.to_string()).await;
    }

    /// What a tenant that is gone might use is nothing to remember.
    pub(crate) fn forget(&self, tenant: &TenantName) {
        self.groups.forget(&Who::Tenant(tenant).to_string());
    }

    /// Nothing that was confined runs any more.
    pub(crate) async fn close(&self) {
        self.groups.close().await;
    }
}

/// One message about everything that is missing.
fn refusal(refused: &BTreeMap<Layer, String>, waived: &BTreeMap<Layer, String>, command: &str) -> Problem {
    let reasons: Vec<String> =
        refused.iter().map(|(layer, why)| format!("`{layer}` ({why}): {}", layer.help())).collect();
    let names: Vec<&str> = waived.keys().chain(refused.keys()).map(|layer| layer.as_str()).collect();
    let text = format!("this machine does not let tenants be isolated by {}", reasons.join("; "));
    Problem::new(Code::IsolationRefused, text)
        .help(format!("to go on without: `{command} {}`; only components you trust should run then", names.join(",")))
}

/// Finds out which layers are refused beside those that are known to be, one after the other.
async fn try_all(
    exe: &Path,
    waived: &BTreeMap<Layer, String>,
    refused: &mut BTreeMap<Layer, String>,
    spec: impl Fn(BTreeSet<Layer>) -> Result<Spec, Problem>,
) -> Result<(), Problem> {
    loop {
        let without: BTreeSet<Layer> = waived.keys().chain(refused.keys()).copied().collect();
        match probe::run(exe, &spec(without.clone())?).await {
            Ok(()) => return Ok(()),
            Err(probe::Failed::Refused(layer, why)) if !without.contains(&layer) => {
                refused.insert(layer, why);
            }
            Err(failed) => {
                let text = format!("a confined process cannot be started: {failed}");
                let help =
                    "a process of another user must be able to run this program: look at the permissions of its file";
                return Err(Problem::new(Code::IsolationRefused, text).help(help));
            }
        }
    }
}

/// What this machine refuses, and why; nothing is changed to find out.
///
/// # Errors
/// `isolation-refused` where no process can be started at all.
pub async fn missing(exe: &Path, data_dir: &Path) -> Result<BTreeMap<String, (String, &'static str)>, Problem> {
    let mut refused = BTreeMap::new();
    if let Err(why) = groups::possible() {
        refused.insert(Layer::Cgroup, why);
    }
    let uid = UidRange::of(data_dir).first;
    let waived = [(Layer::Cgroup, String::new())].into();
    try_all(exe, &waived, &mut refused, |waived| Ok(Spec { waived, uid: Some(uid), ..Spec::default() })).await?;
    Ok(refused.into_iter().map(|(layer, why)| (layer.to_string(), (why, layer.help()))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiver_is_a_list_of_names() {
        let waiver: Waiver = "uid, cgroup".parse().unwrap();
        assert_eq!(waiver, Waiver { layers: [Layer::Uid, Layer::Cgroup].into(), missing: false });
        assert_eq!("missing".parse(), Ok(Waiver { layers: BTreeSet::new(), missing: true }));
        let why = "everything".parse::<Waiver>().unwrap_err();
        assert!(why.contains("no layer of the sandbox") && why.contains("`missing`"), "{why}");
    }

    #[test]
    fn what_is_refused_is_said_at_once_with_the_command_to_go_on() {
        let refused = [(Layer::Uid, "only root can".to_owned()), (Layer::Cgroup, "read-only".to_owned())].into();
        let waived = [(Layer::Net, String::new())].into();
        let problem = refusal(&refused, &waived, "sidereal up --waive");
        assert!(problem.detail.contains("`uid` (only root can): run the platform as root"), "{}", problem.detail);
        assert!(problem.detail.contains("`cgroup` (read-only)"), "{}", problem.detail);
        assert!(problem.help.unwrap().contains("`sidereal up --waive net,uid,cgroup`"));
    }
}
