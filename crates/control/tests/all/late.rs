//! Changes that were let in and are made later: their bodies took long, or the turn did. Whoever may not make them any more by
//! then does not, whatever he was told to be when he came.

use std::collections::BTreeSet;

use api::client::Require;
use api::control::{ConfigRequest, DeployRequest, TokenMade};
use model::access::Role;
use model::tenant::TenantSettings;
use model::{Digest, SecretValue};
use store::keys::{self, TokenRecord};
use store::{Expect, Store as _};
use tokio::task::JoinSet;

use crate::bounds::{Slow, made};
use crate::gate::{Gate, Way};
use crate::rig::{Nodes, Rig, locked, name};
use crate::schedules::clock;

/// What a change asks for, by its method and its path in the document of the API.
struct Late {
    route: (&'static str, &'static str),
    path: String,
    body: String,
}

/// One of every change that a token of a tenant may make. Each of them would be made, were it in time.
async fn changes(rig: &Rig, token: &str) -> Vec<Late> {
    let late = |method, path: &'static str, names: &[(&str, &str)], body: String| {
        let filled = names.iter().fold(path.replace("{tenant}", rig.tenant.as_str()), |path, (name, value)| {
            path.replace(&format!("{{{name}}}"), value)
        });
        Late { route: (method, path), path: filled, body }
    };
    let none = String::new;
    let app = &[("app", "a")];
    let settings = TenantSettings { revoked: vec!["token-9".into()], ..rig.settings() };
    let deploy = DeployRequest { app: locked("a", &rig.artifact(3).await), message: None };
    let link = r#"{"contract":"wasi:keyvalue","provider":"memory"}"#;
    let sent = "an artifact that comes late";
    let digest = Digest::of(sent.as_bytes()).to_string();
    vec![
        late("PUT", "/v1/tenants/{tenant}", &[], serde_json::to_string(&settings).unwrap()),
        late("POST", "/v1/tenants/{tenant}/tokens", &[], r#"{"role":"owner"}"#.to_owned()),
        late("DELETE", "/v1/tenants/{tenant}/tokens/{token}", &[("token", token)], none()),
        late("PUT", "/v1/tenants/{tenant}/blobs/{digest}", &[("digest", &digest)], sent.to_owned()),
        late("DELETE", "/v1/tenants/{tenant}/apps/{app}", app, none()),
        late("POST", "/v1/tenants/{tenant}/apps/{app}/revisions", app, serde_json::to_string(&deploy).unwrap()),
        late("POST", "/v1/tenants/{tenant}/apps/{app}/rollback", app, "{}".to_owned()),
        late("POST", "/v1/tenants/{tenant}/apps/{app}/links", app, link.to_owned()),
        late("POST", "/v1/tenants/{tenant}/apps/{app}/copy", app, link.to_owned()),
        late("DELETE", "/v1/tenants/{tenant}/apps/{app}/copy", app, none()),
        late(
            "POST",
            "/v1/tenants/{tenant}/apps/{app}/schedules/{schedule}/run",
            &[("app", "clock"), ("schedule", "nightly")],
            none(),
        ),
        late("PUT", "/v1/tenants/{tenant}/secrets/{secret}", &[("secret", "s")], "value".to_owned()),
        late("DELETE", "/v1/tenants/{tenant}/secrets/{secret}", &[("secret", "s")], none()),
        late("PUT", "/v1/tenants/{tenant}/configs/{config}", &[("config", "c")], r#"{"values":{"n":"2"}}"#.to_owned()),
        late("DELETE", "/v1/tenants/{tenant}/configs/{config}", &[("config", "c")], none()),
    ]
}

/// What a change of the tenant's leaves in the store, and when each was written.
async fn kept(rig: &Rig) -> Vec<(String, u64)> {
    let mut kept = Vec::new();
    for kind in [
        keys::TENANTS,
        keys::TOKENS,
        keys::APPS,
        keys::REVISIONS,
        keys::ARTIFACTS,
        keys::SECRETS,
        keys::CONFIGS,
        keys::COPIES,
        keys::PURGES,
    ] {
        let listed = rig.store.list(kind).await.unwrap().entries;
        kept.extend(listed.into_iter().map(|entry| (entry.key, entry.revision)));
    }
    kept.retain(|(key, _)| !key.starts_with("configs/other/"));
    kept
}

/// Tokens that make the changes, in turn: of one token, so many may be under way and no more.
const TOKENS: usize = 3;
/// What is said of a body that was not waited for any longer.
const STALLED: &str = "the body stopped coming";

/// All changes are let in, then `end` says that they may not be made any more, then they go on.
async fn nothing_is_made_after(end: impl AsyncFn(&Rig, &TokenMade), status: &str, why: &str) {
    let mut tries = 0;
    while !is_nothing_made_after(&end, status, why).await {
        tries += 1;
        assert!(tries < 3, "the bodies never come in time");
    }
}

/// Whether all bodies came: where this machine stood still for longer than one is waited for, nothing was seen.
async fn is_nothing_made_after(end: &impl AsyncFn(&Rig, &TokenMade), status: &str, why: &str) -> bool {
    let mut rig = Rig::new().await;
    rig.client.put_tenant(&name("other"), &rig.settings(), Require::Absent).await.unwrap();
    rig.client.put_secret(&rig.tenant, &name("s"), SecretValue::new(b"x".to_vec()), Require::Absent).await.unwrap();
    let config = |n: &str| ConfigRequest { values: [("n".to_owned(), n.to_owned())].into() };
    rig.client.put_config(&rig.tenant, &name("c"), &config("1"), Require::Absent).await.unwrap();
    rig.deploy("a", 1).await;
    rig.deploy("a", 2).await;
    rig.put(&clock(&rig).await).await.unwrap();
    // The turn is held by a change of somebody else's for as long as the gate is shut.
    let gate = Gate::new(&rig.store, Way::Writes, "configs/other/".to_owned());
    rig.restart_over(gate.clone(), Nodes::default()).await;
    let victim = made(&rig, Role::Viewer, None).await;
    let mut tokens = Vec::new();
    for _ in 0..TOKENS {
        tokens.push(made(&rig, Role::Owner, None).await);
    }
    gate.open.send_replace(false);
    let holds = rig.client.clone();
    let holds = tokio::spawn(async move {
        holds.put_config(&name("other"), &name("x"), &config("1"), Require::Any).await.unwrap();
    });
    gate.more_than(0).await;

    let (mut late, mut routes) = (Vec::new(), BTreeSet::new());
    let changes = changes(&rig, &victim.view.id.to_string()).await;
    for (Late { route, path, body }, token) in changes.into_iter().zip(tokens.iter().cycle()) {
        let (method, template) = route;
        routes.insert((method.to_owned(), template.to_owned()));
        late.push((route, Slow::send(&rig, &format!("{method} {path}"), token, body).await));
    }
    assert_eq!(routes, routes_that_change(), "each of them is here");
    for (_, slow) in &late {
        slow.is_let_in(&rig).await;
    }
    for token in &tokens {
        end(&rig, token).await;
    }
    let before = kept(&rig).await;
    let mut answers = JoinSet::new();
    for (route, slow) in late {
        answers.spawn(async move { (route, slow.end().await) });
    }
    gate.open.send_replace(true);
    holds.await.unwrap();
    let answers = answers.join_all().await;
    if answers.iter().any(|(_, answer)| answer.contains(STALLED)) {
        rig.shutdown().await;
        return false;
    }
    for (route, answer) in answers {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(why), "{route:?}: {answer}");
    }
    assert_eq!(kept(&rig).await, before);
    rig.shutdown().await;
    true
}

/// Every route by which a token of a tenant changes something, as the document of the API has it.
fn routes_that_change() -> BTreeSet<(String, String)> {
    let document: serde_json::Value = serde_json::from_str(&control::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let named = paths.iter().filter(|(path, _)| path.contains("{tenant}"));
    let all =
        named.flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(|m| (m.to_uppercase(), path.clone())));
    all.filter(|(method, path)| {
        let reads = ["GET", "HEAD"].contains(&method.as_str()) || path.ends_with("/plan") || path.ends_with("/call");
        let operators = method == "DELETE" && path == "/v1/tenants/{tenant}";
        !reads && !operators
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_changed_with_a_token_that_was_revoked_meanwhile() {
    let revoke = async |rig: &Rig, token: &TokenMade| {
        let key = keys::token(&rig.tenant, &token.view.id);
        let entry = rig.store.get(&key).await.unwrap().unwrap();
        let mut record: TokenRecord = serde_json::from_slice(&entry.value).unwrap();
        record.revoked_ms = Some(1);
        rig.store.put(&key, serde_json::to_vec(&record).unwrap().into(), Expect::Any, None).await.unwrap();
    };
    nothing_is_made_after(revoke, "401", "revoked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_changed_in_a_tenant_that_was_suspended_meanwhile() {
    let suspend = async |rig: &Rig, _: &TokenMade| {
        let settings = TenantSettings { suspended: Some("unpaid".into()), ..rig.settings() };
        let value = serde_json::to_vec(&settings).unwrap().into();
        rig.store.put(&keys::tenant(&rig.tenant), value, Expect::Any, None).await.unwrap();
    };
    nothing_is_made_after(suspend, "503", "unpaid").await;
}
