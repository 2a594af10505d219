//! Secrets through the API: they go in and never come back, apps need those they name, tenants see only their own.

use api::Code;
use api::client::{EventQuery, Require};
use api::control::event;
use model::{ProviderKind, ProviderSpec, SecretName, SecretRef, SecretValue, TenantName};

use crate::rig::{Rig, collect, locked, name, refused};

const CANARY: &str = "canary-2c9a75d1";

fn value(text: &str) -> SecretValue {
    SecretValue::new(text.as_bytes().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_go_in_by_compare_and_set_and_are_listed_without_values() {
    let rig = Rig::new().await;
    let (client, tenant, db): (_, _, SecretName) = (&rig.client, &rig.tenant, name("db"));
    assert_eq!(client.secrets(tenant).await.unwrap(), []);
    let first = client.put_secret(tenant, &db, value(CANARY), Require::Absent).await.unwrap();
    assert_eq!((first.name.as_str(), first.version, first.used_by.len()), ("db", 1, 0));
    let conflict = |result| assert_eq!(refused(result).code, Code::Conflict);
    conflict(client.put_secret(tenant, &db, value("x"), Require::Absent).await);
    conflict(client.put_secret(tenant, &name("other"), value("x"), Require::Exists).await);
    let second = client.put_secret(tenant, &db, value("x"), Require::At(first.etag)).await.unwrap();
    conflict(client.put_secret(tenant, &db, value("y"), Require::At(first.etag)).await);
    assert_eq!(second.version, 2);
    assert_eq!(client.secrets(tenant).await.unwrap(), vec![second.clone()]);
    assert_eq!(refused(client.delete_secret(tenant, &db, false, Require::At(first.etag)).await).code, Code::Conflict);
    client.delete_secret(tenant, &db, false, Require::At(second.etag)).await.unwrap();
    assert_eq!(refused(client.delete_secret(tenant, &db, false, Require::Any).await).code, Code::NotFound);

    let empty = refused(client.put_secret(tenant, &db, value(""), Require::Any).await);
    assert_eq!(empty.code, Code::RequestInvalid);
    let large = "x".repeat(model::secret::MAX_SECRET + 1);
    assert_eq!(refused(client.put_secret(tenant, &db, value(&large), Require::Any).await).code, Code::TooLarge);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_does_not_know_of_anothers_secrets() {
    let rig = Rig::new().await;
    let (client, other, db): (_, TenantName, SecretName) = (&rig.client, name("other"), name("db"));
    client.put_tenant(&other, &rig.settings(), Require::Absent).await.unwrap();
    client.put_secret(&rig.tenant, &db, value("x"), Require::Any).await.unwrap();
    assert_eq!(client.secrets(&other).await.unwrap(), []);
    assert_eq!(refused(client.delete_secret(&other, &db, true, Require::Any).await).code, Code::NotFound);
    let nobody: TenantName = name("nobody");
    assert_eq!(refused(client.secrets(&nobody).await).code, Code::NotFound);
    assert_eq!(refused(client.put_secret(&nobody, &db, value("x"), Require::Any).await).code, Code::NotFound);
    assert_eq!(client.secrets(&rig.tenant).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_needs_the_secrets_it_names_and_holds_them() {
    let rig = Rig::new().await;
    let (client, tenant, db): (_, _, SecretName) = (&rig.client, &rig.tenant, name("cache-password"));
    let mut app = locked("shop", &rig.artifact(1).await);
    let cache = ProviderSpec {
        config: [("url".to_owned(), "redis://cache.example".to_owned())].into(),
        secrets: [("password".to_owned(), SecretRef::new(db.clone()))].into(),
        ..ProviderSpec::new(ProviderKind::KeyvalueRedis)
    };
    app.providers = [(name("cache"), cache)].into();
    app.links[0].provider = name("cache");
    let request = api::control::DeployRequest { app, message: None };
    let shop = name("shop");
    let problem = refused(client.deploy(tenant, &shop, &request, Require::Any, None).await);
    assert_eq!(problem.code, Code::SecretMissing);
    assert!(problem.detail.contains("`password` of provider `cache` is the secret `cache-password`"), "{problem:?}");
    assert!(problem.help.unwrap().contains("sidereal secret set cache-password"));
    let plan = client.plan(tenant, &shop, &request).await.unwrap();
    assert!(plan.problems[0].contains("cache-password"), "{:?}", plan.problems);

    client.put_secret(tenant, &db, value(CANARY), Require::Any).await.unwrap();
    client.deploy(tenant, &shop, &request, Require::Any, None).await.unwrap();
    let used = client.secrets(tenant).await.unwrap();
    assert_eq!(used[0].used_by, ["app `shop`, the `password` of provider `cache`"]);
    let kept = refused(client.delete_secret(tenant, &db, false, Require::Any).await);
    assert_eq!((kept.code, kept.findings.len()), (Code::Conflict, 1));
    client.delete_secret(tenant, &db, true, Require::Any).await.unwrap();
    assert_eq!(client.secrets(tenant).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_providers_hold_secrets_too() {
    let rig = Rig::new().await;
    let (client, tenant, db): (_, _, SecretName) = (&rig.client, &rig.tenant, name("db"));
    client.put_secret(tenant, &db, value("x"), Require::Any).await.unwrap();
    let mut settings = rig.settings();
    let spec = |secrets: &[(&str, &str)]| ProviderSpec {
        config: [("url".to_owned(), "redis://cache.example".to_owned())].into(),
        secrets: secrets.iter().map(|(key, secret)| ((*key).to_owned(), SecretRef::new(name(secret)))).collect(),
        ..ProviderSpec::new(ProviderKind::KeyvalueRedis)
    };
    settings.providers.insert(name("cache"), spec(&[("pass", "db")]));
    let refusal = refused(client.put_tenant(tenant, &settings, Require::Exists).await);
    assert!(refusal.findings[0].contains("`pass`"), "{refusal:?}");
    settings.providers.insert(name("cache"), spec(&[("password", "db")]));
    client.put_tenant(tenant, &settings, Require::Exists).await.unwrap();
    let kept = refused(client.delete_secret(tenant, &db, false, Require::Any).await);
    assert!(kept.detail.contains("operator's provider `cache`"), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_say_that_and_not_what() {
    let rig = Rig::new().await;
    let query = EventQuery { tenant: Some(rig.tenant.clone()), ..EventQuery::default() };
    let mut events = rig.client.events(query).await.unwrap();
    let db: SecretName = name("db");
    rig.client.put_secret(&rig.tenant, &db, value(CANARY), Require::Any).await.unwrap();
    rig.client.delete_secret(&rig.tenant, &db, false, Require::Any).await.unwrap();
    let rotated = rig.client.rotate_secrets_key().await.unwrap();
    assert_eq!(rotated.tenants, 1);
    let seen = collect(&mut events, |event| event.kind == event::SECRETS_KEY_ROTATED).await;
    assert!(!serde_json::to_string(&seen).unwrap().contains("canary"), "{seen:?}");
    for kind in [event::SECRET_SET, event::SECRET_DELETED] {
        assert!(seen.iter().any(|event| event.kind == kind), "{seen:?}");
    }
}
