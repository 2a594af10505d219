//! Tenants: settings that can be meant, compare-and-set, and what the tenant's apps link to and answer.

use api::client::Require;
use api::problem::Code;
use model::app::{ProviderKind, ProviderSpec};
use model::tenant::TenantSettings;
use serde_json::json;
use store::Store as _;

use crate::rig::{Rig, locked, name, refused};

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_compared_and_set() {
    let rig = Rig::without_node().await;
    let first = rig.client.tenant(&rig.tenant).await.unwrap();
    assert_eq!(first.settings, rig.settings());
    let settings = TenantSettings { shards: 3, ..rig.settings() };
    let put = |require| rig.client.put_tenant(&rig.tenant, &settings, require);
    assert_eq!(refused(put(Require::Absent).await).code, Code::Conflict);
    assert_eq!(refused(put(Require::At(first.etag + 1)).await).code, Code::Conflict);
    let second = put(Require::At(first.etag)).await.unwrap();
    assert_ne!(second.etag, first.etag);
    assert_eq!(refused(put(Require::At(first.etag)).await).code, Code::Conflict);
    assert_eq!(rig.client.tenant(&rig.tenant).await.unwrap(), second);
    put(Require::Exists).await.unwrap();
    let blind = refused(put(Require::Any).await);
    assert_eq!(blind.code, Code::RequestInvalid);
    assert!(blind.help.is_some_and(|help| help.contains("If-Match") && help.contains("If-None-Match")));
    let kept = rig.client.tenant(&rig.tenant).await.unwrap();
    assert_eq!(kept.settings, settings);
    let nobody = name("nobody");
    assert_eq!(refused(rig.client.put_tenant(&nobody, &settings, Require::Exists).await).code, Code::NotFound);
    assert_eq!(refused(rig.client.tenant(&nobody).await).code, Code::NotFound);
    rig.client.put_tenant(&nobody, &settings, Require::Absent).await.unwrap();
    let names: Vec<String> = rig.client.tenants().await.unwrap().into_iter().map(|t| t.name.to_string()).collect();
    assert_eq!(names, ["nobody", "t"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_meant_are_refused_all_at_once() {
    let rig = Rig::without_node().await;
    let module = model::claims::KeyPair::from_entropy(model::claims::KeyKind::Module, [1; 32]);
    let bad: TenantSettings = serde_json::from_value(json!({
        "trust_anchors": ["A123", module.public_key()],
        "revoked": ["", "sha256:12"],
        "egress": ["10.0.0.0/33", "10.0.0.1/8"],
        "shards": 0,
        // Above what a host has room for, below what a call needs, and what is the same for all.
        "ceilings": {"memory": 2_147_483_648_u64, "cpu": 1, "stack": 4096},
        "providers": {
            "memory": {"type": "keyvalue-memory"},
            "cache": {"type": "keyvalue-redis"},
            "other": {"type": "keyvalue-redis", "config": {"url": "http://x", "uri": "y"}},
        },
    }))
    .unwrap();
    let problem = refused(rig.client.put_tenant(&rig.tenant, &bad, Require::Exists).await);
    assert_eq!(problem.code, Code::RequestInvalid);
    assert_eq!(problem.findings.len(), 14, "{:#?}", problem.findings);
    assert_eq!(rig.client.tenant(&rig.tenant).await.unwrap().settings, rig.settings());
    let many = TenantSettings { shards: 65, ..rig.settings() };
    assert_eq!(refused(rig.client.put_tenant(&rig.tenant, &many, Require::Exists).await).findings.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_tenant_trusts_and_what_is_revoked_is_no_endless_list() {
    let rig = Rig::without_node().await;
    let account = |n: u8| model::claims::KeyPair::from_entropy(model::claims::KeyKind::Account, [n; 32]).public_key();
    let lists = |anchors: u8, revoked: usize| TenantSettings {
        trust_anchors: (0..anchors).map(account).collect(),
        revoked: (0..revoked).map(|n| n.to_string()).collect(),
        ..rig.settings()
    };
    let put =
        async |anchors, revoked| rig.client.put_tenant(&rig.tenant, &lists(anchors, revoked), Require::Exists).await;
    put(64, 1024).await.unwrap();
    for (anchors, revoked, said) in [(65, 0, "65 trust anchors"), (0, 1025, "1025 entries")] {
        let problem = refused(put(anchors, revoked).await);
        assert_eq!(problem.code, Code::RequestInvalid);
        assert!(matches!(&problem.findings[..], [one] if one.contains(said)), "{:#?}", problem.findings);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_ceiling_is_what_its_apps_may_ask_for() {
    let rig = Rig::without_node().await;
    let app = locked("counter", &rig.artifact(1).await);
    let set = |ceilings| {
        let settings = TenantSettings { ceilings, ..rig.settings() };
        let client = rig.client.clone();
        let tenant = rig.tenant.clone();
        async move { client.put_tenant(&tenant, &settings, Require::Exists).await }
    };
    let most = model::Limits::ceiling();
    let above = model::Limits { wall: model::unit::Millis(most.wall.0 + 1), ..most };
    let problem = refused(set(above).await);
    assert!(problem.findings.iter().any(|finding| finding.contains("the ceiling of wall")), "{problem:?}");
    let asked = app.components.values().next().unwrap().limits;
    set(model::Limits { handles: asked.handles - 1, ..most }).await.unwrap();
    let problem = refused(rig.put(&app).await);
    assert_eq!(problem.code, Code::LimitAboveCeiling, "{problem:?}");
    set(model::Limits { handles: asked.handles, ..most }).await.unwrap();
    rig.put(&app).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linked_provider_keeps_its_type_and_may_move() {
    let rig = Rig::new().await;
    let spec = |kind: &str, url: Option<&str>| {
        let config: serde_json::Map<_, _> = url.map(|url| ("url".to_owned(), url.into())).into_iter().collect();
        serde_json::from_value::<ProviderSpec>(json!({"type": kind, "config": config})).unwrap()
    };
    let put = |spec: Option<ProviderSpec>| {
        let mut settings = rig.settings();
        settings.providers.extend(spec.map(|spec| (name("cache"), spec)));
        let (client, tenant) = (rig.client.clone(), rig.tenant.clone());
        async move { client.put_tenant(&tenant, &settings, Require::Exists).await }
    };
    let redis = |url| spec("keyvalue-redis", Some(url));
    put(Some(spec("keyvalue-memory", None))).await.unwrap();
    put(Some(redis("redis://one.example"))).await.expect("nothing is linked to it yet");
    let mut app = locked("a", &rig.artifact(1).await);
    app.providers = [(name("cache"), ProviderSpec { operator: true, ..redis("redis://one.example") })].into();
    app.links[0].provider = name("cache");
    rig.put(&app).await.unwrap();
    put(Some(redis("redis://two.example"))).await.expect("its address may change");
    let before = rig.client.tenant(&rig.tenant).await.unwrap();
    let problem = refused(put(Some(spec("keyvalue-memory", None))).await);
    assert_eq!(problem.code, Code::RequestInvalid);
    assert!(problem.detail.contains("a/counter wasi:keyvalue default"), "{}", problem.detail);
    assert_eq!(rig.client.tenant(&rig.tenant).await.unwrap(), before);
    // Nor on a detour; and an unrelated change is not held up by what is missing.
    put(None).await.unwrap();
    assert_eq!(refused(put(Some(spec("keyvalue-memory", None))).await).code, Code::RequestInvalid);
    put(None).await.unwrap();
    rig.client.delete_app(&rig.tenant, &name("a"), Require::Any).await.unwrap();
    put(Some(spec("keyvalue-memory", None))).await.expect("no link is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_follow_an_operators_provider_that_moves() {
    let mut rig = Rig::new().await;
    let put = |rig: &Rig, url: &str| {
        let mut settings = rig.settings();
        let spec = json!({"type": "keyvalue-redis", "config": {"url": url}});
        settings.providers.insert(name("cache"), serde_json::from_value(spec).unwrap());
        let (client, tenant) = (rig.client.clone(), rig.tenant.clone());
        async move { client.put_tenant(&tenant, &settings, Require::Exists).await.unwrap() }
    };
    put(&rig, "redis://one.example").await;
    let mut app = locked("a", &rig.artifact(1).await);
    let spec = json!({"type": "keyvalue-redis", "config": {"url": "redis://one.example"}, "operator": true});
    app.providers = [(name("cache"), serde_json::from_value::<ProviderSpec>(spec).unwrap())].into();
    app.links[0].provider = name("cache");
    rig.put(&app).await.unwrap();
    rig.deploy("other", 1).await;
    let url = |app: &api::control::AppView| {
        app.desired.app.providers[&name::<model::ProviderName>("cache")].config["url"].clone()
    };
    let now = || async { rig.client.app(&rig.tenant, &name("a")).await.unwrap() };

    // The address changes: the app has a revision with the new one, and nobody else has.
    put(&rig, "redis://two.example").await;
    let view = now().await;
    assert_eq!((view.desired.revision.0, url(&view).as_str()), (2, "redis://two.example"));
    assert_eq!(view.desired.origin, api::control::Origin::Provider);
    assert_eq!(rig.client.app(&rig.tenant, &name("other")).await.unwrap().desired.revision.0, 1);
    rig.assigned("a", |assigned| assigned.is_some_and(|a| a.revision.0 == 2)).await;

    // Going back is going back to the content, at the address of now; a link can still be moved, and back again.
    let link = |provider: &str| api::control::LinkRequest {
        component: None,
        contract: "wasi:keyvalue".parse().unwrap(),
        label: None,
        provider: name(provider),
    };
    let (client, tenant, id) = (rig.client.clone(), rig.tenant.clone(), name("a"));
    client.link(&tenant, &id, &link("memory"), Require::Any).await.unwrap();
    client.link(&tenant, &id, &link("cache"), Require::Any).await.unwrap();
    assert_eq!(url(&now().await), "redis://two.example");
    client.link(&tenant, &id, &link("memory"), Require::Any).await.unwrap();
    let to = api::control::RollbackRequest { to: Some(model::app::Revision(1)) };
    client.rollback(&tenant, &id, &to, Require::Any).await.unwrap();
    assert_eq!(url(&now().await), "redis://two.example");

    // What was locked before is refused, with a command that helps.
    let problem = refused(rig.put(&app).await);
    assert_eq!(problem.code, Code::ManifestInvalid);
    assert!(problem.help.as_deref().unwrap_or_default().contains("sidereal deploy"), "{problem:?}");

    // A change that a crash left half done is finished at the next start.
    let before = now().await.desired.revision.0;
    rig.shutdown().await;
    let key = store::keys::tenant(&tenant);
    let text = String::from_utf8(rig.store.get(&key).await.unwrap().unwrap().value.to_vec()).unwrap();
    let text = text.replace("two.example", "three.example");
    rig.store.put(&key, text.into_bytes().into(), store::Expect::Any, None).await.unwrap();
    rig.start(None).await;
    rig.assigned("a", |assigned| assigned.is_some_and(|a| a.revision.0 == before + 1)).await;
    let view = rig.client.app(&rig.tenant, &name("a")).await.unwrap();
    assert_eq!(url(&view), "redis://three.example");
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_and_routes_are_listed_with_who_uses_them() {
    let rig = Rig::new().await;
    let redis = |url: &str| ProviderSpec {
        kind: ProviderKind::KeyvalueRedis,
        config: [("url".to_owned(), url.to_owned())].into(),
        secrets: [].into(),
        operator: false,
    };
    let mut settings = rig.settings();
    settings.providers.insert(name("cache"), redis("redis://cache.example"));
    rig.client.put_tenant(&rig.tenant, &settings, Require::Exists).await.unwrap();
    rig.deploy("a", 1).await;
    let mut app = locked("b", &rig.artifact(2).await);
    app.providers = [(name("own"), redis("redis://own.example"))].into();
    app.links[0].provider = name("own");
    rig.put(&app).await.unwrap();
    let listed: Vec<String> = rig
        .client
        .providers(&rig.tenant)
        .await
        .unwrap()
        .into_iter()
        .map(|p| format!("{} {} {} {:?}", p.from, p.name, p.kind.as_str(), p.links))
        .collect();
    assert_eq!(
        listed,
        [
            r#"app b own keyvalue-redis ["b/counter wasi:keyvalue default"]"#,
            r#"built-in durable messaging-durable []"#,
            r#"built-in embedded keyvalue-embedded ["a/counter wasi:keyvalue default"]"#,
            r#"built-in folder blobstore-folder []"#,
            r#"built-in local messaging-local []"#,
            r#"built-in memory keyvalue-memory []"#,
            r#"built-in secrets secrets-embedded []"#,
            r#"built-in sqlite sql-sqlite []"#,
            r#"operator cache keyvalue-redis []"#,
        ]
    );
    rig.until(Some("0".into()), |e| e.kind == api::control::event::NODE_JOINED).await;
    let routes = rig.client.routes(&rig.tenant).await.unwrap();
    let urls: Vec<&String> = routes.iter().flat_map(|r| &r.urls).collect();
    assert_eq!(urls, ["http://a.localhost:8080/", "http://b.localhost:8080/"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_no_node_has_is_refused_with_those_there_are() {
    let rig = Rig::new().await;
    rig.until(Some("0".into()), |e| e.kind == api::control::event::NODE_JOINED).await;
    let mut app = locked("a", &rig.artifact(1).await);
    app.links[0].provider = name("mine");
    let mut with = |program: &str| {
        let settings = [("program", program), ("contract", "wasi:keyvalue")];
        let config = settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        app.providers = [(name("mine"), ProviderSpec { config, ..ProviderSpec::new(ProviderKind::External) })].into();
        app.clone()
    };
    let problem = refused(rig.put(&with("sqlit")).await);
    assert_eq!(problem.code, Code::ManifestInvalid);
    assert!(problem.detail.contains("`sqlit`"), "{problem:?}");
    assert!(problem.help.unwrap().contains("did you mean `sqlite`?"));
    rig.put(&with("sqlite")).await.unwrap();
}
