//! What every test stands on: a control plane on a free port over a store in a temporary folder, signed components, and a
//! node that does nothing but report.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::agent::{HostStatus, LogLine, LogStream};
use api::client::{ClientError, ControlClient, EventQuery, Require};
use api::control::{Accepted, DeployRequest, Event};
use api::flows::{CallerKind, FlowQuery, FlowRecord, Verdict};
use api::metrics::{HostLoad, TenantMetrics};
use api::node::{CopyOutcome, CopyStep, LogQuery, NodeApi};
use api::{Code, Problem};
use bytes::Bytes;
use control::{Audit, Control, ControlConfig, MoveWaits};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt as _};
use model::app::{Link, LockedApp, LockedComponent, ProviderKind, ProviderSpec, Revision, Route};
use model::claims::{Claims, KeyKind, KeyPair};
use model::egress::Transport;
use model::observed::{AppObserved, Phase, Reason};
use model::schedule::Ended;
use model::tenant::TenantSettings;
use model::{AppName, ComponentName, Digest, Limits, NodeName, ScheduleName, TenantName};
use store::blobs::Blobs;
use store::keys::{self, Assignment, NodeRecord, Served};
use store::redb::RedbStore;
use store::secrets::Secrets;
use store::{Expect, LeaseId, Store};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::between::{Between, Through};

pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// Longer than anything here takes; only a failure waits that long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// What a node answers to a step of a move; `None`: that it did it.
pub(crate) type Steps = Arc<dyn Fn(&CopyStep) -> Option<Result<CopyOutcome, Problem>> + Send + Sync>;

/// Answers calls with what was asked, and logs two lines.
#[derive(Default)]
pub(crate) struct Nodes {
    /// An artifact that still runs, whatever the store says.
    pub(crate) running: Option<Digest>,
    /// How often it says that an app still runs, before it removes data.
    pub(crate) busy: AtomicUsize,
    /// Apps whose data it removed.
    pub(crate) purged: Arc<Mutex<Vec<String>>>,
    /// Whose data are never removed to the end.
    pub(crate) stuck: Option<TenantName>,
    /// The steps of moves of data, which it says to have done; absent, it has no data.
    pub(crate) copied: Option<Arc<Mutex<Vec<CopyStep>>>>,
    /// What it says of them instead, where it is something.
    pub(crate) steps: Option<Steps>,
    /// Pages of moves wait here, where there is something to wait for.
    pub(crate) page: Option<Arc<Inside>>,
    /// Calls of `/wait` that wait, until they may go on.
    pub(crate) inside: Arc<Inside>,
}

/// Calls, or steps, that are with the node.
#[derive(Default)]
pub(crate) struct Inside {
    pub(crate) calls: AtomicUsize,
    pub(crate) go_on: AtomicBool,
}

impl Inside {
    async fn wait(&self) {
        self.calls.fetch_add(1, SeqCst);
        while !self.go_on.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl NodeApi for Nodes {
    fn flows(&self, tenant: &TenantName, query: FlowQuery) -> BoxStream<'static, FlowRecord> {
        let record = |n: u64, verdict| FlowRecord {
            time_ms: n,
            tenant: tenant.clone(),
            app: "a".parse().unwrap(),
            kind: CallerKind::Component,
            caller: "c".to_owned(),
            transport: Transport::Tcp,
            host: "db.example".to_owned(),
            port: 5432,
            address: None,
            verdict,
            reason: String::new(),
            policy: String::new(),
            missed: 0,
        };
        let all = vec![record(1, Verdict::Connected), record(2, Verdict::Denied)];
        let last = query.last;
        futures::stream::iter(all.into_iter().filter(move |record| query.fits(record)).take(last)).boxed()
    }

    fn logs(&self, _: &TenantName, app: &AppName, query: LogQuery) -> BoxStream<'static, LogLine> {
        let line = |text: &str| LogLine {
            time_ms: 1,
            app: app.clone(),
            component: query.component.clone().unwrap_or_else(|| name("counter")),
            revision: Revision(1),
            shard: 0,
            instance: "0-0-1".into(),
            stream: LogStream::Stdout,
            context: String::new(),
            text: text.to_owned(),
        };
        let lines = futures::stream::iter([line("one"), line("two")]).take(query.last);
        if query.follow { lines.chain(futures::stream::pending()).boxed() } else { lines.boxed() }
    }

    fn call(
        &self,
        tenant: &TenantName,
        app: &AppName,
        component: Option<&ComponentName>,
        request: http::Request<Bytes>,
    ) -> BoxFuture<'static, Result<http::Response<Bytes>, Problem>> {
        let known = component.is_none_or(|c| c.as_str() == "counter");
        let head = format!("{tenant} {app} {} {} ", request.method(), request.uri());
        let kept = request.headers().get("x-test").cloned();
        let inside = self.inside.clone();
        Box::pin(async move {
            if request.uri().path() == "/wait" {
                inside.wait().await;
            }
            if !known {
                return Err(Problem::new(Code::NotFound, "no such component"));
            }
            let body = [head.as_bytes(), request.body()].concat();
            let mut response = http::Response::new(Bytes::from(body));
            response.headers_mut().extend(kept.map(|v| (http::HeaderName::from_static("x-test"), v)));
            Ok(response)
        })
    }

    fn run_schedule(
        &self,
        _: &TenantName,
        _: &AppName,
        schedule: &ScheduleName,
    ) -> BoxFuture<'static, Result<Ended, Problem>> {
        let error = (schedule.as_str() != "good").then(|| format!("{schedule} failed"));
        let ended = Ended { due_ms: 1, began_ms: 1, ended_ms: 2, revision: Revision(1), manual: true, error };
        Box::pin(async { Ok(ended) })
    }

    fn copy(
        &self,
        _: &TenantName,
        _: &AppName,
        _: &str,
        step: CopyStep,
    ) -> BoxFuture<'static, Result<CopyOutcome, Problem>> {
        let Some(copied) = &self.copied else {
            return Box::pin(async { Err(Problem::new(Code::ProviderUnavailable, "no data here")) });
        };
        let done = || match &step {
            CopyStep::Page(_) | CopyStep::Keys(_) => CopyOutcome::Step(Default::default()),
            CopyStep::Extra(_) | CopyStep::Noted(_) => CopyOutcome::Keys(Default::default()),
            _ => CopyOutcome::Done,
        };
        let outcome = self.steps.as_ref().and_then(|steps| steps(&step)).unwrap_or_else(|| Ok(done()));
        let gate = self.page.clone().filter(|_| matches!(step, CopyStep::Page(_)));
        copied.lock().unwrap().push(step);
        Box::pin(async move {
            if let Some(gate) = gate {
                gate.wait().await;
            }
            outcome
        })
    }

    fn purge(&self, tenant: &TenantName, app: &AppName) -> BoxFuture<'static, Result<(), Problem>> {
        let (purged, line) = (self.purged.clone(), format!("{tenant}/{app}"));
        let stuck = self.stuck.as_ref() == Some(tenant);
        let busy = self.busy.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        Box::pin(async move {
            if busy {
                return Err(Problem::new(Code::Busy, "it still runs"));
            }
            purged.lock().unwrap().push(line);
            if stuck {
                std::future::pending::<()>().await;
            }
            Ok(())
        })
    }

    fn tidy(&self, unnamed: Vec<Digest>) -> BoxFuture<'static, Vec<Digest>> {
        let running = self.running;
        Box::pin(async move { unnamed.into_iter().filter(|digest| Some(*digest) == running).collect() })
    }

    fn metrics(&self, tenant: &TenantName) -> BoxFuture<'static, Arc<TenantMetrics>> {
        let hosts = vec![HostLoad { shard: 0, in_flight: 3, rss: 4096 }];
        let (tenant, components, links) = (tenant.clone(), vec![], vec![]);
        Box::pin(async { Arc::new(TenantMetrics { tenant, time_ms: 1, hosts, components, links, kept: None }) })
    }

    fn status(&self, _: &TenantName) -> BoxFuture<'static, Vec<HostStatus>> {
        Box::pin(async { vec![HostStatus { in_flight: 3, rss: 4096, apps: vec![] }] })
    }
}

/// A node that reports every phase of what it is assigned, as fast as it can.
pub(crate) struct Node {
    store: Arc<dyn Store>,
    lease: LeaseId,
    task: JoinHandle<()>,
}

impl Node {
    pub(crate) async fn join(store: &Arc<RedbStore>, node: &str) -> Self {
        let store: Arc<dyn Store> = store.clone();
        let node: NodeName = name(node);
        let lease = store.grant(Duration::from_secs(3600)).await.unwrap();
        let record = NodeRecord {
            ingress: vec!["127.0.0.1:8080".into()],
            pid: std::process::id(),
            since_ms: 1,
            programs: vec!["sqlite".into()],
            ..NodeRecord::default()
        };
        let record = serde_json::to_vec(&record).unwrap().into();
        store.put(&keys::node(&node), record, Expect::Any, Some(lease)).await.unwrap();
        let task = tokio::spawn(report(store.clone(), node, lease));
        Self { store, lease, task }
    }

    pub(crate) async fn lose(self) {
        self.task.abort();
        let _ = self.task.await;
        self.store.revoke(self.lease).await.unwrap();
    }
}

async fn report(store: Arc<dyn Store>, node: NodeName, lease: LeaseId) {
    let prefix = keys::assigned_to(&node);
    let snapshot = store.list(&prefix).await.unwrap();
    let mut changes = store.watch(&prefix, snapshot.revision);
    let (mut serves, mut told) = (BTreeMap::<String, Revision>::new(), BTreeMap::new());
    let listed = snapshot.entries.into_iter().map(|e| (e.key, Some(e.value)));
    let mut todo: Vec<(String, Option<Bytes>)> = listed.collect();
    loop {
        for (key, value) in todo.drain(..) {
            let parts: Vec<&str> = keys::parts(&key).collect();
            let observed = keys::observed(&node, &name(parts[1]), &name(parts[2]));
            let served = keys::served(&node, &name(parts[1]), &name(parts[2]));
            let Some(value) = value else {
                store.delete(&observed, Expect::Any).await.unwrap();
                store.delete(&served, Expect::Any).await.unwrap();
                serves.remove(&served);
                told.remove(&key);
                continue;
            };
            // What it is told of an older revision is nothing new of this one.
            let assignment = Assignment { older: None, ..serde_json::from_slice(&value).unwrap() };
            if told.insert(key, assignment.clone()).as_ref() == Some(&assignment) {
                continue;
            }
            let (revision, reason) = (assignment.revision, assignment.suspended);
            let phases: &[Phase] = match &reason {
                Some(_) => &[Phase::Failed],
                None => &[Phase::Fetching, Phase::Compiling, Phase::Starting, Phase::Probing, Phase::Serving],
            };
            for phase in phases {
                let serving = (*phase == Phase::Serving).then_some(revision);
                if serving.is_some() && serves.get(&served) != Some(&revision) {
                    let before = serves.insert(served.clone(), revision);
                    let value = serde_json::to_vec(&Served { revision, before }).unwrap().into();
                    store.put(&served, value, Expect::Any, None).await.unwrap();
                }
                let report = AppObserved { revision, phase: *phase, serving, reason: reason.clone() };
                let value = serde_json::to_vec(&report).unwrap().into();
                store.put(&observed, value, Expect::Any, Some(lease)).await.unwrap();
            }
        }
        let change = changes.next().await.unwrap().unwrap();
        todo.push((change.key, change.value));
    }
}

/// A running control plane and all that belongs to it.
pub(crate) struct Rig {
    pub(crate) dir: TempDir,
    pub(crate) store: Arc<RedbStore>,
    pub(crate) blobs: Blobs,
    pub(crate) client: ControlClient,
    pub(crate) tenant: TenantName,
    pub(crate) account: KeyPair,
    pub(crate) addr: SocketAddr,
    control: Option<Control>,
    pub(crate) node: Option<Node>,
}

/// Longer than any test takes.
const KEEP: Duration = Duration::from_secs(3600);

pub(crate) async fn control(store: Arc<dyn Store>, blobs: &Blobs, keys: &Path) -> Control {
    control_with(store, blobs, keys, Nodes::default(), KEEP, None).await
}

/// With a node that is more than that, another time for which unnamed artifacts are kept, and an environment of the
/// operator's choice.
pub(crate) async fn control_with(
    store: Arc<dyn Store>,
    blobs: &Blobs,
    keys: &Path,
    nodes: Nodes,
    keep_unnamed: Duration,
    env: Option<model::config::Values>,
) -> Control {
    let secrets = Secrets::open(store.clone(), keys).await.unwrap();
    let config = ControlConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        token: TOKEN.into(),
        node: name("local"),
        audit: Arc::new(Audit::start(keys.with_file_name("audit"), store.clone()).await.unwrap()),
        store,
        blobs: blobs.clone(),
        secrets,
        nodes: Arc::new(nodes),
        env,
        allowed_hosts: vec![],
        keep_unnamed,
        // What a test means to come in time comes in time, also where the machine stands still.
        move_waits: MoveWaits { last: PATIENCE, serve: PATIENCE },
        version: "0.0.1".into(),
    };
    Control::start(config).await.unwrap()
}

impl Rig {
    /// A tenant `t` that trusts one account, and a node.
    pub(crate) async fn new() -> Self {
        let mut rig = Self::without_node().await;
        rig.node = Some(Node::join(&rig.store, "local").await);
        rig
    }

    pub(crate) async fn without_node() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(dir.path().join("store.redb")).unwrap();
        let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
        let control = control(store.clone(), &blobs, &dir.path().join("keys")).await;
        let addr = control.addr();
        let client = ControlClient::new(addr, TOKEN);
        let account = KeyPair::from_entropy(KeyKind::Account, [7; 32]);
        let rig =
            Self { dir, store, blobs, client, tenant: name("t"), account, addr, control: Some(control), node: None };
        rig.client.put_tenant(&rig.tenant, &rig.settings(), Require::Absent).await.unwrap();
        rig
    }

    /// The folder of master keys.
    pub(crate) fn keys(&self) -> PathBuf {
        self.dir.path().join("keys")
    }

    pub(crate) fn settings(&self) -> TenantSettings {
        TenantSettings { trust_anchors: vec![self.account.public_key()], ..TenantSettings::default() }
    }

    /// Stops the control plane and starts another one over the same store.
    pub(crate) async fn restart(&mut self) {
        self.shutdown().await;
        self.start(None).await;
    }

    /// Starts a control plane over the same store, with an environment of the operator's choice.
    pub(crate) async fn start(&mut self, env: Option<model::config::Values>) {
        self.replace((self.store.clone(), Nodes::default(), KEEP, env)).await;
    }

    /// The same, with what [`control_with`] takes.
    pub(crate) async fn restart_with(&mut self, nodes: Nodes, keep_unnamed: Duration) {
        self.replace((self.store.clone(), nodes, keep_unnamed, None)).await;
    }

    /// Stops the control plane, where one runs, and starts another one, over a store with something between.
    pub(crate) async fn restart_over<B: Between>(&mut self, store: Arc<Through<B>>, nodes: Nodes) {
        self.replace((store, nodes, KEEP, None)).await;
    }

    async fn replace(&mut self, with: (Arc<dyn Store>, Nodes, Duration, Option<model::config::Values>)) {
        if let Some(control) = self.control.take() {
            control.shutdown().await;
        }
        let (store, nodes, keep_unnamed, env) = with;
        let control = control_with(store, &self.blobs, &self.keys(), nodes, keep_unnamed, env).await;
        self.addr = control.addr();
        self.client = ControlClient::new(self.addr, TOKEN);
        self.control = Some(control);
    }

    pub(crate) async fn shutdown(&mut self) {
        self.control.take().unwrap().shutdown().await;
    }

    /// A signed component that is `n`, uploaded.
    pub(crate) async fn artifact(&self, n: u32) -> Bytes {
        self.signed(n, |_| {}).await
    }

    /// The same with other claims.
    pub(crate) async fn signed(&self, n: u32, edit: impl FnOnce(&mut Claims)) -> Bytes {
        let module = KeyPair::from_entropy(KeyKind::Module, [9; 32]);
        let mut claims = Claims::new("counter", &module.public(), format!("token-{n}"), now());
        edit(&mut claims);
        let bytes = model::claims::sign(&component(n), claims, &self.account).unwrap();
        self.upload(bytes.into()).await
    }

    pub(crate) async fn upload(&self, bytes: Bytes) -> Bytes {
        self.client.put_blob(&self.tenant, &Digest::of(&bytes), bytes.clone()).await.unwrap();
        bytes
    }

    /// Deploys app `app` of artifact `n`.
    pub(crate) async fn deploy(&self, app: &str, n: u32) -> Accepted {
        let locked = locked(app, &self.artifact(n).await);
        self.put(&locked).await.unwrap()
    }

    pub(crate) async fn put(&self, app: &LockedApp) -> Result<Accepted, ClientError> {
        self.put_if(app, Require::Any, None).await
    }

    pub(crate) async fn put_if(
        &self,
        app: &LockedApp,
        require: Require,
        key: Option<&str>,
    ) -> Result<Accepted, ClientError> {
        let request = DeployRequest { app: app.clone(), message: None };
        self.client.deploy(&self.tenant, &app.name, &request, require, key).await
    }

    /// A node that is there and does nothing: what it says is said by [`Rig::says`].
    pub(crate) async fn silent_node(&self) {
        let record = NodeRecord { ingress: vec![], pid: 1, since_ms: 1, ..NodeRecord::default() };
        let record = serde_json::to_vec(&record).unwrap().into();
        self.store.put(&keys::node(&name("local")), record, Expect::Any, None).await.unwrap();
    }

    /// Where the node says that a revision of an app stands, and what it serves: that one, and the one before it.
    pub(crate) async fn says(&self, app: &str, revision: u64, phase: Phase, (serves, before): (u64, Option<u64>)) {
        let (node, app) = (name("local"), name(app));
        let served = Served { revision: Revision(serves), before: before.map(Revision) };
        let served = serde_json::to_vec(&served).unwrap().into();
        self.store.put(&keys::served(&node, &self.tenant, &app), served, Expect::Any, None).await.unwrap();
        let why = Reason { code: "start-failed".into(), message: "it breaks".into(), help: None };
        let reason = (phase == Phase::Failed).then_some(why);
        let report = AppObserved { revision: Revision(revision), phase, serving: Some(Revision(serves)), reason };
        let report = serde_json::to_vec(&report).unwrap().into();
        self.store.put(&keys::observed(&node, &self.tenant, &app), report, Expect::Any, None).await.unwrap();
    }

    /// Settings are answered once everything before was acted on.
    pub(crate) async fn settled(&self) {
        self.client.put_tenant(&self.tenant, &self.settings(), Require::Exists).await.unwrap();
    }

    /// The app's assignment as it is now.
    pub(crate) async fn assignment(&self, app: &str) -> Assignment {
        let key = keys::assigned(&name("local"), &self.tenant, &name(app));
        serde_json::from_slice(&self.store.get(&key).await.unwrap().unwrap().value).unwrap()
    }

    /// Events until one of type `kind` for which `good` holds; all of them, that one last.
    pub(crate) async fn until(&self, after: Option<String>, good: impl Fn(&Event) -> bool) -> Vec<Event> {
        let query = EventQuery { after, ..EventQuery::default() };
        let mut events = self.client.events(query).await.unwrap();
        collect(&mut events, good).await
    }

    /// Waits until the store holds what `good` wants of the app's assignment.
    pub(crate) async fn assigned(&self, app: &str, good: impl Fn(Option<&Assignment>) -> bool) -> Option<Assignment> {
        let key = keys::assigned(&name("local"), &self.tenant, &name(app));
        let after = self.store.list(&key).await.unwrap();
        let mut changes = self.store.watch(&key, after.revision);
        let mut value = after.entries.into_iter().next().map(|e| e.value);
        let found = async {
            loop {
                let assignment: Option<Assignment> = value.as_ref().map(|v| serde_json::from_slice(v).unwrap());
                if good(assignment.as_ref()) {
                    return assignment;
                }
                value = changes.next().await.unwrap().unwrap().value;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("the assignment never became as wanted")
    }
}

pub(crate) async fn collect(events: &mut api::client::Events, good: impl Fn(&Event) -> bool) -> Vec<Event> {
    let mut seen: Vec<Event> = Vec::new();
    let all = async {
        while let Some(event) = events.next().await {
            let event = event.unwrap();
            let done = good(&event);
            seen.push(event);
            if done {
                return true;
            }
        }
        false
    };
    let done = tokio::time::timeout(PATIENCE, all).await.unwrap_or(false);
    assert!(done, "the event never came; seen: {seen:#?}");
    seen
}

/// A component that imports key-value and exports an HTTP handler; `n` makes its bytes its own.
pub(crate) fn component(n: u32) -> Vec<u8> {
    let text = format!(
        r#"(component
            (import "wasi:keyvalue/store@0.2.0-draft" (instance))
            (instance $handler)
            (export "wasi:http/incoming-handler@0.2.12" (instance $handler))
            (@custom "n" "{n}")
        )"#
    );
    wat::parse_str(text).unwrap()
}

/// An app of one component with one link and the route `<app>.localhost/`.
pub(crate) fn locked(app: &str, bytes: &[u8]) -> LockedApp {
    let info = model::component::inspect(bytes).unwrap();
    let component = LockedComponent {
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        world: info.world,
        imports: info.imports,
        exports: info.exports,
        config: [].into(),
        config_from: vec![],
        limits: Limits::default(),
        reuse: None,
        allow_hosts: vec![],
        health: None,
    };
    let embedded = ProviderSpec::new(ProviderKind::KeyvalueEmbedded);
    LockedApp {
        name: name(app),
        version: None,
        components: [(name("counter"), component)].into(),
        providers: [(name("embedded"), embedded)].into(),
        links: vec![Link {
            component: name("counter"),
            contract: name("wasi:keyvalue"),
            label: name("default"),
            provider: name("embedded"),
            config: [].into(),
        }],
        routes: vec![Route {
            host: format!("{app}.localhost"),
            path: "/".into(),
            methods: vec![],
            component: name("counter"),
        }],
        schedules: [].into(),
    }
}

/// The problem a request was refused with.
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Problem {
    match result {
        Err(ClientError::Refused(problem)) => problem,
        other => panic!("expected a refusal, got {other:?}"),
    }
}
