//! Brings a task up on a node of its own, passes its lines on, and ends it when it is told to.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use api::agent::LogStream;
use api::node::{LogQuery, NodeApi as _};
use api::run::{RunEnd, RunFrame, RunRequest};
use api::task::{Groups, TaskExit, TaskPhase, TaskSpec, TaskStatus};
use api::{Code, Problem};
use futures::StreamExt as _;
use model::observed::{AppObserved, Phase, Reason};
use model::secret::SecretValue;
use model::{AppName, Digest, NodeName, Revision, TenantName};
use node::confine::{Confinement, Waiver, Wanted};
use node::ingress::IngressConfig;
use node::{Node, NodeConfig, Storage};
use sandbox::Layer;
use store::blobs::Blobs;
use store::data::DataEngine;
use store::keys::{self, Assignment, RevisionRecord};
use store::redb::RedbStore;
use store::secrets::Secrets;
use store::{Expect, Store};
use tokio::sync::{mpsc, oneshot, watch};

use super::app::{NAME, Ready, prepare};
use super::control::Control;
use super::output::Output;

/// How long a component may take until it answers: a large one compiles for seconds, and its host may start twice.
const START: Duration = Duration::from_secs(90);
/// How long the last lines may take to be read.
const LAST_LINES: Duration = Duration::from_secs(2);
/// Lines of a task that are kept until its output is open.
const KEPT_LINES: usize = 4096;
/// How often it is looked whether memory has run out.
const LOOK: Duration = Duration::from_millis(250);
/// The exit code of what the kernel killed.
const OOM: i32 = 137;
/// The exit code of a program that was told to stop: that of a process ended by SIGINT, which no component can see.
const STOPPED: i32 = 130;
/// How long the last bytes of a program may wait for their reader.
const LAST_BYTES: Duration = Duration::from_secs(30);
/// The one revision a task has.
const REVISION: Revision = Revision(1);
/// The longest path that leaves room for the names of a host's sockets.
const RUN_DIR: usize = 60;

/// Runs the task; how it ended.
pub async fn serve(dir: &Path, spec: TaskSpec) -> TaskExit {
    let status = TaskStatus { pid: std::process::id(), phase: TaskPhase::Starting, problem: None };
    let control = Arc::new(Control { status: watch::channel(status).0, stop: watch::channel(None).0 });
    let memory = Memory::of(spec.groups.clone());
    let ran = AtomicBool::new(false);
    let ended = run(dir, spec, &control, &memory, &ran).await;
    let ran = ran.into_inner();
    let (code, problem) = match ended {
        Ok(RunEnd { code, fault }) => (code, fault.map(|fault| Problem::new(Code::ComponentTrapped, fault))),
        Err(error) => (1, Some(crate::output::problem_of(&error))),
    };
    let oom = memory.ran_out();
    if let Some(problem) = &problem {
        tracing::error!(%problem, "the task ends");
        control.status.send_modify(|status| {
            status.phase = TaskPhase::Failed;
            status.problem = Some(problem.clone());
        });
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ended_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    TaskExit { code: if oom { OOM } else { code }, problem, oom, ran, ended_ms }
}

/// Runs the task to its end; with which exit code, and what ended it where it was not itself.
async fn run(
    dir: &Path,
    spec: TaskSpec,
    control: &Arc<Control>,
    memory: &Memory,
    ran: &AtomicBool,
) -> anyhow::Result<RunEnd> {
    let signal = telemetry::shutdown_signal().context("cannot wait for signals")?;
    control.listen(dir)?;
    let mut stop = control.stop.subscribe();
    let asked = async {
        tokio::select! {
            asked = stop.wait_for(Option::is_some) => asked.ok().and_then(|asked| *asked).unwrap_or_default(),
            () = signal.cancelled() => DEFAULT_DRAIN,
        }
    };
    tokio::pin!(asked);
    let mut ready = prepare(&spec).await?;
    let program = ready.program.take();
    let patience = if program.is_some() { LAST_BYTES } else { LAST_LINES };
    let names = Names::new()?;
    let node = start(dir, &spec, &names, ready).await?;
    let (quiet, quieten) = oneshot::channel();
    let (pieces, written) = mpsc::channel(1);
    let outputs = (spec.stdout, spec.stderr, patience);
    let mut lines = tokio::spawn(pass_on(node.node.clone(), names.clone(), outputs, written, quieten));
    let running = async {
        node.answers(&names).await?;
        ran.store(true, Relaxed);
        control.status.send_modify(|status| status.phase = TaskPhase::Running);
        match &program {
            Some(program) => node.program(&names, program, pieces, memory).await,
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        ended = running => ended.map(|ended| (ended, Duration::ZERO)),
        // Whoever wants it to stop need not wait until it is ready. A program is not told, and ends at once.
        deadline = &mut asked => Ok(match &program {
            Some(_) => (RunEnd { code: STOPPED, fault: None }, Duration::ZERO),
            None => (RunEnd { code: 0, fault: None }, deadline),
        }),
        problem = out_of_memory(memory) => Err(problem),
    };
    let deadline = outcome.as_ref().map_or(Duration::ZERO, |(_, deadline)| *deadline);
    if outcome.is_ok() {
        control.status.send_modify(|status| status.phase = TaskPhase::Stopping);
    }
    node.node.shutdown(deadline).await;
    drop(quiet);
    // Whoever wants a program to stop does not wait for its last bytes.
    let all = program.is_some() && outcome.as_ref().is_ok_and(|(ended, _)| ended.code != STOPPED);
    tokio::select! {
        _ = tokio::time::timeout(if all { LAST_BYTES } else { LAST_LINES } * 2, &mut lines) => {}
        _ = &mut asked, if all => {}
    }
    node.sweep();
    Ok(outcome?.0)
}

/// Where nobody says how long calls may take: the task was ended by a signal.
const DEFAULT_DRAIN: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Names {
    tenant: TenantName,
    app: AppName,
    node: NodeName,
}

impl Names {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { tenant: "nomad".parse()?, app: NAME.parse()?, node: NAME.parse()? })
    }
}

/// The task's own node.
struct Own {
    node: Arc<Node>,
    store: Arc<dyn Store>,
    /// Sockets that are not in the task's directory, because its path is too long.
    apart: Option<PathBuf>,
}

/// The layers that would keep a program from the folders that its job grants it: they are the machine's, and not the user's
/// of a tenant.
fn without(folders: &[api::run::Folder]) -> BTreeSet<Layer> {
    let layers = [Layer::Uid, Layer::Root, Layer::Landlock, Layer::Seccomp];
    if folders.is_empty() { BTreeSet::new() } else { layers.into() }
}

async fn start(dir: &Path, spec: &TaskSpec, names: &Names, ready: Ready) -> anyhow::Result<Own> {
    let unusable = |cause: &dyn std::fmt::Display| Problem::new(Code::StoreUnavailable, cause.to_string());
    for folder in [&spec.data, &spec.code] {
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .recursive(true)
            .create(folder)
            .map_err(|cause| unusable(&format!("cannot make the folder {}: {cause}", folder.display())))?;
    }
    let store: Arc<dyn Store> = RedbStore::open(dir.join("state.redb")).map_err(|cause| unusable(&cause))?;
    let blobs = Blobs::open(dir.join("blobs")).map_err(|cause| unusable(&cause))?;
    let data = DataEngine::open(spec.data.join("data.redb")).map_err(|cause| unusable(&cause))?;
    let secrets = Secrets::open(store.clone(), &dir.join("keys")).await.map_err(|cause| unusable(&cause))?;
    blobs.put(&Digest::of(&ready.wasm), &ready.wasm).map_err(|cause| unusable(&cause))?;
    for (name, file) in &ready.secrets {
        let text = std::fs::read_to_string(file).map_err(|cause| {
            Problem::new(Code::SecretMissing, format!("the secret file {} cannot be read: {cause}", file.display()))
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
    let storage = Storage { store: store.clone(), blobs, data, secrets };
    let confinement = Confinement::establish(&Wanted {
        exe: exe.clone(),
        data_dir: spec.data.clone(),
        waiver: Waiver { missing: true, layers: without(&spec.folders) },
        uids: None,
        join: spec.groups.join.clone(),
        command: String::new(),
    })
    .await?;
    for (layer, why) in confinement.waived() {
        tracing::warn!(%layer, %why, "the task is not isolated by a layer");
    }
    let config = NodeConfig::new(names.node.clone(), &spec.data, exe, confinement, storage, listen);
    let plain = dir.join("run");
    let (run_dir, apart) = if plain.as_os_str().len() <= RUN_DIR {
        (plain, None)
    } else {
        let apart = std::env::temp_dir().join(format!("sidereal-task-{}", super::short(dir)));
        (apart.clone(), Some(apart))
    };
    let node = Node::start(NodeConfig {
        code_dir: Some(spec.code.clone()),
        host_folders: spec.folders.clone(),
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
    Ok(Own { node, store, apart })
}

impl Own {
    /// Waits until the component answers.
    async fn answers(&self, names: &Names) -> Result<(), Problem> {
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
    async fn program(
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

    fn sweep(&self) {
        if let Some(apart) = &self.apart
            && let Err(cause) = std::fs::remove_dir_all(apart)
        {
            tracing::warn!(path = %apart.display(), %cause, "a folder of sockets stays behind");
        }
    }
}

/// Whether the kernel has killed something of this run: a scheduler keeps the groups of a task over its restarts, and the
/// kernel its count.
struct Memory {
    groups: Groups,
    before: u64,
}

impl Memory {
    fn of(groups: Groups) -> Self {
        Self { before: groups.killed(), groups }
    }

    fn ran_out(&self) -> bool {
        self.groups.killed() > self.before
    }
}

/// Ends once the kernel has killed something of the task because its memory ran out. The node would start it again; a
/// scheduler wants to know.
async fn out_of_memory(memory: &Memory) -> Problem {
    loop {
        tokio::time::sleep(LOOK).await;
        if memory.ran_out() {
            return used_up();
        }
    }
}

fn used_up() -> Problem {
    Problem::new(Code::LimitReached, "the task used all the memory of its `resources` block and was killed")
        .help("raise `memory` (or `memory_max`), or let it use less")
}

fn problem(reason: Reason) -> Problem {
    let code = Code::ALL.iter().copied().find(|code| code.as_str() == reason.code).unwrap_or(Code::StartFailed);
    Problem { help: reason.help, ..Problem::new(code, reason.message) }
}

/// Passes the lines of the component and the bytes of the program on until the node has ended and nothing has come for a
/// moment.
async fn pass_on(
    node: Arc<Node>,
    names: Names,
    (stdout, stderr, patience): (PathBuf, PathBuf, Duration),
    mut written: mpsc::Receiver<RunFrame>,
    quiet: oneshot::Receiver<()>,
) {
    const MOMENT: Duration = Duration::from_millis(100);
    let query = LogQuery { last: KEPT_LINES, follow: true, ..LogQuery::default() };
    let mut lines = node.logs(&names.tenant, &names.app, query);
    let (mut out, mut err) = (Output::to(stdout), Output::to(stderr));
    let mut ended = std::pin::pin!(quiet);
    let mut over = false;
    loop {
        let line = tokio::select! {
            biased;
            Some(piece) = written.recv() => {
                match piece {
                    RunFrame::Stdout(bytes) => out.bytes(bytes.into()).await,
                    RunFrame::Stderr(bytes) => err.bytes(bytes.into()).await,
                    RunFrame::End(_) => {}
                }
                continue;
            }
            line = lines.next() => line,
            _ = &mut ended, if !over => {
                over = true;
                continue;
            }
            () = tokio::time::sleep(MOMENT), if over => None,
        };
        let Some(line) = line else { break };
        match line.stream {
            LogStream::Stdout => out.line(&line.text),
            LogStream::Stderr => err.line(&line.text),
            LogStream::Platform => err.line(&format!("sidereal: {}", line.text)),
            stream => err.line(&format!("{:?} {} {}", stream.level(), line.context, line.text)),
        }
    }
    tokio::join!(out.finish(patience), err.finish(patience));
}
