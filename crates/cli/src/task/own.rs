//! The node of one task: everything it is to run is put into its store, what stands around its host is settled, and it is
//! started.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::run::{RunEnd, RunFrame, RunRequest};
use api::task::{TaskFolder, TaskSpec};
use api::{Code, Problem};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use model::observed::AppObserved;
use model::secret::SecretValue;
use model::{AppName, Digest, NodeName, Revision, TenantName};
use node::confine::{Confinement, UidRange, User, Waiver, Wanted};
use node::ingress::IngressConfig;
use node::{Node, NodeConfig, NodeError, Storage};
use sandbox::Layer;
use store::blobs::Blobs;
use store::data::DataEngine;
use store::keys::{self, Assignment, RevisionRecord};
use store::redb::RedbStore;
use store::secrets::Secrets;
use store::{Change, Expect, Snapshot, Store, StoreError};
use tokio::sync::mpsc;

use super::app::{NAME, Ready};
use super::serve::{Memory, used_up};
use super::{health, names, place, reach, user};

/// The pause before the task's own store is asked again.
const AGAIN: Duration = Duration::from_millis(500);
/// The one revision a task has.
const REVISION: Revision = Revision(1);
/// The largest component that is held in memory beside its compiled code, bytes.
const SMALL: usize = 1 << 20;
/// Remarks of the node that wait to be written.
const REMARKS: usize = 16;
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

/// What people should know of a task.
pub(super) struct Notes {
    /// Of how it is isolated.
    pub(super) first: Vec<String>,
    /// As they come up.
    pub(super) later: mpsc::Receiver<String>,
}

/// Starts the task's node; it, and what people should know of the task.
pub(super) async fn start(
    (dir, scratch): (&Path, &Path),
    exe: PathBuf,
    spec: &TaskSpec,
    names: &Names,
    ready: Ready,
) -> anyhow::Result<(Own, Notes)> {
    let unusable = |cause: &dyn std::fmt::Display| Problem::new(Code::StoreUnavailable, cause.to_string());
    let sockets = dir.join("run");
    let data = if keeps(spec) { spec.data.clone() } else { scratch.join("data") };
    for folder in [&spec.code, &data, &sockets] {
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .recursive(true)
            .create(folder)
            .map_err(|cause| unusable(&format!("cannot make the folder {}: {cause}", folder.display())))?;
    }
    // Opened before there is anything of a component.
    let folders = spec.folders.iter().map(folder).collect::<Result<Vec<_>, _>>()?;
    let user = spec.user.as_deref().map(user::find).transpose()?;
    let store: Arc<dyn Store> = RedbStore::open(scratch.join("state.redb")).map_err(|cause| unusable(&cause))?;
    let blobs = if ready.wasm.len() <= SMALL { scratch } else { dir };
    let blobs = Blobs::open(blobs.join("blobs")).map_err(|cause| unusable(&cause))?;
    let engine = DataEngine::open(data.join("data.redb")).map_err(|cause| unusable(&cause))?;
    let secrets = Secrets::open(store.clone(), &scratch.join("keys")).await.map_err(|cause| unusable(&cause))?;
    blobs.put(&Digest::of(&ready.wasm), &ready.wasm).map_err(|cause| unusable(&cause))?;
    for (name, file) in &ready.secrets {
        let text = place::read(file, MAX_SECRET).and_then(|bytes| {
            String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no text"))
        });
        let text = text.map_err(|cause| unread(&file.name(), &cause))?;
        let value = SecretValue::new(text.trim_end_matches('\n').as_bytes().to_vec());
        secrets.set(&names.tenant, &name.parse()?, &value, Expect::Any).await.map_err(|cause| unusable(&cause))?;
    }
    let put = async |key: String, value: serde_json::Result<Vec<u8>>| {
        let value = value.map_err(|cause| Problem::new(Code::Internal, cause.to_string()))?;
        store.put(&key, value.into(), Expect::Any, None).await.map(drop).map_err(|cause| unusable(&cause))
    };
    let settings = reach::settings(spec, &ready.app);
    let record = RevisionRecord {
        revision: REVISION,
        previous: None,
        created_ms: 0,
        origin: serde_json::Value::Null,
        message: None,
        app: ready.app,
        claims: Default::default(),
    };
    put(keys::tenant(&names.tenant), serde_json::to_vec(&settings)).await?;
    put(keys::revision(&names.tenant, &names.app, REVISION), serde_json::to_vec(&record)).await?;
    let assigned = Assignment { revision: REVISION, suspended: None, expiry: None, older: None };
    put(keys::assigned(&names.node, &names.tenant, &names.app), serde_json::to_vec(&assigned)).await?;

    let listen = spec.listen.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
    let listen = if spec.network.is_some() { everywhere(listen) } else { listen };
    let storage = Storage { store: store.clone(), blobs, data: engine, secrets };
    let confinement = confine(spec, user, &exe, &data).await?;
    let notes = confinement.waived().into_iter().map(|(layer, why)| {
        let why = spec.refused.get(&layer).cloned().unwrap_or(why);
        tracing::warn!(%layer, %why, "the task is not isolated by a layer");
        format!("sidereal: the component is not isolated by `{layer}`: {why}")
    });
    let first = notes.collect();
    let (remarks, later) = mpsc::channel(REMARKS);
    let ingress = IngressConfig {
        workers: ingress_workers(),
        // What stands before a task is most often one address: a load balancer, or the client itself.
        connections_per_ip: usize::MAX,
        remarks: Some(remarks),
        ..IngressConfig::new(listen)
    };
    let config = NodeConfig::new(names.node.clone(), &data, exe, confinement, storage, listen);
    // Sockets have short names, and the directory of the task may have a long one.
    let sockets = std::fs::File::open(&sockets).map_err(|cause| unusable(&cause))?;
    let run_dir = PathBuf::from(format!("/proc/self/fd/{}", sockets.as_raw_fd()));
    let node = Node::start(NodeConfig {
        code_dir: Some(spec.code.clone()),
        host_folders: folders,
        // A program is told its own.
        host_variables: spec.listen.map(|_| spec.env.keys().cloned().collect()).unwrap_or_default(),
        run_dir,
        ingress,
        ingress_fallback: false,
        closed: spec.listen.is_none(),
        resolver: names::resolver(spec)?,
        ..config
    });
    let node = node.await.map_err(|cause| match cause {
        NodeError::Ingress(cause) => Problem::new(Code::Unreachable, format!("the task cannot listen: {cause}"))
            .help("where the port is taken, another allocation may be ending; Nomad tries again"),
        cause => unusable(&format!("the task cannot be set up: {cause}")),
    })?;
    Ok((Own { node, store, _sockets: sockets }, Notes { first, later }))
}

/// Every address of the network this process is in: those of IPv6 too, where it has that.
fn everywhere(listen: SocketAddr) -> SocketAddr {
    let any = Ipv6Addr::UNSPECIFIED;
    match listen.ip() == Ipv4Addr::UNSPECIFIED && UdpSocket::bind((any, 0)).is_ok() {
        true => SocketAddr::from((any, listen.port())),
        false => listen,
    }
}

/// One host keeps no more than two busy, and a client runs many tasks.
fn ingress_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(2)
}

impl Own {
    /// What the node reports of the component.
    fn observed(&self, names: &Names) -> BoxStream<'static, AppObserved> {
        let key = keys::observed(&names.node, &names.tenant, &names.app);
        let values =
            futures::stream::unfold((self.store.clone(), key, None), |from| async { Some(follow(from).await) });
        values.filter_map(|value| async move { serde_json::from_slice::<AppObserved>(&value?).ok() }).boxed()
    }

    /// Waits until the component answers.
    pub(super) async fn answers(&self, names: &Names) -> Result<(), Problem> {
        health::comes_up(self.observed(names), health::PATIENCE).await
    }

    /// Waits until the component cannot be kept up; why.
    pub(super) async fn goes_down(&self, names: &Names) -> Problem {
        health::goes_down(self.observed(names), self.node.ends(&names.tenant), health::PATIENCE).await
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
        if let Some(whose) = memory.ran_out() {
            return Err(used_up(whose));
        }
        Err(Problem::new(Code::StartFailed, "the process that ran the program ended before the program did")
            .help("its last words are in the log of the task's process"))
    }
}

type Followed = (Arc<dyn Store>, String, Option<BoxStream<'static, Result<Change, StoreError>>>);

/// The next value of a key. A watch that broke is begun anew.
async fn follow((store, key, mut changes): Followed) -> (Option<Bytes>, Followed) {
    loop {
        let next = match &mut changes {
            Some(changes) => changes.next().await.and_then(Result::ok).map(|change| change.value),
            None => match store.list(&key).await {
                Ok(Snapshot { mut entries, revision }) => {
                    changes = Some(store.watch(&key, revision));
                    Some(entries.pop().map(|entry| entry.value))
                }
                Err(_) => None,
            },
        };
        match next {
            Some(value) => return (value, (store, key, changes)),
            None => {
                changes = None;
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Whether anything of the task outlives this start of it: what its links keep, or the user that the files it writes belong to.
fn keeps(spec: &TaskSpec) -> bool {
    !spec.links.is_empty() || spec.folders.iter().any(|folder| folder.folder.writable)
}

/// A folder that the job grants, open. What it is called from here on is for nobody to exchange.
fn folder(granted: &TaskFolder) -> Result<(api::run::Folder, OwnedFd), Problem> {
    let opened = place::folder(&granted.place, granted.make);
    let opened = opened.map_err(|cause| ungranted(&granted.folder.name, &cause))?;
    Ok((granted.folder.clone(), opened))
}

/// Why a folder is not granted.
fn ungranted(name: &str, cause: &io::Error) -> Problem {
    let what = format!("folder \"{name}\": {cause}");
    match is_the_jobs(cause) {
        true => Problem::new(Code::ManifestInvalid, what).help("name a folder of the task itself, and no link to one"),
        false => Problem::new(Code::StoreUnavailable, what),
    }
}

/// Why a secret file is not read.
fn unread(file: &Path, cause: &io::Error) -> Problem {
    let what = format!("the secret file {} cannot be read: {cause}", file.display());
    match is_the_jobs(cause) {
        true => Problem::new(Code::SecretMissing, what)
            .help("write it with a `template` block to secrets/, and name it as `secrets/<file>`"),
        false => Problem::new(Code::StoreUnavailable, what),
    }
}

/// Whether something cannot be used for what the job says of it, and not for what the machine lacks at the moment.
pub(super) fn is_the_jobs(cause: &io::Error) -> bool {
    use io::ErrorKind::{
        FileTooLarge, InvalidData, InvalidFilename, InvalidInput, NotADirectory, NotFound, PermissionDenied,
        ReadOnlyFilesystem,
    };
    matches!(
        cause.kind(),
        FileTooLarge
            | InvalidData
            | InvalidFilename
            | InvalidInput
            | NotADirectory
            | NotFound
            | PermissionDenied
            | ReadOnlyFilesystem
    )
}

/// What stands around the task's host.
async fn confine(spec: &TaskSpec, user: Option<User>, exe: &Path, data: &Path) -> Result<Arc<Confinement>, Problem> {
    let named: Vec<&str> = spec.waive.iter().chain(spec.refused.keys()).map(String::as_str).collect();
    let waiver = named.join(",").parse::<Waiver>();
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
        // What the machine refuses at other times too is known to whoever started this: it is short of something.
        Code::IsolationRefused => Problem { code: Code::Busy, ..problem }.help(
            "it may pass: the next start tries again; to go on without a layer, name it in `waive` of the plugin's \
             configuration, but only components you trust should run then",
        ),
        _ => problem,
    })?;
    match confinement.waived().get(Layer::Uid.as_str()) {
        Some(why) if user.is_some() => {
            let why = spec.refused.get(Layer::Uid.as_str()).unwrap_or(why);
            let what = format!("the job names a `user`, and this client runs every component as its own: {why}");
            Err(Problem::new(Code::IsolationRefused, what).help("take `user` away, or run the agent as root"))
        }
        _ => Ok(confinement),
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    /// A full disk is no fault of the job's: it is tried again.
    #[test]
    fn a_folder_that_the_machine_has_no_room_for_is_not_the_jobs_fault() {
        let code = |cause: Errno| ungranted("/local/x", &cause.into()).code;
        for cause in [Errno::NOENT, Errno::NOTDIR, Errno::ACCESS, Errno::ROFS] {
            assert_eq!(code(cause), Code::ManifestInvalid, "{cause}");
        }
        for cause in [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::IO] {
            assert_eq!(code(cause), Code::StoreUnavailable, "{cause}");
        }
        // Nor of its secrets.
        let code = |cause: Errno| unread(Path::new("secrets/key"), &cause.into()).code;
        assert_eq!((code(Errno::NOENT), code(Errno::ACCESS)), (Code::SecretMissing, Code::SecretMissing));
        for cause in [Errno::IO, Errno::NFILE, Errno::MFILE, Errno::NOMEM] {
            assert_eq!(code(cause), Code::StoreUnavailable, "{cause}");
        }
        let linked = io::Error::new(io::ErrorKind::InvalidInput, "it is a link, or behind one");
        assert_eq!(ungranted("/local/x", &linked).code, Code::ManifestInvalid);
    }
}
