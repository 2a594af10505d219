//! What a node is started with.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::NodeName;
use store::Store;
use store::blobs::Blobs;
use store::data::DataEngine;
use store::secrets::Secrets;

use crate::admin::AdminConfig;
use crate::confine::Confinement;
use crate::dialer::Resolve;
use crate::external::{Pace, Programs};
use crate::ingress::IngressConfig;
use crate::otlp::OtlpConfig;
use crate::schedules::{Clock, SystemClock};

/// Everything that is kept on this machine, open.
#[derive(Clone)]
pub struct Storage {
    /// Where the control plane is met.
    pub store: Arc<dyn Store>,
    /// The artifacts.
    pub blobs: Blobs,
    /// The tenants' embedded data.
    pub data: DataEngine,
    /// The tenants' secrets.
    pub secrets: Arc<Secrets>,
}

/// What a node is started with.
pub struct NodeConfig {
    /// Its name in the store.
    pub name: NodeName,
    /// Compiled code and keys are kept in here.
    pub data_dir: PathBuf,
    /// Compiled code and the key of its MACs are kept in here in place of `data_dir`; several nodes may share it.
    pub code_dir: Option<PathBuf>,
    /// Hosts' sockets are made in here; about 40 bytes of path leave room for the longest names.
    pub run_dir: PathBuf,
    /// The program that is run as `host` and `compile`.
    pub exe: PathBuf,
    /// How what it starts is confined.
    pub confinement: Arc<Confinement>,
    /// What is kept.
    pub storage: Storage,
    /// Bytes of compiled code that each host keeps in memory; `None`: the host's own default.
    pub code_budget: Option<u64>,
    /// Folders that the components of its hosts may use; those of a task.
    pub host_folders: Vec<(api::run::Folder, OwnedFd)>,
    /// What of their config the components of its hosts find in their environment, by name; that of a task.
    pub host_variables: Vec<String>,
    /// How requests from outside are taken.
    pub ingress: IngressConfig,
    /// Where the ingress port is taken, listen on a free one.
    pub ingress_fallback: bool,
    /// Nothing comes from outside: there is no ingress.
    pub closed: bool,
    /// Where monitoring listens; `None`: nowhere.
    pub admin: Option<AdminConfig>,
    /// Where spans and lines are exported to; `None`: nowhere.
    pub otlp: Option<OtlpConfig>,
    /// How names are resolved; `None` for the system's way.
    pub resolver: Option<Arc<dyn Resolve>>,
    /// Programs that external providers may run.
    pub programs: Programs,
    /// How long external providers may take.
    pub pace: Pace,
    /// What time it is for schedules.
    pub clock: Arc<dyn Clock>,
}

impl NodeConfig {
    /// A node with the defaults of everything that has one.
    pub fn new(
        name: NodeName,
        data_dir: &Path,
        exe: PathBuf,
        confinement: Arc<Confinement>,
        storage: Storage,
        ingress_listen: SocketAddr,
    ) -> Self {
        Self {
            confinement,
            name,
            data_dir: data_dir.to_owned(),
            code_dir: None,
            run_dir: data_dir.join("run"),
            exe,
            storage,
            code_budget: None,
            host_folders: Vec::new(),
            host_variables: Vec::new(),
            ingress: IngressConfig::new(ingress_listen),
            ingress_fallback: true,
            closed: false,
            admin: None,
            otlp: None,
            resolver: None,
            programs: Programs::new(),
            pace: Pace::default(),
            clock: Arc::new(SystemClock),
        }
    }
}
