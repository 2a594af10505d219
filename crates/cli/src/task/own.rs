//! The node of one task: everything it is to run is put into its store, what stands around its host is settled, and it is
//! started.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::run::{RunEnd, RunFrame, RunRequest};
use api::task::{TaskFolder, TaskSpec};
use api::{Code, Problem};
use futures::StreamExt as _;
use model::observed::{AppObserved, Phase, Reason};
use model::secret::SecretValue;
use model::{AppName, Digest, NodeName, Revision, TenantName};
use node::confine::{Confinement, UidRange, User, Waiver, Wanted};
use node::ingress::IngressConfig;
use node::{Node, NodeConfig, Storage};
use sandbox::Layer;
use store::blobs::Blobs;
use store::data::DataEngine;
use store::keys::{self, Assignment, RevisionRecord};
use store::redb::RedbStore;
use store::secrets::Secrets;
use store::{Expect, Store};
use tokio::sync::mpsc;

use super::app::{NAME, Ready};
use super::serve::{Memory, used_up};
use super::{Data, place, user};

/// How long a component may take until it answers: a large one compiles for seconds, and its host may start twice.
const START: Duration = Duration::from_secs(90);
/// The one revision a task has.
const REVISION: Revision = Revision(1);
/// The largest file of a secret, bytes.
const MAX_SECRET: usize = 1 << 20;

#[derive(Clone)]
pub(super) struct Names {
    pub(super) tenant: TenantName,
    pub(super) app: AppName,
    node: NodeName,
}

impl Names {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self { tenant: "nomad".parse()?, app: NAME.parse()?, node: NAME.parse()? })
    }
}

/// The task's own node.
pub(super) struct Own {
    pub(super) node: Arc<Node>,
    store: Arc<dyn Store>,
    /// The folder of its sockets, which goes by its number.
    _sockets: std::fs::File,
}

/// Starts the task's node; it, and what people should know of how the task is isolated.
pub(super) async fn start(
    dir: &Path,
    spec: &TaskSpec,
    data: &Data,
    names: &Names,
    ready: Ready,
) -> anyhow::Result<(Own, Vec<String>)> {
    let unusable = |cause: &dyn std::fmt::Display| Problem::new(Code::StoreUnavailable, cause.to_string());
    let sockets = dir.join("run");
    for folder in [&spec.code, &sockets] {
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .recursive(true)
            .create(folder)
            .map_err(|cause| unusable(&format!("cannot make the folder {}: {cause}", folder.display())))?;
    }
    // Opened before there is anything of a component.
    let folders = spec.folders.iter().map(folder).collect::<Result<Vec<_>, _>>()?;
    let user = spec.user.as_deref().map(user::find).transpose()?;
    let store: Arc<dyn Store> = RedbStore::open(dir.join("state.redb")).map_err(|cause| unusable(&cause))?;
    let blobs = Blobs::open(dir.join("blobs")).map_err(|cause| unusable(&cause))?;
    let engine = DataEngine::open(data.path.join("data.redb")).map_err(|cause| unusable(&cause))?;
    let secrets = Secrets::open(store.clone(), &dir.join("keys")).await.map_err(|cause| unusable(&cause))?;
    blobs.put(&Digest::of(&ready.wasm), &ready.wasm).map_err(|cause| unusable(&cause))?;
    for (name, file) in &ready.secrets {
        let text = place::read(file, MAX_SECRET)
            .and_then(|bytes| String::from_utf8(bytes).map_err(|_| std::io::Error::other("it is no text")));
        let text = text.map_err(|cause| {
            let what = format!("the secret file {} cannot be read: {cause}", file.name().display());
            Problem::new(Code::SecretMissing, what)
                .help("write it with a `template` block to secrets/, and name it as `secrets/<file>`")
        })?;
        let value = SecretValue::new(text.trim_end_matches('\n').as_bytes().to_vec());
        secrets.set(&names.tenant, &name.parse()?, &value, Expect::Any).await.map_err(|cause| unusable(&cause))?;
    }
    let put = async |key: String, value: serde_json::Result<Vec<u8>>| {
        let value = value.map_err(|cause| Problem::new(Code::Internal, cause.to_string()))?;
        store.put(&key, value.into(), Expect::Any, None).await.map(drop).map_err(|cause| unusable(&cause))
    };
    let record = RevisionRecord {
        revision: REVISION,
        created_ms: 0,
        origin: serde_json::Value::Null,
        message: None,
        app: ready.app,
        claims: Default::default(),
    };
    put(keys::tenant(&names.tenant), serde_json::to_vec(&spec.settings)).await?;
    put(keys::revision(&names.tenant, &names.app, REVISION), serde_json::to_vec(&record)).await?;
    let assigned = Assignment { revision: REVISION, suspended: None };
    put(keys::assigned(&names.node, &names.tenant, &names.app), serde_json::to_vec(&assigned)).await?;

    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let listen = spec.listen.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
    let storage = Storage { store: store.clone(), blobs, data: engine, secrets };
    let confinement = confine(spec, user, &exe, &data.path).await?;
    let notes = confinement.waived().into_iter().map(|(layer, why)| {
        tracing::warn!(%layer, %why, "the task is not isolated by a layer");
        format!("sidereal: the component is not isolated by `{layer}`: {why}")
    });
    let notes = notes.collect();
    let config = NodeConfig::new(names.node.clone(), &data.path, exe, confinement, storage, listen);
    // Sockets have short names, and the directory of the task may have a long one.
    let sockets = std::fs::File::open(&sockets).map_err(|cause| unusable(&cause))?;
    let run_dir = PathBuf::from(format!("/proc/self/fd/{}", sockets.as_raw_fd()));
    let node = Node::start(NodeConfig {
        code_dir: Some(spec.code.clone()),
        host_folders: folders,
        run_dir,
        ingress: IngressConfig { workers: 1, ..IngressConfig::new(listen) },
        ingress_fallback: false,
        closed: spec.listen.is_none(),
        ..config
    });
    let node = node.await.map_err(|cause| {
        Problem::new(Code::Unreachable, format!("the task cannot be set up at {listen}: {cause}"))
            .help("where the port is taken, another allocation may be ending; Nomad tries again")
    })?;
    Ok((Own { node, store, _sockets: sockets }, notes))
}

impl Own {
    /// Waits until the component answers.
    pub(super) async fn answers(&self, names: &Names) -> Result<(), Problem> {
        let key = keys::observed(&names.node, &names.tenant, &names.app);
        let settled = async {
            let mut changes = self.store.watch(&key, 0);
            while let Some(Ok(change)) = changes.next().await {
                let seen = change.value.and_then(|value| serde_json::from_slice::<AppObserved>(&value).ok());
                match seen {
                    Some(AppObserved { phase: Phase::Serving, .. }) => return Ok(()),
                    Some(AppObserved { phase: Phase::Failed, reason: Some(reason), .. }) => {
                        return Err(problem(reason));
                    }
                    _ => {}
                }
            }
            Err(Problem::new(Code::Internal, "the task's own store ended"))
        };
        let late = || Problem::new(Code::TimedOut, format!("the component does not answer after {START:?}"));
        tokio::time::timeout(START, settled).await.unwrap_or_else(|_| Err(late()))
    }

    /// Runs the program to its end. Its component was made ready, and no other host is asked: it runs once.
    pub(super) async fn program(
        &self,
        names: &Names,
        program: &RunRequest,
        pieces: mpsc::Sender<RunFrame>,
        memory: &Memory,
    ) -> Result<RunEnd, Problem> {
        let mut frames = self.node.run(&names.tenant, &names.app, program).await?;
        while let Some(frame) = frames.next().await {
            match frame? {
                RunFrame::End(ended) => return Ok(ended),
                // Waits for a slow reader, and so does the program.
                piece => drop(pieces.send(piece).await),
            }
        }
        if memory.ran_out() {
            return Err(used_up());
        }
        Err(Problem::new(Code::StartFailed, "the process that ran the program ended before the program did")
            .help("its last words are in the log of the task's process"))
    }
}

/// A folder that the job grants, open. What it is called from here on is for nobody to exchange.
fn folder(granted: &TaskFolder) -> Result<(api::run::Folder, OwnedFd), Problem> {
    let opened = place::folder(&granted.place, granted.make);
    let opened = opened.map_err(|cause| {
        Problem::new(Code::ManifestInvalid, format!("folder \"{}\": {cause}", granted.folder.name))
            .help("name a folder of the task itself, and no link to one")
    })?;
    Ok((granted.folder.clone(), opened))
}

/// What stands around the task's host.
async fn confine(spec: &TaskSpec, user: Option<User>, exe: &Path, data: &Path) -> Result<Arc<Confinement>, Problem> {
    let waiver = spec.waive.join(",").parse::<Waiver>();
    let mut waiver = waiver.map_err(|why| Problem::new(Code::ManifestInvalid, format!("`waive`: {why}")))?;
    if spec.groups.join.is_empty() {
        // The plugin's configuration does without, or nothing is to be bounded. A group of this node's own would outlive it.
        waiver.layers.insert(Layer::Cgroup);
    }
    let wanted = Wanted {
        exe: exe.to_owned(),
        data_dir: data.to_owned(),
        waiver,
        // What was given before stays: files in the task's folders belong to it.
        uids: Some(UidRange::two(&spec.id)),
        user,
        join: spec.groups.join.clone(),
        command: String::new(),
    };
    let confinement = Confinement::establish(&wanted).await.map_err(|problem| match problem.code {
        Code::IsolationRefused => problem.help(
            "to go on without, name these layers in `waive` of the plugin's configuration; only components you trust should \
             run then",
        ),
        _ => problem,
    })?;
    match confinement.waived().get(Layer::Uid.as_str()) {
        Some(why) if user.is_some() => {
            let what = format!("the job names a `user`, and this client runs every component as its own: {why}");
            Err(Problem::new(Code::IsolationRefused, what).help("take `user` away, or run the agent as root"))
        }
        _ => Ok(confinement),
    }
}

fn problem(reason: Reason) -> Problem {
    let code = Code::ALL.iter().copied().find(|code| code.as_str() == reason.code).unwrap_or(Code::StartFailed);
    Problem { help: reason.help, ..Problem::new(code, reason.message) }
}
