//! What is judged while it changes: a request whose body takes its time, a stream whose token ends, and how much one
//! tenant can have of what all share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use api::client::{ControlClient, EventQuery, Require};
use api::control::{AuditView, CallRequest, TokenMade, TokenRequest};
use api::node::LogQuery;
use api::problem::Code;
use futures::StreamExt as _;
use model::access::{Role, TokenId};
use model::tenant::TenantSettings;
use model::{Digest, ProviderKind, ProviderSpec, TenantName};
use store::keys::{self, TokenRecord};
use store::{Expect, Store as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::gate::{Gate, Way};
use crate::rig::{Inside, Nodes, PATIENCE, Rig, TOKEN, collect, locked, name, refused};

pub(crate) async fn made(rig: &Rig, role: Role, expires_in: Option<u64>) -> TokenMade {
    let request = TokenRequest { role, label: "test".into(), expires_in };
    rig.client.create_token(&rig.tenant, &request).await.unwrap()
}

/// A request that was let in, and whose body is still to come.
pub(crate) struct Slow {
    stream: TcpStream,
    body: String,
    who: String,
    line: String,
}

impl Slow {
    pub(crate) async fn begin(rig: &Rig, line: &str, token: &TokenMade, body: String) -> Self {
        let slow = Self::send(rig, line, token, body).await;
        slow.is_let_in(rig).await;
        slow
    }

    /// Asks, and does not wait to be let in: of many, the first one waits for the last one no longer than for itself.
    pub(crate) async fn send(rig: &Rig, line: &str, token: &TokenMade, body: String) -> Self {
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        let head = format!(
            "{line} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\nif-match: *\r\n\
             content-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            rig.addr,
            token.token,
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        Self { stream, body, who: format!("token {}", token.view.id), line: line.to_owned() }
    }

    pub(crate) async fn is_let_in(&self, rig: &Rig) {
        lines(rig, |all| all.iter().any(|l| l.who == self.who && l.what == self.line && l.outcome == "begun")).await;
    }

    pub(crate) async fn end(mut self) -> String {
        self.stream.write_all(self.body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

/// The audit log, once it has what `good` wants.
async fn lines(rig: &Rig, good: impl Fn(&[AuditView]) -> bool) -> Vec<AuditView> {
    let found = async {
        loop {
            let all = rig.client.audit(None, 10_000).await.unwrap();
            if good(&all) {
                return all;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("the line never came")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_cannot_end_its_own_suspension() {
    let rig = Rig::new().await;
    let owner = made(&rig, Role::Owner, None).await;
    let view = rig.client.tenant(&rig.tenant).await.unwrap();
    // Let in before the suspension, judged after it.
    let body = serde_json::to_string(&view.settings).unwrap();
    let slow = Slow::begin(&rig, "PUT /v1/tenants/t", &owner, body).await;
    let suspended = TenantSettings { suspended: Some("unpaid".into()), ..view.settings.clone() };
    rig.client.put_tenant(&rig.tenant, &suspended, Require::At(view.etag)).await.unwrap();
    let answer = slow.end().await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("unpaid"), "{answer}");
    assert_eq!(rig.client.tenant(&rig.tenant).await.unwrap().settings, suspended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_the_operator_decides_cannot_be_left_out_either() {
    let rig = Rig::new().await;
    let owner = ControlClient::new(rig.addr, &made(&rig, Role::Owner, None).await.token);
    let spec = ProviderSpec { operator: true, ..ProviderSpec::new(ProviderKind::KeyvalueMemory) };
    let offered = TenantSettings {
        egress: vec!["10.0.0.0/8".into()],
        providers: [(name("cache"), spec)].into(),
        ..rig.settings()
    };
    let etag = rig.client.put_tenant(&rig.tenant, &offered, Require::Exists).await.unwrap().etag;
    let problem = refused(owner.put_tenant(&rig.tenant, &rig.settings(), Require::At(etag)).await);
    assert_eq!(problem.code, Code::Forbidden);
    assert!(problem.detail.contains("`egress`") && problem.detail.contains("`providers`"), "{problem:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_makes_no_other_one() {
    let rig = Rig::new().await;
    let owner = made(&rig, Role::Owner, None).await;
    let body = r#"{"role":"owner"}"#.to_owned();
    let slow = Slow::begin(&rig, "POST /v1/tenants/t/tokens", &owner, body).await;
    rig.client.revoke_token(&rig.tenant, &owner.view.id).await.unwrap();
    let answer = slow.end().await;
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("revoked"), "{answer}");
    assert_eq!(rig.client.tokens(&rig.tenant).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_the_token_it_was_asked_for_with() {
    let rig = Rig::new().await;
    rig.deploy("a", 1).await;
    let (revoked, short) = (made(&rig, Role::Viewer, None).await, made(&rig, Role::Viewer, Some(8)).await);
    let kept = made(&rig, Role::Viewer, None).await;
    let follow = LogQuery { last: 9, follow: true, ..LogQuery::default() };
    let mut ends = Vec::new();
    for token in [&revoked, &short] {
        let client = ControlClient::new(rig.addr, &token.token);
        let events = client.events(EventQuery::default()).await.unwrap();
        let logs = client.logs(&rig.tenant, &name("a"), follow.clone()).await.unwrap();
        ends.push(async move { (events.count().await, logs.count().await) });
    }
    let mut other = ControlClient::new(rig.addr, &kept.token).events(EventQuery::default()).await.unwrap();
    rig.client.revoke_token(&rig.tenant, &revoked.view.id).await.unwrap();
    tokio::time::timeout(PATIENCE, futures::future::join_all(ends)).await.expect("a stream outlived its token");
    rig.deploy("b", 2).await;
    assert!(tokio::time::timeout(PATIENCE, other.next()).await.unwrap().is_some(), "this token goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_cannot_fill_the_audit_log() {
    let rig = Rig::new().await;
    let viewer = ControlClient::new(rig.addr, &made(&rig, Role::Viewer, None).await.token);
    let (tries, began) = (300, Instant::now());
    for _ in 0..tries {
        assert_eq!(refused(viewer.audit(None, 1).await).code, Code::Forbidden);
    }
    let all = rig.client.audit(None, 10_000).await.unwrap();
    let written = all.iter().filter(|line| line.what == "GET /v1/audit").count();
    // A hundred at once, and one a second: the longer it took, the more.
    let most = 101 + began.elapsed().as_secs_f64().ceil() as usize;
    assert!((100..=most).contains(&written), "{written} of {tries}");
    // The operator is not left out, and what is left out is said.
    let next = async {
        loop {
            assert_eq!(refused(viewer.audit(None, 1).await).code, Code::Forbidden);
            let all = rig.client.audit(None, 10_000).await.unwrap();
            if all.iter().any(|line| line.what == "GET /v1/audit" && line.left_out > 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, next).await.expect("what was left out is never said");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_ended_do_not_pile_up() {
    let rig = Rig::new().await;
    let record = |n: u64| TokenRecord {
        role: Role::Viewer,
        label: n.to_string(),
        hash: [0; 32],
        created_ms: n,
        created_by: "operator".into(),
        expires_ms: None,
        revoked_ms: Some(n),
    };
    let put = |n: u64| {
        let id: TokenId = name(&format!("aaaaaaaaaaaa{}", letters(n)));
        let value = serde_json::to_vec(&record(n)).unwrap().into();
        let (store, key) = (rig.store.clone(), keys::token(&rig.tenant, &id));
        async move { store.put(&key, value, Expect::Absent, None).await.unwrap() }
    };
    futures::future::join_all((1..=510).map(put)).await;
    made(&rig, Role::Viewer, None).await;
    let left = rig.client.tokens(&rig.tenant).await.unwrap();
    assert_eq!(left.len(), 501);
    assert_eq!(left[0].label, "11", "those that ended first are forgotten");
}

/// A number as four letters.
fn letters(n: u64) -> String {
    [n / 676 / 26, n / 676, n / 26, n].iter().map(|d| char::from(b'a' + u8::try_from(d % 26).unwrap())).collect()
}

/// A call with nearly as large a body as there may be.
fn large_call(path: &str) -> CallRequest {
    CallRequest {
        component: None,
        method: "PUT".into(),
        path: path.into(),
        headers: vec![],
        body: data_encoding::BASE64.encode(&vec![7; api::control::MAX_CALL_BODY - 100]),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_together_take_so_much_memory_and_no_more() {
    let mut rig = Rig::new().await;
    rig.deploy("a", 1).await;
    let inside = Arc::<Inside>::default();
    rig.restart_with(Nodes { inside: inside.clone(), ..Nodes::default() }, Duration::from_secs(3600)).await;
    // One tenant has half of the room, and that is eight of the largest calls: they are with the node and go on.
    const ROOM: usize = 8;
    let mut calls = JoinSet::new();
    for n in 1..=ROOM {
        let (addr, tenant) = (rig.addr, rig.tenant.clone());
        let large = large_call("/wait");
        calls.spawn(async move { ControlClient::new(addr, TOKEN).call(&tenant, &name("a"), &large).await });
        let entered = async {
            while inside.calls.load(SeqCst) < n {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, entered).await.expect("it finds room");
    }
    // Whoever finds none in time is told so.
    let (app, more) = (name("a"), large_call("/wait"));
    let answers = futures::future::join_all((0..3).map(|_| rig.client.call(&rig.tenant, &app, &more))).await;
    let codes: Vec<Code> = answers.into_iter().map(|answer| refused(answer).code).collect();
    assert_eq!((codes, inside.calls.load(SeqCst)), (vec![Code::Busy; 3], ROOM));
    inside.go_on.store(true, SeqCst);
    for answer in calls.join_all().await {
        assert_eq!(answer.unwrap().status, 200);
    }
    // Nothing of it stays taken.
    let large = large_call("/");
    for _ in 0..2 {
        let calls = (0..3).map(|_| rig.client.call(&rig.tenant, &app, &large));
        for answer in futures::future::join_all(calls).await {
            let answer = answer.unwrap();
            assert!(answer.status == 200 && answer.body.len() > api::control::MAX_CALL_BODY);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_calls_of_one_tenant_leave_room_for_those_of_others() {
    let rig = Rig::new().await;
    rig.deploy("a", 1).await;
    let other = name("other");
    rig.client.put_tenant(&other, &TenantSettings::default(), Require::Absent).await.unwrap();
    // As many as there is room for, all but the last byte of each: what finds room is read, and the rest waits.
    let size = api::control::MAX_CALL_BODY / 3 * 4;
    let head = format!(
        "POST /v1/tenants/t/apps/a/call HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        rig.addr,
        crate::rig::TOKEN,
        size + 1
    );
    // Those that find no room are refused after a while: where this machine was slower than that, there is room whatever a tenant
    // may have, which shows nothing.
    for round in 0.. {
        let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut greedy = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (head, sent, addr) = (head.clone(), sent.clone(), rig.addr);
            greedy.spawn(async move {
                let mut stream = TcpStream::connect(addr).await.unwrap();
                stream.write_all(head.as_bytes()).await.unwrap();
                let part = vec![b' '; 64 << 10];
                for _ in 0..size / part.len() {
                    stream.write_all(&part).await.unwrap();
                    sent.fetch_add(part.len(), std::sync::atomic::Ordering::Relaxed);
                }
                std::future::pending::<()>().await;
            });
        }
        // As much as half of the room is on its way, and every one of them has a part of it.
        let half = async {
            while sent.load(std::sync::atomic::Ordering::Relaxed) < 8 * size {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, half).await.expect("half of the room is not to be had");
        let large = large_call("/");
        // It has no such app, which is found out when the whole of the call is there.
        let refusal = refused(rig.client.call(&other, &name("none"), &large).await);
        assert_eq!(refusal.code, Code::NotFound, "{refusal:?}");
        if greedy.try_join_next().is_none() {
            break;
        }
        assert!(round < 3, "the others still wait");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etags_do_not_tell_a_tenant_how_much_others_write() {
    let mut rig = Rig::new().await;
    let set = async |rig: &Rig, n: u64, require| {
        let request = api::control::ConfigRequest { values: [("n".to_owned(), n.to_string())].into() };
        rig.client.put_config(&rig.tenant, &name("mine"), &request, require).await
    };
    let mut etags = vec![set(&rig, 0, Require::Absent).await.unwrap().config.etag];
    for n in 1..20 {
        etags.push(set(&rig, n, Require::At(*etags.last().unwrap())).await.unwrap().config.etag);
    }
    // Not one is a little more than the one before, as numbers of writes are.
    let counts = etags.windows(2).filter(|two| two[1].wrapping_sub(two[0]) < 1 << 20).count();
    assert_eq!(counts, 0, "{etags:?}");
    let view = rig.client.tenant(&rig.tenant).await.unwrap();
    let mut events = rig.client.events(EventQuery::default()).await.unwrap();
    let after = rig.client.put_tenant(&rig.tenant, &view.settings, Require::At(view.etag)).await.unwrap();
    let told = collect(&mut events, |event| event.kind == api::control::event::TENANT_CHANGED).await;
    assert_eq!(told.last().unwrap().data["etag"], after.etag, "the event says the same");
    // They are the same after a restart, one that was replaced is none any more, and neither is a revision of the store.
    rig.restart().await;
    assert_eq!(rig.client.tenant(&rig.tenant).await.unwrap().etag, after.etag);
    let last = *etags.last().unwrap();
    assert_eq!(rig.client.config(&rig.tenant, &name("mine")).await.unwrap().etag, last);
    let revision = rig.store.get(&keys::config(&rig.tenant, &name("mine"))).await.unwrap().unwrap().revision;
    for wrong in [etags[0], revision, last ^ 1] {
        assert_eq!(refused(set(&rig, 99, Require::At(wrong)).await).code, Code::Conflict, "{wrong}");
    }
    set(&rig, 99, Require::At(last)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_artifact_counts_as_missing() {
    let rig = Rig::new().await;
    let bytes = rig.artifact(1).await;
    let digest = Digest::of(&bytes);
    assert!(rig.client.has_blob(&rig.tenant, &digest).await.unwrap());
    std::fs::write(rig.blobs.path(&digest), b"x").unwrap();
    assert!(!rig.client.has_blob(&rig.tenant, &digest).await.unwrap());
    rig.upload(bytes.clone()).await;
    rig.put(&locked("a", &bytes)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_log_says_what_was_changed() {
    let rig = Rig::new().await;
    rig.deploy("a", 1).await;
    let token = made(&rig, Role::Deployer, None).await;
    let quotas = model::tenant::Quotas { apps: 7, ..Default::default() };
    let settings = TenantSettings { quotas, suspended: Some("unpaid".into()), ..rig.settings() };
    rig.client.put_tenant(&rig.tenant, &settings, Require::Exists).await.unwrap();
    rig.client.delete_app_and_data(&rig.tenant, &name("a"), Require::Any).await.unwrap();
    let all = rig.client.audit(None, 1000).await.unwrap();
    for (what, outcome) in [
        (format!("POST /v1/tenants/t/tokens: token {} of role deployer", token.view.id), "done"),
        ("PUT /v1/tenants/t: `quotas`, `suspended`".to_owned(), "done"),
        ("DELETE /v1/tenants/t/apps/a?purge-data=true".to_owned(), "begun"),
    ] {
        assert!(all.iter().any(|line| line.what == what && line.outcome == outcome), "{what}: {all:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn artifacts_count_in_a_quota() {
    let rig = Rig::new().await;
    let quotas = model::tenant::Quotas { artifact_bytes: model::unit::ByteSize(1000), ..Default::default() };
    let settings = TenantSettings { quotas, ..rig.settings() };
    rig.client.put_tenant(&rig.tenant, &settings, Require::Exists).await.unwrap();
    let send = |n: u8| {
        let bytes = bytes::Bytes::from(vec![n; 300]);
        let (client, tenant) = (&rig.client, &rig.tenant);
        async move { client.put_blob(tenant, &Digest::of(&bytes), bytes.clone()).await }
    };
    // Also where they come at once.
    let sent = futures::future::join_all((0..6).map(send)).await;
    let over = sent.into_iter().filter(Result::is_err).map(|one| refused(one).code).collect::<Vec<_>>();
    assert_eq!(over, [Code::QuotaExceeded; 3]);
    assert_eq!(rig.blobs.list().unwrap().len(), 3);
    // What is there may be sent again; what was no artifact counts as nothing.
    for n in 0..6 {
        let there = rig.client.has_blob(&rig.tenant, &Digest::of(&[n; 300])).await.unwrap();
        assert_eq!(send(n).await.is_ok(), there, "{n}");
    }
    let wrong = rig.client.put_blob(&rig.tenant, &Digest::of(b"other"), vec![9; 50].into()).await;
    assert_eq!(refused(wrong).code, Code::ArtifactMissing);
    rig.client.put_blob(&rig.tenant, &Digest::of(&[8; 80]), vec![8; 80].into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_not_the_digests_change_nothing_of_what_is_counted() {
    let rig = Rig::new().await;
    let quotas = model::tenant::Quotas { artifact_bytes: model::unit::ByteSize(1000), ..Default::default() };
    let settings = TenantSettings { quotas, ..rig.settings() };
    rig.client.put_tenant(&rig.tenant, &settings, Require::Exists).await.unwrap();
    for n in 1..=5 {
        let bytes = bytes::Bytes::from(vec![n; 600]);
        let digest = Digest::of(&bytes);
        let sent = rig.client.put_blob(&rig.tenant, &digest, bytes).await;
        assert_eq!(sent.is_ok(), n == 1, "{n}: the file of the first one stays");
        // Nothing at all in its place: refused, and the first one counts for as much as before.
        let nothing = rig.client.put_blob(&rig.tenant, &Digest::of(&[1; 600]), bytes::Bytes::new()).await;
        assert_eq!(refused(nothing).code, Code::ArtifactMissing);
    }
    assert_eq!(rig.blobs.list().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sends_other_bytes_is_not_told_what_others_have() {
    let rig = Rig::new().await;
    let theirs = another(&rig).await;
    let secret = bytes::Bytes::from_static(b"what `other` has");
    let digest = Digest::of(&secret);
    theirs.put_blob(&name("other"), &digest, secret).await.unwrap();
    // However many at once.
    for _ in 0..16 {
        let wrong = (0..4).map(|n| rig.client.put_blob(&rig.tenant, &digest, vec![n; 7].into()));
        for sent in futures::future::join_all(wrong).await {
            assert_eq!(refused(sent).code, Code::ArtifactMissing);
        }
        assert!(!rig.client.has_blob(&rig.tenant, &digest).await.unwrap(), "it says what others have");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_uploads_of_one_tenant_wait_for_none_of_another() {
    let mut rig = Rig::new().await;
    rig.client.put_tenant(&name("other"), &rig.settings(), Require::Absent).await.unwrap();
    // Its artifacts stand for as many as take for ever to count.
    let gate = Gate::new(&rig.store, Way::Writes, keys::artifacts_of(&rig.tenant));
    rig.restart_over(gate.clone(), Nodes::default()).await;
    gate.open.send_replace(false);
    let mut greedy = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (client, tenant, bytes) = (rig.client.clone(), rig.tenant.clone(), bytes::Bytes::from(vec![n; 300]));
        greedy.spawn(async move { client.put_blob(&tenant, &Digest::of(&bytes), bytes.clone()).await });
    }
    gate.more_than(0).await;
    let (other, digest) = (name("other"), Digest::of(b"ours"));
    let ours = rig.client.put_blob(&other, &digest, b"ours".as_slice().into());
    tokio::time::timeout(PATIENCE, ours).await.expect("it waits for another tenant").unwrap();
    assert_eq!(gate.together.load(SeqCst), 1, "of one tenant two are never counted without each other");
    gate.open.send_replace(true);
    for sent in greedy.join_all().await {
        sent.unwrap();
    }
    rig.shutdown().await;
}

/// A deployer of another tenant.
async fn another(rig: &Rig) -> ControlClient {
    let other = name("other");
    rig.client.put_tenant(&other, &rig.settings(), Require::Absent).await.unwrap();
    let request = TokenRequest { role: Role::Deployer, label: "test".into(), expires_in: None };
    ControlClient::new(rig.addr, &rig.client.create_token(&other, &request).await.unwrap().token)
}

/// A change.
async fn set(client: &ControlClient, tenant: &TenantName) -> Result<api::control::ConfigSet, api::client::ClientError> {
    let request = api::control::ConfigRequest { values: [("n".to_owned(), "1".to_owned())].into() };
    client.put_config(tenant, &name("mine"), &request, Require::Any).await
}

#[derive(Debug)]
struct Pressed {
    granted: usize,
    seconds: usize,
}

/// Asks again and again, several at once, until fifty were refused, and looks that no more was granted than a rate of so
/// many a second, and at once, does: the longer it took, the more.
async fn pressed((rate, burst): (usize, usize), one: impl AsyncFn() -> bool) -> Pressed {
    let (began, mut granted, mut limited) = (Instant::now(), 0, 0);
    while limited < 50 {
        let answers = futures::future::join_all((0..16).map(|_| one())).await;
        let good = answers.iter().filter(|good| **good).count();
        (granted, limited) = (granted + good, limited + answers.len() - good);
        assert!(began.elapsed() < 2 * PATIENCE, "{granted} and nobody is told to wait");
    }
    let seconds = began.elapsed().as_secs_f64().ceil() as usize;
    assert!((burst..=burst + 1 + rate * seconds).contains(&granted), "{granted} in {seconds} s");
    Pressed { granted, seconds }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployer_cannot_fill_the_audit_log_with_changes() {
    let rig = Rig::new().await;
    let deployer = ControlClient::new(rig.addr, &made(&rig, Role::Deployer, None).await.token);
    let none = name("none");
    let seen = pressed((20, 400), async || {
        let refusal = refused(deployer.delete_secret(&rig.tenant, &none, false, Require::Any).await);
        assert!([Code::NotFound, Code::RateLimited].contains(&refusal.code), "{refusal:?}");
        refusal.code == Code::NotFound
    });
    let seen = seen.await;
    let all = rig.client.audit(None, 10_000).await.unwrap();
    let lines = all.iter().filter(|line| line.what.contains("/secrets/none")).count();
    // What is refused is written down as what a viewer is refused.
    assert!(lines <= 2 * seen.granted + 101 + seen.seconds, "{lines} lines: {seen:?}");
    // The operator changes what it likes, and others what they may.
    let other = another(&rig).await;
    set(&other, &name("other")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_tenant_are_bounded_and_give_their_places_back() {
    let rig = Rig::new().await;
    let viewer = ControlClient::new(rig.addr, &made(&rig, Role::Viewer, None).await.token);
    let mut open = Vec::new();
    let refusal = loop {
        match viewer.events(EventQuery::default()).await {
            Ok(stream) => open.push(stream),
            Err(cause) => break refused(Err::<(), _>(cause)),
        }
        assert!(open.len() <= 64);
    };
    assert_eq!((refusal.code, open.len()), (Code::Busy, 64));
    rig.client.events(EventQuery::default()).await.unwrap();
    drop(open);
    let again = async {
        while viewer.events(EventQuery::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("a stream that ended gives its place back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_do_not_come_hold_up_their_own_tenant_only() {
    let rig = Rig::new().await;
    let greedy = made(&rig, Role::Deployer, None).await.token;
    // Each says that it sends as much as it may, and does not.
    let mut held = Vec::new();
    for _ in 0..40 {
        let mut stream = tokio::net::TcpStream::connect(rig.addr).await.unwrap();
        let head = format!(
            "POST /v1/tenants/{}/apps/a/plan HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {greedy}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{{",
            rig.tenant,
            rig.addr,
            api::control::MAX_JSON
        );
        tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
        held.push(stream);
    }
    let (other, whose) = (another(&rig).await, name("other"));
    // Those bodies are given up after 10 s: others would wait for so long.
    tokio::time::timeout(Duration::from_secs(9), set(&other, &whose)).await.expect("others wait for nothing").unwrap();
}

/// Reads over and over, more at once than may wait, until told to stop: how many were answered, and how many refused.
struct Greedy {
    reading: JoinSet<(usize, usize)>,
    stop: Arc<AtomicBool>,
}

impl Greedy {
    fn start(rig: &Rig, client: &ControlClient) -> Self {
        let (mut reading, stop) = (JoinSet::new(), Arc::new(AtomicBool::new(false)));
        for _ in 0..40 {
            let (client, tenant, stop) = (client.clone(), rig.tenant.clone(), stop.clone());
            reading.spawn(async move {
                let (mut answered, mut limited) = (0, 0);
                while !stop.load(SeqCst) {
                    match client.apps(&tenant).await {
                        Ok(_) => answered += 1,
                        Err(cause) => {
                            assert_eq!(refused(Err::<(), _>(cause)).code, Code::RateLimited);
                            limited += 1;
                        }
                    }
                }
                (answered, limited)
            });
        }
        Self { reading, stop }
    }

    async fn stop(self) -> (usize, usize) {
        self.stop.store(true, SeqCst);
        let counts = self.reading.join_all().await;
        counts.into_iter().fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_tenant_reads_is_bounded_too() {
    let rig = Rig::new().await;
    let viewer = ControlClient::new(rig.addr, &made(&rig, Role::Viewer, None).await.token);
    let greedy = Greedy::start(&rig, &viewer);
    let limited = async {
        // Those that wait for their turn are answered, also where others are refused.
        while viewer.apps(&rig.tenant).await.is_ok() {}
    };
    tokio::time::timeout(PATIENCE, limited).await.expect("nobody is refused");
    rig.client.apps(&rig.tenant).await.unwrap();
    another(&rig).await.apps(&name("other")).await.unwrap();
    let (answered, refused) = greedy.stop().await;
    assert!(answered >= 900 && refused > 0, "{answered} answered, {refused} refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_without_a_pause_leaves_turns_to_other_tokens_of_its_tenant() {
    let rig = Rig::new().await;
    let viewer = ControlClient::new(rig.addr, &made(&rig, Role::Viewer, None).await.token);
    let other = ControlClient::new(rig.addr, &made(&rig, Role::Deployer, None).await.token);
    let greedy = Greedy::start(&rig, &viewer);
    let limited = async { while viewer.apps(&rig.tenant).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, limited).await.expect("nobody is refused");
    for _ in 0..3 {
        other.apps(&rig.tenant).await.expect("its turn comes, and it is not refused");
    }
    assert!(greedy.stop().await.1 > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks_at_artifacts_take_turns_by_tenant() {
    let rig = Rig::new().await;
    let greedy = Arc::new(ControlClient::new(rig.addr, &made(&rig, Role::Deployer, None).await.token));
    let (other, whose) = (another(&rig).await, name("other"));
    let large = bytes::Bytes::from(vec![7; 32 << 20]);
    let digest = Digest::of(&large);
    rig.client.put_blob(&rig.tenant, &digest, large).await.unwrap();
    let small = Digest::of(b"small");
    other.put_blob(&whose, &small, b"small".as_slice().into()).await.unwrap();
    // In one line with them it would come after all that are asked by then. One try in which it comes before most of them
    // shows that it has turns of its own; in another one its way there may take longer than they do.
    let mut tries = Vec::new();
    while !tries.iter().any(|meanwhile| *meanwhile < 50) {
        assert!(tries.len() < 10, "so many of another tenant's looks came before: {tries:?}");
        let done = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut looks = JoinSet::new();
        for _ in 0..100 {
            let (greedy, tenant, done) = (greedy.clone(), rig.tenant.clone(), done.clone());
            looks.spawn(async move {
                assert!(greedy.has_blob(&tenant, &digest).await.unwrap());
                done.fetch_add(1, SeqCst);
            });
        }
        let begun = async {
            while done.load(SeqCst) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, begun).await.expect("nobody is answered");
        assert!(other.has_blob(&whose, &small).await.unwrap());
        tries.push(done.load(SeqCst));
        looks.join_all().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_from_one_address_are_bounded_and_give_their_places_back() {
    let rig = Rig::new().await;
    let ended = async |stream: &mut tokio::net::TcpStream| {
        let read = tokio::io::AsyncReadExt::read_u8(stream);
        tokio::time::timeout(PATIENCE, read).await.is_ok_and(|read| read.is_err())
    };
    let mut open = Vec::new();
    for _ in 0..511 {
        open.push(tokio::net::TcpStream::connect(rig.addr).await.unwrap());
    }
    // They are taken in their order: once one more has no place, all those before it have theirs.
    let mut more = Vec::new();
    for _ in 0..3 {
        more.push(tokio::net::TcpStream::connect(rig.addr).await.unwrap());
    }
    assert!(ended(&mut more[2]).await, "the last one is closed");
    drop((open, more));
    let again = async {
        while rig.client.version().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("places are free again");
}
