//! What the control plane refuses of an app that a client says is fine: each case changes one thing in an app that is.

use std::collections::BTreeMap;

use model::app::Reuse;
use model::component::ComponentInfo;
use model::name::AppName;
use model::rules::Code;
use model::tenant::TenantSettings;
use model::unit::{ByteSize, Millis};
use model::{Digest, LockedApp, ProviderKind, ProviderSpec, Route, TenantName, World, admission};

use crate::{facts, good};

struct Case {
    app: LockedApp,
    infos: BTreeMap<Digest, ComponentInfo>,
    tenant: TenantSettings,
    others: Vec<(TenantName, AppName, Route)>,
}

impl Case {
    fn new() -> Self {
        let (_, text, _) = good::manifests().into_iter().find(|(name, ..)| name == "counter").unwrap();
        let facts = facts::read(None);
        let app = good::locked(&text, &facts).app;
        let infos = app.components.values().map(|c| {
            let info =
                ComponentInfo { world: c.world, imports: c.imports.clone(), exports: c.exports.clone(), claims: None };
            (c.digest, info)
        });
        Self { infos: infos.collect(), app, tenant: facts.tenant, others: Vec::new() }
    }

    fn codes(&self) -> Vec<Code> {
        let found = admission::check(&self.app, &self.infos, &"local".parse().unwrap(), &self.tenant, &self.others);
        found.iter().map(|v| v.code).collect()
    }

    fn taken(&mut self, tenant: &str, host: &str, path: &str, methods: &[&str]) {
        let route = Route {
            host: host.to_owned(),
            path: path.to_owned(),
            methods: methods.iter().map(|m| (*m).to_owned()).collect(),
            component: "other".parse().unwrap(),
        };
        self.others.push((tenant.parse().unwrap(), "other".parse().unwrap(), route));
    }
}

macro_rules! counter {
    ($case:ident) => {
        $case.app.components.values_mut().next().unwrap()
    };
}

/// Changes one thing, and expects exactly these refusals.
fn refused(change: impl FnOnce(&mut Case), expected: &[Code]) {
    let mut case = Case::new();
    change(&mut case);
    assert_eq!(case.codes(), expected);
}

#[test]
fn an_app_that_is_right_is_admitted() {
    refused(|_| {}, &[]);
}

#[test]
fn an_artifact_is_what_its_bytes_say() {
    refused(|c| c.infos.clear(), &[Code::ArtifactUnknown]);
    refused(|c| counter!(c).world = World::P3, &[Code::ArtifactMismatch]);
    refused(|c| counter!(c).imports.clear(), &[Code::ArtifactMismatch]);
    refused(|c| counter!(c).exports.clear(), &[Code::ArtifactMismatch]);
    refused(|c| counter!(c).size = u64::MAX, &[Code::ArtifactTooLarge]);
}

#[test]
fn an_import_is_offered_and_linked() {
    let import = |c: &mut Case, id: &str| {
        let id: model::InterfaceId = id.parse().unwrap();
        counter!(c).imports.push(id.clone());
        c.infos.values_mut().next().unwrap().imports.push(id);
    };
    refused(|c| c.app.links.clear(), &[Code::ImportNotLinked]);
    refused(|c| import(c, "wasi:keyvalue/watch@0.2.0-draft"), &[Code::ImportNotOffered]);
    refused(|c| import(c, "wasi:http/types@1.0.0"), &[Code::ImportVersion]);
    refused(|c| import(c, "wasi:http/types"), &[Code::ImportVersion]);
    refused(|c| import(c, "wasi:http/types@0.2.0"), &[]);
    refused(|c| import(c, "wasi:http/types@0.2.0-rc-2023-12-05"), &[Code::ImportVersion]);
}

#[test]
fn limits_are_within_bounds() {
    refused(|c| counter!(c).limits.memory = ByteSize::mib(4096), &[Code::LimitAboveCeiling]);
    refused(|c| counter!(c).limits.log_rate = ByteSize(u64::MAX), &[Code::LimitAboveCeiling]);
    refused(|c| counter!(c).limits.concurrency = 0, &[Code::LimitBelowFloor]);
    refused(|c| counter!(c).limits.stack = ByteSize::kib(64), &[Code::LimitFixed]);
    refused(|c| c.tenant.ceilings.cpu = Millis(100), &[Code::LimitAboveCeiling]);
    // What no component could run with is the ceiling's fault, also where a component says less still.
    refused(|c| c.tenant.ceilings.handles = 15, &[Code::LimitAboveCeiling]);
    refused(|c| (c.tenant.ceilings.handles, counter!(c).limits.handles) = (15, 1), &[Code::LimitAboveCeiling]);
    refused(|c| counter!(c).reuse = Some(Reuse { requests: 0, idle: Millis(1) }), &[Code::Reuse]);
    refused(|c| counter!(c).reuse = Some(Reuse { requests: u32::MAX, idle: Millis(0) }), &[Code::Reuse, Code::Reuse]);
}

#[test]
fn config_and_hosts_are_bounded() {
    refused(
        |c| counter!(c).config = (0..129).map(|i| (i.to_string(), String::new())).collect(),
        &[Code::ConfigTooLarge],
    );
    refused(|c| counter!(c).config = [("k".to_owned(), "v".repeat(8192))].into(), &[Code::ConfigTooLarge]);
    refused(|c| counter!(c).allow_hosts = vec!["*".to_owned()], &[Code::AllowHost]);
}

#[test]
fn a_provider_is_who_it_says() {
    let redis = |url: &str, operator| ProviderSpec {
        kind: ProviderKind::KeyvalueRedis,
        config: [("url".to_owned(), url.to_owned())].into(),
        secrets: [].into(),
        operator,
    };
    let declare = |c: &mut Case, name: &str, spec: &ProviderSpec| {
        c.app.providers.insert(name.parse().unwrap(), spec.clone());
        c.app.links[0].provider = name.parse().unwrap();
    };
    let own = redis("redis://127.0.0.1:1", false);
    let operators = redis("redis://127.0.0.1:1", true);
    refused(|c| declare(c, "cache", &own), &[]);
    // The grant of the operator's addresses cannot be claimed, nor taken along to other addresses.
    refused(|c| declare(c, "cache", &operators), &[Code::ProviderForged]);
    refused(
        |c| {
            declare(c, "cache", &operators);
            c.tenant.providers.insert("cache".parse().unwrap(), redis("redis://127.0.0.1:2", false));
        },
        &[Code::ProviderForged],
    );
    refused(
        |c| {
            declare(c, "cache", &operators);
            c.tenant.providers.insert("cache".parse().unwrap(), own.clone());
        },
        &[],
    );
    refused(
        |c| {
            declare(c, "cache", &own);
            c.tenant.providers.insert("cache".parse().unwrap(), own.clone());
        },
        &[Code::ProviderName],
    );
    refused(|c| declare(c, "embedded", &own), &[Code::ProviderName]);
    refused(|c| declare(c, "cache", &redis("redis://:pw@127.0.0.1", false)), &[Code::ProviderSecret]);
    refused(|c| c.app.providers.clear(), &[Code::UnknownProvider]);
}

#[test]
fn a_link_is_of_this_app() {
    refused(|c| c.app.links[0].component = "other".parse().unwrap(), &[Code::LinkComponent, Code::ImportNotLinked]);
    refused(|c| c.app.links.push(c.app.links[0].clone()), &[Code::LinkDuplicate]);
    refused(|c| c.app.links[0].contract = "wasi:http".parse().unwrap(), &[Code::LinkNotOffered, Code::ImportNotLinked]);
    refused(
        |c| {
            c.app.links[0].config.insert("ttl".to_owned(), "1".to_owned());
        },
        &[Code::LinkSetting],
    );
}

#[test]
fn routes_are_plain_and_lead_somewhere() {
    refused(|c| c.app.routes[0].host = "*".to_owned(), &[Code::RouteHost]);
    refused(|c| c.app.routes[0].path = "/../x".to_owned(), &[Code::RoutePath]);
    refused(|c| c.app.routes[0].methods = vec!["get".to_owned()], &[Code::RouteMethod]);
    refused(|c| c.app.routes[0].component = "other".parse().unwrap(), &[Code::RouteComponent]);
    refused(|c| c.app.routes.push(c.app.routes[0].clone()), &[Code::RouteCollision]);
}

#[test]
fn routes_of_other_apps_are_kept_apart() {
    // The app has counter.localhost/, all methods.
    for (tenant, host, path, methods, expected) in [
        ("local", "counter.localhost", "/", vec![], Some(Code::RouteCollision)),
        ("local", "counter.localhost", "/", vec!["GET"], Some(Code::RouteCollision)),
        ("local", "counter.localhost", "/deep", vec![], None),
        ("local", "*.localhost", "/", vec![], None),
        ("else", "other.localhost", "/", vec![], None),
        ("else", "counter.localhost", "/", vec![], Some(Code::RouteHostTaken)),
        ("else", "counter.localhost", "/deep", vec![], Some(Code::RouteHostTaken)),
        ("else", "*.localhost", "/", vec![], Some(Code::RouteHostTaken)),
    ] {
        refused(|c| c.taken(tenant, host, path, &methods), expected.as_slice());
    }
}

#[test]
fn another_tenant_is_not_named() {
    let mut case = Case::new();
    case.taken("secretive", "counter.localhost", "/hidden", &[]);
    let found = admission::check(&case.app, &case.infos, &"local".parse().unwrap(), &case.tenant, &case.others);
    let text = format!("{found:?}");
    assert!(found.len() == 1 && !text.contains("secretive") && !text.contains("hidden"), "{text}");
}

#[test]
fn an_app_has_components() {
    let mut case = Case::new();
    case.app.components.clear();
    assert!(case.codes().contains(&Code::NoComponents));
}
