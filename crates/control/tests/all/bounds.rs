//! What is judged while it changes: a request whose body takes its time, a stream whose token ends, and how much one
//! tenant can have of what all share.

use std::time::Duration;

use api::client::{ControlClient, EventQuery, Require};
use api::control::{AuditView, CallRequest, TokenMade, TokenRequest};
use api::node::LogQuery;
use api::problem::Code;
use futures::StreamExt as _;
use model::access::{Role, TokenId};
use model::tenant::TenantSettings;
use model::{Digest, ProviderKind, ProviderSpec};
use store::keys::{self, TokenRecord};
use store::{Expect, Store as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::{PATIENCE, Rig, collect, locked, name, refused};

async fn made(rig: &Rig, role: Role, expires_in: Option<u64>) -> TokenMade {
    let request = TokenRequest { role, label: "test".into(), expires_in };
    rig.client.create_token(&rig.tenant, &request).await.unwrap()
}

/// A request that was let in, and whose body is still to come.
struct Slow {
    stream: TcpStream,
    body: String,
}

impl Slow {
    async fn begin(rig: &Rig, line: &str, token: &TokenMade, body: String) -> Self {
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        let head = format!(
            "{line} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\nif-match: *\r\n\
             content-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            rig.addr,
            token.token,
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let who = format!("token {}", token.view.id);
        lines(rig, |all| all.iter().any(|l| l.who == who && l.what == line && l.outcome == "begun")).await;
        Self { stream, body }
    }

    async fn end(mut self) -> String {
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
    let (revoked, short) = (made(&rig, Role::Viewer, None).await, made(&rig, Role::Viewer, Some(2)).await);
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
    let tries = 300;
    for _ in 0..tries {
        assert_eq!(refused(viewer.audit(None, 1).await).code, Code::Forbidden);
    }
    let all = rig.client.audit(None, 10_000).await.unwrap();
    let written = all.iter().filter(|line| line.what == "GET /v1/audit").count();
    assert!((100..200).contains(&written), "{written} of {tries}");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_together_take_so_much_memory_and_no_more() {
    let rig = Rig::new().await;
    rig.deploy("a", 1).await;
    let large = CallRequest {
        component: None,
        method: "PUT".into(),
        path: "/".into(),
        headers: vec![],
        body: data_encoding::BASE64.encode(&vec![7; api::control::MAX_CALL_BODY - 100]),
    };
    // More at once than there is room for: whoever finds none in time is told so, and nothing of it stays taken.
    let app = name("a");
    let calls = (0..12).map(|_| rig.client.call(&rig.tenant, &app, &large));
    let answers = futures::future::join_all(calls).await;
    let busy = |answer: Result<api::control::CallResponse, _>| refused(answer).code == Code::Busy;
    assert!(answers.into_iter().filter(Result::is_err).all(busy));
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
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = sent.load(std::sync::atomic::Ordering::Relaxed);
        if now > 0 && now == before {
            break;
        }
        before = now;
    }
    let large = CallRequest {
        component: None,
        method: "PUT".into(),
        path: "/".into(),
        headers: vec![],
        body: data_encoding::BASE64.encode(&vec![7; api::control::MAX_CALL_BODY - 100]),
    };
    // It has no such app, which is found out when the whole of the call is there.
    let refusal = refused(rig.client.call(&other, &name("none"), &large).await);
    assert_eq!(refusal.code, Code::NotFound, "{refusal:?}");
    assert!(greedy.try_join_next().is_none(), "the others still wait");
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
