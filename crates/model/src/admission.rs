//! What the control plane asks of an app before it becomes a revision. It trusts nothing of what was sent: imports,
//! exports and world are read again from the artifacts, and every rule is applied again.

use std::collections::BTreeMap;

use crate::app::{LockedApp, LockedComponent, Route};
use crate::component::ComponentInfo;
use crate::digest::Digest;
use crate::manifest::Severity;
use crate::name::{AppName, ComponentName, TenantName};
use crate::rules::route::{collide, hosts_overlap};
use crate::rules::{self, Code, MAX_ARTIFACT, MAX_ROUTES, Unknown, Violation};
use crate::tenant::TenantSettings;

/// Everything that keeps `app` of tenant `owner` from being admitted; empty means it may run.
///
/// `infos` is what the control plane itself read from the artifacts, by digest. `routes` are those of all other apps of
/// all tenants: the app's own earlier revisions must not be among them.
pub fn check(
    app: &LockedApp,
    infos: &BTreeMap<Digest, ComponentInfo>,
    owner: &TenantName,
    tenant: &TenantSettings,
    routes: &[(TenantName, AppName, Route)],
) -> Vec<Violation> {
    let mut out = Vec::new();
    let mut unknown = Unknown::default();
    for (name, component) in &app.components {
        if let Err(violation) = artifact(name, component, infos) {
            // What it says of itself is not worth checking.
            unknown.artifacts.insert(name.clone());
            out.push(violation);
        }
    }
    let found = rules::check(app, &unknown, tenant);
    out.extend(found.into_iter().map(|f| f.violation).filter(|v| v.code.severity() == Severity::Error));
    for route in app.routes.iter().take(MAX_ROUTES) {
        out.extend(routes.iter().find_map(|(tenant, other, taken)| contested(route, owner, tenant, other, taken)));
    }
    out
}

fn artifact(
    name: &ComponentName,
    component: &LockedComponent,
    infos: &BTreeMap<Digest, ComponentInfo>,
) -> Result<(), Violation> {
    let Some(info) = infos.get(&component.digest) else {
        let message =
            format!("component `{name}` is artifact {}, which has not been uploaded", component.digest.short());
        return Err(Violation::new(Code::ArtifactUnknown, message).help("upload the artifact, then deploy again"));
    };
    if component.size > MAX_ARTIFACT {
        let message = format!("component `{name}` has {} bytes; at most {MAX_ARTIFACT}", component.size);
        return Err(Violation::new(Code::ArtifactTooLarge, message).help("build it for release"));
    }
    let what = if component.world != info.world {
        "another world"
    } else if component.imports != info.imports {
        "other imports"
    } else if component.exports != info.exports {
        "other exports"
    } else {
        return Ok(());
    };
    let message = format!("the app gives component `{name}` {what} than artifact {} has", component.digest.short());
    Err(Violation::new(Code::ArtifactMismatch, message).help("lock the app again from its manifest"))
}

/// A host belongs to the tenant that routes it first: by a longer path or a more exact name, another tenant could take
/// part of its requests. Inside a tenant only equal routes are in each other's way.
fn contested(
    route: &Route,
    owner: &TenantName,
    tenant: &TenantName,
    app: &AppName,
    taken: &Route,
) -> Option<Violation> {
    if tenant == owner {
        return collide(route, taken).then(|| {
            let message = format!("app `{app}` answers `{}{}` already", taken.host, taken.path);
            Violation::new(Code::RouteCollision, message)
                .help(format!("change host or path, or delete the route of app `{app}` first"))
        });
    }
    // The other tenant is not named: who else is here is nobody's business.
    hosts_overlap(&route.host, &taken.host).then(|| {
        let message = format!("host `{}` overlaps with a host of another tenant", route.host);
        Violation::new(Code::RouteHostTaken, message).help("choose another host")
    })
}
