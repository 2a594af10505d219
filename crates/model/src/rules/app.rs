//! All rules over one app, in one pass.

use std::collections::BTreeSet;

use crate::app::{LockedApp, LockedComponent};
use crate::config::{MAX_CONFIG_FROM, MAX_SHARED, shared_size};
use crate::name::{AppName, ComponentName};
use crate::offers;
use crate::rules::route::{check_host, check_method, check_path, collide};
use crate::rules::{
    Code, Found, MAX_ALLOW_HOSTS, MAX_COMPONENTS, MAX_CONFIG_ENTRIES, MAX_CONFIG_ENTRY, MAX_LINKS, MAX_METHODS,
    MAX_PROVIDERS, MAX_REVISION, MAX_ROUTES, MAX_SETTINGS, MAX_VERSION, Subject, Unknown, Violation, allow_host,
    callee, imports, limits, links, list, provider, schedules, shown, suggest,
};
use crate::schedule::MAX_SCHEDULES;
use crate::tenant::TenantSettings;

/// Everything that is wrong with `app`, but for what is `unknown`.
pub fn check(app: &LockedApp, unknown: &Unknown, tenant: &TenantSettings) -> Vec<Found> {
    let mut out = Vec::new();
    // Beyond the bounds nothing is looked at one by one: comparing takes time that grows faster than the app.
    if !sizes(app, unknown, &mut out) {
        return out;
    }
    for (name, component) in &app.components {
        limits::check(name, component, &tenant.ceilings, &mut out);
        config(name, component, &mut out);
        allow_hosts(name, component, &mut out);
        health(name, component, unknown, &mut out);
    }
    let shared = shared_size(app);
    if shared > MAX_SHARED {
        out.push(Found::at(Subject::App, shared_too_large(&app.name, shared)));
    } else {
        let size = size(app);
        if size > MAX_REVISION {
            out.push(Found::at(Subject::App, revision_too_large(&app.name, size)));
        }
    }
    provider::check(app, unknown, tenant, &mut out);
    links::check(app, unknown, &mut out);
    callee::check_depth(app, &mut out);
    for (name, component) in app.components.iter().filter(|(name, _)| !unknown.artifacts.contains(*name)) {
        imports::check(app, name, &component.imports, unknown, &mut out);
    }
    routes(app, unknown, &mut out);
    schedules::check(app, unknown, &mut out);
    out
}

/// What the app has more of than it may, at most a finding for each kind of entry of each part. Whoever takes an app from outside looks here
/// before anything is made of it: what is filled in, copied or compared for an entry is far more than the entry.
pub fn too_many(app: &LockedApp) -> Vec<Found> {
    let mut out = parts(app);
    if out.is_empty() {
        for (name, component) in &app.components {
            out.extend(shared_count(name, component));
            out.extend(allowed_count(name, component));
        }
        out.extend(settings_count(app));
        out.extend(app.routes.iter().enumerate().filter_map(|(index, route)| methods_count(index, &route.methods)));
    }
    out
}

/// That the shared configs of an app have so many bytes, which is more than [`MAX_SHARED`].
pub fn shared_too_large(app: &AppName, shared: usize) -> Violation {
    let message = format!("the shared configs of app `{app}` have {shared} bytes; at most {MAX_SHARED}");
    Violation::new(Code::ConfigTooLarge, message)
        .help("name configs only at the components that need them, or make them smaller")
}

/// The bytes of an app as it is stored.
pub fn size(app: &LockedApp) -> usize {
    struct Counted(usize);
    impl std::io::Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counted = Counted(0);
    // Only what cannot be written at all fails, and who writes it down says so.
    let _ = serde_json::to_writer(&mut counted, app);
    counted.0
}

/// That a revision of an app has so many bytes, which is more than [`MAX_REVISION`].
pub fn revision_too_large(app: &AppName, size: usize) -> Violation {
    let message = format!(
        "a revision of app `{app}` would be {size} bytes, shared configs and signers' claims among them; at most {MAX_REVISION} are kept"
    );
    Violation::new(Code::AppTooLarge, message)
        .help("put large values behind a contract, for example `wasi:keyvalue`, or split it into several apps")
}

fn sizes(app: &LockedApp, unknown: &Unknown, out: &mut Vec<Found>) -> bool {
    if app.components.is_empty() && unknown.components.is_empty() && !unknown.all_components {
        let violation = Violation::new(Code::NoComponents, format!("app `{}` has no components", app.name))
            .help("add `[components.<name>]` with `source = \"<file>.wasm\"`");
        out.push(Found::at(Subject::App, violation));
    }
    let mut more = parts(app);
    more.extend(settings_count(app));
    let bounded = more.is_empty();
    out.extend(more);
    if app
        .version
        .as_ref()
        .is_some_and(|v| v.is_empty() || v.chars().count() > MAX_VERSION || v.chars().any(char::is_control))
    {
        let message = format!("`version` has 1 to {MAX_VERSION} characters and no control characters");
        out.push(Found::at(
            Subject::Version,
            Violation::new(Code::BadValue, message).help("shorten it, or leave it out"),
        ));
    }
    bounded
}

/// The parts of an app, counted.
fn parts(app: &LockedApp) -> Vec<Found> {
    let counted = [
        (app.components.len(), MAX_COMPONENTS, "components"),
        (app.providers.len(), MAX_PROVIDERS, "providers"),
        (app.routes.len(), MAX_ROUTES, "routes"),
        (app.links.len(), MAX_LINKS, "links"),
        (app.schedules.len(), MAX_SCHEDULES, "schedules"),
    ];
    let over = counted.into_iter().filter(|(count, max, _)| count > max);
    over.map(|(count, max, noun)| {
        let message = format!("an app has at most {max} {noun}, this one has {count}");
        Found::at(Subject::App, Violation::new(Code::TooMany, message).help("split it into several apps"))
    })
    .collect()
}

/// Settings that no kind has as many of.
fn settings_count(app: &LockedApp) -> Vec<Found> {
    let too_many = |what: String, count: usize, subject| {
        let message = format!("{what} has {count} settings; at most {MAX_SETTINGS}");
        Found::at(subject, Violation::new(Code::TooMany, message).help("remove those it does not know"))
    };
    let providers = app.providers.iter().map(|(name, spec)| {
        let count = spec.config.len().saturating_add(spec.secrets.len());
        (count, format!("provider `{name}`"), Subject::Provider(name.clone()))
    });
    let links = app.links.iter().enumerate().map(|(index, link)| {
        (link.config.len(), format!("a link of component `{}`", link.component), Subject::Link(index))
    });
    let over = providers.chain(links).filter(|(count, ..)| *count > MAX_SETTINGS);
    over.take(MAX_LINKS).map(|(count, what, subject)| too_many(what, count, subject)).collect()
}

fn shared_count(name: &ComponentName, component: &LockedComponent) -> Option<Found> {
    let count = component.config_from.len();
    let message = || format!("component `{name}` names {count} shared configs; at most {MAX_CONFIG_FROM}");
    let violation = || Violation::new(Code::ConfigFrom, message()).help("put what belongs together into one config");
    (count > MAX_CONFIG_FROM).then(|| Found::at(Subject::Component(name.clone()), violation()))
}

fn allowed_count(name: &ComponentName, component: &LockedComponent) -> Option<Found> {
    let count = component.allow_hosts.len();
    let message = || format!("component `{name}` names {count} allowed hosts; at most {MAX_ALLOW_HOSTS}");
    let help = "name a suffix such as `https://*.example.com` in place of many hosts";
    let violation = || Violation::new(Code::TooMany, message()).help(help);
    (count > MAX_ALLOW_HOSTS).then(|| Found::at(Subject::Component(name.clone()), violation()))
}

fn methods_count(route: usize, methods: &[String]) -> Option<Found> {
    let message = || format!("a route names {} methods; at most {MAX_METHODS}", methods.len());
    let violation = || Violation::new(Code::TooMany, message()).help("leave `methods` out: then all are answered");
    (methods.len() > MAX_METHODS).then(|| Found::at(Subject::Route(route), violation()))
}

fn config(name: &ComponentName, component: &LockedComponent, out: &mut Vec<Found>) {
    config_from(name, component, out);
    let entries = component.answers().len();
    if entries > MAX_CONFIG_ENTRIES {
        let message = format!(
            "component `{name}` has {entries} config entries, shared ones included; at most {MAX_CONFIG_ENTRIES} are kept for it",
        );
        let violation = Violation::new(Code::ConfigTooLarge, message)
            .help("put larger data behind a contract, for example `wasi:keyvalue`");
        out.push(Found::at(Subject::Component(name.clone()), violation));
    }
    for (key, value) in &component.config {
        let size = key.len().saturating_add(value.len());
        if size > MAX_CONFIG_ENTRY {
            let message =
                format!("a config entry of component `{name}` has {size} bytes; at most {MAX_CONFIG_ENTRY} are kept");
            let violation = Violation::new(Code::ConfigTooLarge, message)
                .help("put larger data behind a contract, for example `wasi:keyvalue`");
            out.push(Found::at(Subject::Config(name.clone(), key.clone()), violation));
        }
    }
}

fn config_from(name: &ComponentName, component: &LockedComponent, out: &mut Vec<Found>) {
    // Beyond the bound they are not looked at one by one: each is compared with all before it.
    if let Some(over) = shared_count(name, component) {
        out.push(over);
        return;
    }
    for (index, shared) in component.config_from.iter().enumerate() {
        if component.config_from.iter().take(index).any(|other| other.name == shared.name) {
            let message = format!("component `{name}` names the config `{}` twice", shared.name);
            let violation = Violation::new(Code::ConfigFrom, message).help("remove one of the two");
            out.push(Found::at(Subject::ConfigFrom(name.clone(), index), violation));
        }
    }
}

fn allow_hosts(name: &ComponentName, component: &LockedComponent, out: &mut Vec<Found>) {
    if let Some(over) = allowed_count(name, component) {
        out.push(over);
        return;
    }
    for (index, host) in component.allow_hosts.iter().enumerate() {
        if let Err(violation) = allow_host::check(host) {
            out.push(Found::at(Subject::AllowHost(name.clone(), index), violation));
        }
    }
}

fn health(name: &ComponentName, component: &LockedComponent, unknown: &Unknown, out: &mut Vec<Found>) {
    let Some(path) = &component.health else { return };
    let violation = match check_path(path) {
        Err(violation) => Violation { code: Code::Health, ..violation },
        Ok(()) if unknown.artifacts.contains(name) || component.exports.iter().any(offers::is_http_handler) => return,
        Ok(()) => {
            let message = format!("component `{name}` has a `health` path and does not export an HTTP handler");
            Violation::new(Code::Health, message).help("leave `health` out: it is started, and nobody can ask it")
        }
    };
    out.push(Found::at(Subject::Health(name.clone()), violation));
}

fn routes(app: &LockedApp, unknown: &Unknown, out: &mut Vec<Found>) {
    let names: Vec<&str> = app.components.keys().map(ComponentName::as_str).collect();
    for (index, route) in app.routes.iter().enumerate() {
        let bad = [check_host(&route.host).err(), check_path(&route.path).err()];
        out.extend(bad.into_iter().flatten().map(|v| Found::at(Subject::Route(index), v)));
        methods(index, &route.methods, out);
        match app.components.get(&route.component) {
            None if unknown.all_components || unknown.components.contains(route.component.as_str()) => {}
            None => {
                let message =
                    format!("the route to `{}` names a component that the app does not have", route.component);
                let violation = Violation::new(Code::RouteComponent, message).help(suggest(
                    route.component.as_str(),
                    &names,
                    "its components",
                ));
                out.push(Found::at(Subject::RouteComponent(index), violation));
            }
            Some(component)
                if !unknown.artifacts.contains(&route.component)
                    && !component.exports.iter().any(offers::is_http_handler) =>
            {
                let message =
                    format!("component `{}` has a route and does not export an HTTP handler", route.component);
                let exports: Vec<String> = component.exports.iter().map(|e| shown(&e.to_string())).collect();
                let exports: Vec<&str> = exports.iter().map(String::as_str).collect();
                let has = if exports.is_empty() { "nothing".to_owned() } else { list(&exports) };
                let help = format!(
                    "export `wasi:http/incoming-handler` (WASI 0.2) or `wasi:http/handler` (WASI 0.3), or remove the route; the component exports {has}"
                );
                out.push(Found::at(
                    Subject::RouteComponent(index),
                    Violation::new(Code::RouteNoHttp, message).help(help),
                ));
            }
            Some(_) => {}
        }
        if let Some(first) = app.routes.iter().take(index).position(|other| collide(other, route)) {
            let message = format!("two routes answer the same requests to `{}{}`", route.host, route.path);
            out.push(Found {
                subject: Subject::Route(index),
                related: Some((Subject::Route(first), "the other route".to_owned())),
                violation: Violation::new(Code::RouteCollision, message)
                    .help("change host or path of one, or give both `methods` that do not overlap"),
            });
        }
    }
}

fn methods(route: usize, methods: &[String], out: &mut Vec<Found>) {
    if let Some(over) = methods_count(route, methods) {
        out.push(over);
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, method) in methods.iter().enumerate() {
        let twice = Violation::new(Code::RouteMethod, format!("method `{}` is written twice", shown(method)));
        let violation = match check_method(method) {
            Err(violation) => violation,
            Ok(()) if !seen.insert(method) => twice.help("remove one of the two"),
            Ok(()) => continue,
        };
        out.push(Found::at(Subject::RouteMethod(route, index), violation));
    }
}
