//! What people and programs send to the API: read, written, read again the same; and an app that is read goes through
//! admission without a word of its own being believed.

use std::collections::BTreeMap;

use api::control::{CallRequest, ConfigRequest, DeployRequest, LinkRequest, MoveRequest, RollbackRequest};
use model::component::ComponentInfo;
use model::tenant::TenantSettings;
use model::{LockedApp, admission};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let apps = [
        include_str!("../../../crates/model/tests/all/good/counter.json"),
        include_str!("../../../crates/model/tests/all/good/smallest.json"),
        include_str!("../../../crates/model/tests/all/good/shop.json"),
        include_str!("../../../crates/model/tests/all/good/nightly.json"),
        include_str!("../../../crates/model/tests/all/good/external.json"),
    ];
    let mut seeds: Vec<Vec<u8>> =
        apps.iter().map(|app| format!(r#"{{"app":{app},"message":"m"}}"#).into_bytes()).collect();
    seeds.extend(super::texts(&[
        r#"{"to":3}"#,
        r#"{"component":"main","contract":"wasi:keyvalue","label":"default","provider":"redis"}"#,
        r#"{"values":{"a":"b"}}"#,
        r#"{"method":"GET","path":"/","headers":[["a","b"]],"body":"AA=="}"#,
        r#"{"trust_anchors":["A"],"revoked":[],"allow_unsigned":true,"egress":["10.0.0.0/8"],"shards":2}"#,
    ]));
    seeds
}

pub(super) fn run(bytes: &[u8]) {
    if let Some(request) = again::<DeployRequest>(bytes) {
        app(&request.app);
    }
    if let Some(settings) = again::<TenantSettings>(bytes) {
        let (_, unreadable) = model::egress::Policy::of(&settings);
        assert!(unreadable.len() <= settings.egress.len());
    }
    again::<RollbackRequest>(bytes);
    again::<LinkRequest>(bytes);
    again::<MoveRequest>(bytes);
    again::<ConfigRequest>(bytes);
    again::<CallRequest>(bytes);
}

fn again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<T> {
    let value = serde_json::from_slice::<T>(bytes).ok()?;
    let written = serde_json::to_vec(&value).expect("what was read is written");
    assert_eq!(serde_json::from_slice::<T>(&written).ok().as_ref(), Some(&value), "it comes back as something else");
    Some(value)
}

fn app(app: &LockedApp) {
    let tenant = TenantSettings::default();
    let owner = "acme".parse().expect("a name");
    let check = |infos| admission::check(app, &infos, &owner, &tenant, &[]);
    // Nobody uploaded anything: no app with a component is admitted.
    assert!(app.components.is_empty() || !check(BTreeMap::new()).is_empty(), "admitted without artifacts");
    // The artifacts are what the app says, but for one import more: not admitted either.
    let info = |extra: bool| {
        let of = |c: &model::LockedComponent| {
            let more = extra.then(|| "acme:secret/door@9.9.9".parse().expect("an interface"));
            let imports = c.imports.iter().cloned().chain(more).collect();
            (c.digest, ComponentInfo { world: c.world, imports, exports: c.exports.clone(), claims: None })
        };
        app.components.values().map(of).collect::<BTreeMap<_, _>>()
    };
    assert!(app.components.is_empty() || !check(info(true)).is_empty(), "an import was hidden from admission");
    if check(info(false)).is_empty() {
        assert!(app.routes.iter().all(|route| app.components.contains_key(&route.component)), "a route to nowhere");
        assert!(app.links.iter().all(|link| app.components.contains_key(&link.component)), "a link of nobody");
        // Whoever has a route of it first, keeps it.
        let taken: Vec<_> =
            app.routes.iter().map(|r| ("rival".parse().expect("a name"), app.name.clone(), r.clone())).collect();
        let again = admission::check(app, &info(false), &owner, &tenant, &taken);
        assert_eq!(again.is_empty(), taken.is_empty(), "another tenant's host was taken");
        assert!(model::diff::diff(Some(app), app).is_empty());
    }
}
