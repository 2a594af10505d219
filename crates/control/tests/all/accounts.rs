//! Tenants that do not trust each other: what a token may do, what it finds of others (nothing), and what is written down.

use std::collections::BTreeMap;
use std::time::Duration;

use api::client::{ControlClient, EventQuery, Require};
use api::control::{DeployRequest, TokenRequest, event};
use api::problem::Code;
use model::access::Role;
use model::tenant::{Quotas, TenantSettings};
use model::{Digest, TenantName};

use crate::guard::{code, raw};
use crate::rig::{PATIENCE, Rig, TOKEN, collect, locked, name, now, refused};

async fn token(rig: &Rig, tenant: &str, role: Role) -> String {
    let request = TokenRequest { role, label: "test".into(), expires_in: None };
    rig.client.create_token(&name(tenant), &request).await.unwrap().token
}

async fn member(rig: &Rig, tenant: &str, role: Role) -> ControlClient {
    ControlClient::new(rig.addr, &token(rig, tenant, role).await)
}

/// Beside `t` a tenant `u`.
async fn two() -> Rig {
    let rig = Rig::new().await;
    rig.client.put_tenant(&name("u"), &rig.settings(), Require::Absent).await.unwrap();
    rig
}

/// Every route that names a tenant, with this name and others of no meaning.
fn routes(tenant: &str) -> Vec<(String, String)> {
    let document: serde_json::Value = serde_json::from_str(&control::openapi()).unwrap();
    let digest = Digest::of(b"x").to_string();
    let fill = |path: &str| {
        let names = BTreeMap::from([
            ("tenant", tenant),
            ("app", "x"),
            ("revision", "1"),
            ("digest", &digest),
            ("secret", "x"),
            ("config", "x"),
            ("schedule", "x"),
            ("token", "aaaaaaaaaaaaaaaa"),
        ]);
        names.iter().fold(path.to_owned(), |path, (name, value)| path.replace(&format!("{{{name}}}"), value))
    };
    let paths = document["paths"].as_object().unwrap();
    let named = paths.iter().filter(|(path, _)| path.contains("{tenant}"));
    named.flat_map(|(path, all)| all.as_object().unwrap().keys().map(move |m| (m.to_uppercase(), fill(path)))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tenant_is_answered_exactly_like_one_that_never_was() {
    let rig = two().await;
    rig.deploy("x", 1).await;
    let owner = token(&rig, "u", Role::Owner).await;
    let ask = async |method: &str, path: &str| {
        let headers = format!(
            "host: {}\r\nauthorization: Bearer {owner}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n",
            rig.addr
        );
        raw(rig.addr, &format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n{headers}\r\n{{}}")).await
    };
    let without_date = |head: &str| head.lines().filter(|l| !l.starts_with("date:")).collect::<Vec<_>>().join("\n");
    for ((method, theirs), (_, nobodys)) in routes("t").into_iter().zip(routes("v")) {
        let (real, none) = (ask(&method, &theirs).await, ask(&method, &nobodys).await);
        assert_eq!(real.0, 404, "{method} {theirs}: {}", real.2);
        assert_eq!((without_date(&real.1), &real.2), (without_date(&none.1), &none.2), "{method} {theirs}");
        assert!(method == "HEAD" || real.2.contains("there is no such tenant"), "{}", real.2);
    }
    // Names that are close, and names that are none.
    rig.client.put_tenant(&name("u-b"), &rig.settings(), Require::Absent).await.unwrap();
    for other in
        ["u-b", "U", "u%00", "%75-b", "u%2e", "..", "%2e%2e", "*", "%3E", "u.", "%C3%BC", "u%2Ft", &"u".repeat(300)]
    {
        let (status, _, body) = ask("GET", &format!("/v1/tenants/{other}/apps")).await;
        assert_eq!(status, 404, "{other}: {body}");
    }
    // The same name written differently is the same name.
    assert_eq!(ask("GET", "/v1/tenants/%75/apps").await.0, 200);
    assert_eq!(ask("GET", "/v1/events?tenant=t").await.0, 404);
    assert_eq!(ask("GET", "/v1/nodes").await.0, 403);
    let mine = ControlClient::new(rig.addr, &owner);
    let seen: Vec<TenantName> = mine.tenants().await.unwrap().into_iter().map(|t| t.name).collect();
    assert_eq!(seen, [name("u")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_may_do_what_it_says_and_no_more() {
    let rig = two().await;
    let (tenant, app) = (rig.tenant.clone(), name("x"));
    let bytes = rig.artifact(1).await;
    let request = DeployRequest { app: locked("x", &bytes), message: None };
    let viewer = member(&rig, "t", Role::Viewer).await;
    assert_eq!(refused(viewer.deploy(&tenant, &app, &request, Require::Any, None).await).code, Code::Forbidden);
    assert_eq!(refused(viewer.put_blob(&tenant, &Digest::of(b"y"), "y".into()).await).code, Code::Forbidden);
    let deployer = member(&rig, "t", Role::Deployer).await;
    assert_eq!(deployer.deploy(&tenant, &app, &request, Require::Any, None).await.unwrap().revision.0, 1);
    assert_eq!(viewer.app(&tenant, &app).await.unwrap().name, app);
    let more = TokenRequest { role: Role::Viewer, label: String::new(), expires_in: None };
    assert_eq!(refused(deployer.create_token(&tenant, &more).await).code, Code::Forbidden);
    assert_eq!(refused(deployer.audit(Some(&tenant), 10).await).code, Code::Forbidden);
    let owner = member(&rig, "t", Role::Owner).await;
    owner.create_token(&tenant, &more).await.unwrap();
    // Whom it trusts is an owner's to say; what it may have is not.
    let view = owner.tenant(&tenant).await.unwrap();
    let revoking = TenantSettings { revoked: vec!["token-9".into()], ..view.settings.clone() };
    let etag = owner.put_tenant(&tenant, &revoking, Require::At(view.etag)).await.unwrap().etag;
    for wider in [
        TenantSettings { egress: vec!["10.0.0.0/8".into()], ..revoking.clone() },
        TenantSettings { shards: 64, ..revoking.clone() },
        TenantSettings { hosts: vec!["*".into()], ..revoking.clone() },
        TenantSettings { allow_unsigned: true, ..revoking.clone() },
        TenantSettings { quotas: Quotas { apps: 9999, ..Quotas::default() }, ..revoking.clone() },
        TenantSettings { suspended: Some("x".into()), ..revoking.clone() },
    ] {
        let problem = refused(owner.put_tenant(&tenant, &wider, Require::At(etag)).await);
        assert_eq!(problem.code, Code::Forbidden, "{}", problem.detail);
    }
    assert_eq!(refused(owner.delete_tenant(&tenant, Require::Exists).await).code, Code::Forbidden);
    assert_eq!(refused(owner.rotate_secrets_key().await).code, Code::Forbidden);
    let who = owner.whoami().await.unwrap();
    assert_eq!((who.tenant, who.role), (Some(tenant), Some(Role::Owner)));
    assert_eq!(rig.client.whoami().await.unwrap().tenant, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_ended_or_is_none_opens_nothing() {
    let mut rig = two().await;
    let made = |expires_in| TokenRequest { role: Role::Owner, label: String::new(), expires_in };
    let good = rig.client.create_token(&rig.tenant, &made(None)).await.unwrap();
    let short = rig.client.create_token(&rig.tenant, &made(Some(1))).await.unwrap();
    let client = |token: &str| ControlClient::new(rig.addr, token);
    client(&good.token).apps(&rig.tenant).await.unwrap();
    let (secret, id) = (good.token.rsplit('.').next().unwrap(), good.view.id.to_string());
    let other = rig.client.create_token(&name("u"), &made(None)).await.unwrap();
    for bad in [
        secret.to_owned(),
        format!("{}x", good.token),
        good.token.replace("sidereal.t.", "sidereal.u."),
        good.token.replace(&id, &other.view.id.to_string()),
        good.token.to_uppercase(),
        format!("sidereal.t.{id}."),
        "x".repeat(5000),
    ] {
        assert_eq!(refused(client(&bad).version().await).code, Code::Unauthorized, "{bad}");
    }
    let ended = async |token: &str| {
        let done = async {
            loop {
                match client(token).version().await {
                    Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                    Err(error) => return error.problem(),
                }
            }
        };
        tokio::time::timeout(PATIENCE, done).await.unwrap()
    };
    let problem = ended(&short.token).await;
    assert!(problem.code == Code::Unauthorized && problem.detail.contains("expired"), "{problem:?}");
    let owner = client(&good.token);
    assert!(rig.client.revoke_token(&rig.tenant, &good.view.id).await.unwrap().revoked_ms.is_some());
    let problem = refused(owner.apps(&rig.tenant).await);
    assert!(problem.code == Code::Unauthorized && problem.detail.contains("revoked"), "{problem:?}");
    // For ever, and its record is kept; its secret is nowhere.
    let (tenant, token) = (rig.tenant.clone(), good.token.clone());
    rig.restart().await;
    assert_eq!(refused(ControlClient::new(rig.addr, &token).version().await).code, Code::Unauthorized);
    let kept = rig.client.tokens(&tenant).await.unwrap();
    let kept = kept.iter().find(|view| view.id == good.view.id).unwrap();
    assert!(kept.revoked_ms.is_some() && kept.last_used_ms.is_some());
    let secret = secret.as_bytes();
    for file in ["store.redb", "audit/00000000000000000001.jsonl"] {
        let bytes = std::fs::read(rig.dir.path().join(file)).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{file}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn artifacts_and_events_of_others_are_not_there() {
    let rig = two().await;
    let bytes = rig.artifact(1).await;
    let digest = Digest::of(&bytes);
    let (theirs, ours) = (member(&rig, "t", Role::Deployer).await, member(&rig, "u", Role::Deployer).await);
    let u: TenantName = name("u");
    assert!(theirs.has_blob(&rig.tenant, &digest).await.unwrap());
    assert!(!ours.has_blob(&u, &digest).await.unwrap());
    // Knowing the digest is not having the artifact, even where the signature would be trusted.
    let request = DeployRequest { app: locked("y", &bytes), message: None };
    let problem = refused(ours.deploy(&u, &name("y"), &request, Require::Any, None).await);
    assert_eq!(problem.code, Code::ArtifactMissing);
    let never = DeployRequest { app: locked("y", &crate::rig::component(77)), message: None };
    let unknown = refused(ours.deploy(&u, &name("y"), &never, Require::Any, None).await);
    let (a, b) = (digest.to_string(), Digest::of(&crate::rig::component(77)).to_string());
    assert_eq!(problem.detail.replace(&a, "D"), unknown.detail.replace(&b, "D"), "the same words for both");
    let plan = ours.plan(&u, &name("y"), &request).await.unwrap();
    assert_eq!(plan.problems.len(), 1, "{plan:?}");

    let mut events = ours.events(EventQuery::default()).await.unwrap();
    rig.deploy("x", 1).await;
    ours.put_blob(&u, &digest, bytes.clone()).await.unwrap();
    ours.deploy(&u, &name("y"), &request, Require::Any, None).await.unwrap();
    let seen = collect(&mut events, |event| event.kind == event::PHASE && event.data["phase"] == "serving").await;
    for event in seen {
        assert!(event.subject.as_deref().is_some_and(|s| s == "u" || s.starts_with("u/")), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_tenant_keeps_everything_and_serves_nothing() {
    let rig = two().await;
    rig.deploy("x", 1).await;
    rig.assigned("x", |assigned| assigned.is_some_and(|a| a.suspended.is_none())).await;
    let owner = member(&rig, "t", Role::Owner).await;
    let view = rig.client.tenant(&rig.tenant).await.unwrap();
    let why = Some("unpaid".to_owned());
    let suspended = TenantSettings { suspended: why, ..view.settings.clone() };
    let etag = rig.client.put_tenant(&rig.tenant, &suspended, Require::At(view.etag)).await.unwrap().etag;
    let assigned = rig.assigned("x", |assigned| assigned.is_some_and(|a| a.suspended.is_some())).await.unwrap();
    let reason = assigned.suspended.unwrap();
    assert!(reason.code == "suspended" && reason.message.contains("unpaid"), "{reason:?}");
    let problem = refused(owner.delete_app(&rig.tenant, &name("x"), Require::Any).await);
    assert!(problem.code == Code::Suspended && problem.detail.contains("unpaid"), "{problem:?}");
    assert_eq!(owner.apps(&rig.tenant).await.unwrap().len(), 1, "it may look");
    rig.client.put_tenant(&rig.tenant, &view.settings, Require::At(etag)).await.unwrap();
    rig.assigned("x", |assigned| assigned.is_some_and(|a| a.suspended.is_none())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_tenant_is_gone_with_all_it_has_and_its_name_too() {
    let mut rig = two().await;
    rig.deploy("x", 1).await;
    let token = token(&rig, "t", Role::Owner).await;
    let value = model::SecretValue::new(b"hidden".to_vec());
    rig.client.put_secret(&rig.tenant, &name("s"), value, Require::Any).await.unwrap();
    // What is left of a move of its data.
    let kept: &dyn store::Store = &*rig.store;
    kept.put("copies/t/x", "{}".into(), store::Expect::Any, None).await.unwrap();
    let problem = refused(rig.client.delete_tenant(&rig.tenant, Require::At(1)).await);
    assert_eq!(problem.code, Code::Conflict);
    assert!(rig.client.delete_tenant(&rig.tenant, Require::Exists).await.unwrap());
    assert_eq!(refused(ControlClient::new(rig.addr, &token).version().await).code, Code::Unauthorized);
    assert_eq!(refused(rig.client.apps(&rig.tenant).await).code, Code::NotFound);
    rig.assigned("x", |assigned| assigned.is_none()).await;
    // Not `conflict`, which means that trying again could help.
    let again = rig.client.put_tenant(&rig.tenant, &rig.settings(), Require::Absent).await;
    assert_eq!(refused(again).code, Code::RequestInvalid);
    let settings = rig.settings();
    let tenant = rig.tenant.clone();
    rig.restart().await;
    assert_eq!(refused(rig.client.put_tenant(&tenant, &settings, Require::Absent).await).code, Code::RequestInvalid);
    let store: &dyn store::Store = &*rig.store;
    for prefix in [
        "tenants/t",
        "tokens/t/",
        "secrets/t/",
        "secret-keys/t",
        "artifacts/t/",
        "purges/t/",
        "configs/t/",
        "copies/t/",
    ] {
        let left = store.list(prefix).await.unwrap().entries;
        assert!(
            left.iter()
                .all(|entry| entry.key != prefix
                    && !entry.key.starts_with(&format!("{}/", prefix.trim_end_matches('/')))),
            "{prefix}: {left:?}"
        );
    }
    rig.client.tenant(&name("u")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_and_every_refused_attempt_is_written_down() {
    let mut rig = two().await;
    let owner = member(&rig, "t", Role::Owner).await;
    let viewer = member(&rig, "t", Role::Viewer).await;
    let id = viewer.whoami().await.unwrap().token.unwrap();
    rig.deploy("x", 1).await;
    assert_eq!(refused(viewer.delete_app(&rig.tenant, &name("x"), Require::Any).await).code, Code::Forbidden);
    assert_eq!(refused(viewer.apps(&name("u")).await).code, Code::NotFound);
    let stranger = ControlClient::new(rig.addr, "another-token-of-32-characters-xx");
    assert_eq!(refused(stranger.apps(&rig.tenant).await).code, Code::Unauthorized);
    let value = model::SecretValue::new(b"canary-value".to_vec());
    owner.put_secret(&rig.tenant, &name("s"), value, Require::Any).await.unwrap();

    let all = rig.client.audit(None, 1000).await.unwrap();
    let find = |who: &str, what: &str, outcome: &str| {
        let found = all.iter().find(|l| l.who == who && l.what == what && l.outcome == outcome);
        found.unwrap_or_else(|| panic!("no {who} {what} {outcome} in {all:#?}")).clone()
    };
    let begun = find("operator", "POST /v1/tenants/t/apps/x/revisions", "begun");
    let done = find("operator", "POST /v1/tenants/t/apps/x/revisions", "done");
    assert_eq!((done.begun, done.status), (begun.number, Some(201)));
    assert!(done.from.starts_with("127.0.0.1:") && done.time_ms / 1000 + 60 > now());
    let viewer_name = format!("token {id}");
    assert_eq!(find(&viewer_name, "DELETE /v1/tenants/t/apps/x", "refused").code.as_deref(), Some("forbidden"));
    assert_eq!(find(&viewer_name, "GET /v1/tenants/u/apps", "refused").tenant, Some(rig.tenant.clone()));
    assert_eq!(find("nobody", "GET /v1/tenants/t/apps", "refused").status, Some(401));
    // An owner reads what is about its tenant, and nothing else.
    let own = owner.audit(Some(&rig.tenant), 1000).await.unwrap();
    assert!(own.iter().all(|line| line.tenant.as_ref() == Some(&rig.tenant) && line.number.is_none()), "{own:#?}");
    assert!(own.iter().any(|line| line.what == "PUT /v1/tenants/t/secrets/s"));
    assert_eq!(refused(owner.audit(None, 10).await).code, Code::Forbidden);

    assert_eq!(rig.client.verify_audit().await.unwrap().problems, [""; 0]);
    rig.restart().await;
    assert_eq!(rig.client.verify_audit().await.unwrap().problems, [""; 0]);
    let file = rig.dir.path().join("audit/00000000000000000001.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("canary-value") && !text.contains(TOKEN));
    std::fs::write(&file, text.replacen("\"refused\"", "\"done\"", 1)).unwrap();
    let problems = rig.client.verify_audit().await.unwrap().problems;
    assert!(problems.iter().any(|p| p.contains("was changed")), "{problems:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_forms_and_doubled_headers_get_nowhere_with_a_good_token() {
    let rig = two().await;
    let token = token(&rig, "t", Role::Owner).await;
    let port = rig.addr.port();
    let auth = format!("authorization: Bearer {token}\r\n");
    let host = format!("host: localhost:{port}\r\n");
    let line = "POST /v1/tenants/t/tokens";
    let body = r#"{"role":"owner"}"#;
    let json = "content-type: application/json\r\n";
    for (headers, expected) in [
        (format!("{host}{auth}{json}origin: http://evil.example\r\n"), (403, Code::Forbidden)),
        (format!("{host}{auth}{json}origin: null\r\n"), (403, Code::Forbidden)),
        (format!("host: evil.example:{port}\r\n{auth}{json}"), (403, Code::Forbidden)),
        (format!("{host}{host}{auth}{json}"), (403, Code::Forbidden)),
        (format!("{host}{auth}content-type: text/plain\r\n"), (415, Code::RequestInvalid)),
        (format!("{host}{auth}content-type: application/x-www-form-urlencoded\r\n"), (415, Code::RequestInvalid)),
        (format!("{host}{auth}content-type: multipart/form-data\r\n"), (415, Code::RequestInvalid)),
        (format!("{host}{auth}{auth}{json}"), (401, Code::Unauthorized)),
        (format!("{host}cookie: token={token}\r\n{json}"), (401, Code::Unauthorized)),
        (format!("{host}x-forwarded-for: 127.0.0.1\r\nx-tenant: u\r\n{json}"), (401, Code::Unauthorized)),
    ] {
        assert_eq!(code(rig.addr, line, &headers, body).await, expected, "{headers}");
    }
    let large = format!(r#"{{"role":"owner","label":"{}"}}"#, "x".repeat(api::control::MAX_JSON));
    assert_eq!(code(rig.addr, line, &format!("{host}{auth}{json}"), &large).await, (413, Code::TooLarge));
    assert_eq!(
        code(rig.addr, line, &format!("{host}{auth}{json}"), r#"{"role":"god"}"#).await,
        (400, Code::RequestInvalid)
    );
    let query = format!("GET /v1/tenants/t/apps?token={token}");
    assert_eq!(code(rig.addr, &query, &host, "").await, (401, Code::Unauthorized));
}
