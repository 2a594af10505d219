//! From a manifest and the artifacts it names to a [`LockedApp`]: every default explicit, every path a digest, every link
//! resolved. What the rules find wrong is placed in the manifest, in one report with what was wrong with the text.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::World;
use crate::app::{Link, LockedApp, LockedComponent, ProviderSpec, Route};
use crate::component::{ComponentInfo, InspectError};
use crate::config::SharedConfig;
use crate::digest::Digest;
use crate::limits::Limits;
use crate::manifest::{
    Component, ComponentSource, Draft, Finding, LinkEntry, Manifest, Related, Report, SecretEntry, SettingEntry,
    Severity,
};
use crate::name::{ComponentName, ProviderName};
use crate::rules::{
    self, Code, Found, LIMIT_FIELDS, MAX_ARTIFACT, Subject, Unknown, Violation, callee, provider, shown,
};
use crate::secret::SecretRef;
use crate::tenant::TenantSettings;
use crate::unit::ByteSize;

/// What is known of a component's bytes.
#[derive(Debug, Clone)]
pub struct ArtifactFacts {
    /// Their digest.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
    /// What they are.
    pub info: ComponentInfo,
}

/// Why nothing is known of a component's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArtifactProblem {
    /// There is no such file.
    Missing,
    /// The path leads outside the app's folder by a symbolic link.
    Outside,
    /// There is something and it cannot be read; the reason is the operating system's or the registry's.
    Unreadable(String),
    /// More bytes than [`MAX_ARTIFACT`]; how many.
    TooLarge(u64),
    /// Not WebAssembly.
    NotWasm,
    /// A core module.
    CoreModule,
    /// WebAssembly that cannot be read as a component, and why.
    Invalid(String),
    /// The bytes of an OCI reference have another digest.
    Digest(Digest),
}

impl From<InspectError> for ArtifactProblem {
    fn from(error: InspectError) -> Self {
        match error {
            InspectError::NotWasm => Self::NotWasm,
            InspectError::CoreModule => Self::CoreModule,
            InspectError::TooLarge { size, .. } => Self::TooLarge(size as u64),
            other => Self::Invalid(other.to_string()),
        }
    }
}

/// What the caller found out about each component of a manifest.
pub type Artifacts = BTreeMap<ComponentName, Result<ArtifactFacts, ArtifactProblem>>;

/// An app that is ready to deploy.
#[derive(Debug, Clone)]
pub struct Locked {
    /// The app.
    pub app: LockedApp,
    /// Findings that stop nothing; often empty.
    pub warnings: Report,
}

/// Locks a manifest.
///
/// # Errors
/// Everything that is wrong, warnings included.
pub fn lock(manifest: &Manifest, artifacts: &Artifacts, tenant: &TenantSettings) -> Result<Locked, Report> {
    finish(manifest, artifacts, tenant, Unknown::default(), Vec::new())
}

/// Locks a draft: what is wrong with its text and what the rules find come in one report.
///
/// # Errors
/// Everything that is wrong, warnings included.
pub fn lock_draft(draft: Draft, artifacts: &Artifacts, tenant: &TenantSettings) -> Result<Locked, Report> {
    match &draft.manifest {
        Some(manifest) => finish(manifest, artifacts, tenant, draft.unknown, draft.findings),
        None => Err(Report::new(draft.source, draft.findings)),
    }
}

fn finish(
    manifest: &Manifest,
    artifacts: &Artifacts,
    tenant: &TenantSettings,
    mut unknown: Unknown,
    mut findings: Vec<Finding>,
) -> Result<Locked, Report> {
    let source = &manifest.source;
    for (name, component) in &manifest.components {
        if let Some(violation) = artifact(name, component, artifacts) {
            findings.push(Finding::new(source, component.source.span.clone(), violation));
            unknown.artifacts.insert(name.clone());
        }
    }
    let app = assemble(manifest, artifacts, tenant);
    for link in links(manifest).filter(|link| link.to_component) {
        if let Some(violation) = name_taken(&link.provider.value, &app, tenant) {
            findings.push(Finding::new(source, link.provider.span.clone(), violation));
        }
    }
    for found in rules::check(&app, &unknown, tenant) {
        findings.push(place(manifest, found));
    }
    let report = Report::new(Arc::clone(source), findings);
    if report.findings.iter().any(|f| f.severity == Severity::Error) {
        return Err(report);
    }
    Ok(Locked { app, warnings: report })
}

fn links(manifest: &Manifest) -> impl Iterator<Item = &LinkEntry> {
    manifest.components.values().flat_map(|component| &component.links)
}

/// A link to a component makes a provider of its name: another provider may not have it.
fn name_taken(name: &ProviderName, app: &LockedApp, tenant: &TenantSettings) -> Option<Violation> {
    let other = app.providers.get(name).is_some_and(|spec| *spec != callee::provider(name.as_str()));
    if !other && resolve(name, tenant).is_none() {
        return None;
    }
    let message = format!("the link goes to component `{name}`, and there is a provider of that name too");
    let help = format!(
        "declare the component as a provider of another name: `[providers.my-{name}]` with `type = \"component\"` and `component = \"{name}\"`"
    );
    Some(Violation::new(Code::ProviderName, message).help(help))
}

/// What is wrong with a component's artifact.
fn artifact(name: &ComponentName, component: &Component, artifacts: &Artifacts) -> Option<Violation> {
    let from = match &component.source.value {
        ComponentSource::Path(path) => format!("`{}`", shown(path)),
        ComponentSource::Oci(oci) => format!("`{}/{}@{}`", oci.registry, oci.repository, oci.digest.short()),
    };
    let mismatch = |got: &Digest, want: &Digest| {
        Violation::new(Code::ArtifactMismatch, format!("{from} has the digest {got}, not the pinned {want}"))
            .help("pin the digest of the bytes you mean, and find out who changed them")
    };
    let problem = match artifacts.get(name) {
        // The pin is the registry's manifest, which names the bytes: whoever brings them checks that chain.
        Some(Ok(facts)) if facts.size > MAX_ARTIFACT => &ArtifactProblem::TooLarge(facts.size),
        Some(Ok(_)) => return None,
        Some(Err(problem)) => problem,
        None => &ArtifactProblem::Missing,
    };
    let violation = |code, message: String, help: &str| Some(Violation::new(code, message).help(help));
    match problem {
        ArtifactProblem::Missing => violation(
            Code::ArtifactMissing,
            format!("component `{name}` comes from {from}, and there is no such file"),
            "build the component first, or correct the path; it is relative to the folder of app.toml",
        ),
        ArtifactProblem::Outside => violation(
            Code::SourcePath,
            format!("{from} leads out of the app's folder by a symbolic link; only files inside it belong to the app"),
            "copy the file into the app's folder",
        ),
        ArtifactProblem::Unreadable(why) => violation(
            Code::ArtifactUnreadable,
            format!("component `{name}` comes from {from}, which cannot be read: {}", shown(why)),
            "check the file's kind and permissions, or the registry's name and credentials",
        ),
        ArtifactProblem::TooLarge(size) => violation(
            Code::ArtifactTooLarge,
            format!("{from} has {size} bytes; a component has at most {}", ByteSize(MAX_ARTIFACT)),
            "build it for release and strip debug information (`wasm-tools strip`)",
        ),
        ArtifactProblem::NotWasm => violation(
            Code::ArtifactNotWasm,
            format!("{from} is not WebAssembly"),
            "name the built component, a `.wasm` file",
        ),
        ArtifactProblem::CoreModule => violation(
            Code::ArtifactCoreModule,
            format!("{from} is a core module; a component is needed"),
            "build for the target `wasm32-wasip2`, or turn it into a component with `wasm-tools component new`",
        ),
        ArtifactProblem::Invalid(why) => violation(
            Code::ArtifactInvalid,
            format!("{from} cannot be read as a component: {}", shown(why)),
            "build it again; if that does not help, the tool that built it is at fault",
        ),
        ArtifactProblem::Digest(got) => match &component.source.value {
            ComponentSource::Oci(oci) => Some(mismatch(got, &oci.digest)),
            ComponentSource::Path(_) => violation(
                Code::ArtifactUnreadable,
                format!("{from} changed while it was read"),
                "run the command again when the build has ended",
            ),
        },
    }
}

fn assemble(manifest: &Manifest, artifacts: &Artifacts, tenant: &TenantSettings) -> LockedApp {
    let mut app = LockedApp {
        name: manifest.name.value.clone(),
        version: manifest.version.as_ref().map(|v| v.value.clone()),
        components: BTreeMap::new(),
        providers: BTreeMap::new(),
        links: Vec::new(),
        routes: Vec::new(),
        schedules: manifest.schedules.iter().map(|(name, entry)| (name.clone(), entry.schedule.clone())).collect(),
    };
    for (name, component) in &manifest.components {
        app.components.insert(
            name.clone(),
            locked(component, artifacts.get(name).and_then(|a| a.as_ref().ok()), &tenant.ceilings),
        );
        app.links.extend(component.links.iter().map(|link| Link {
            component: name.clone(),
            contract: link.contract.value.clone(),
            label: link.label.value.clone(),
            provider: link.provider.value.clone(),
            config: texts(&link.config),
        }));
    }
    for (name, declared) in &manifest.providers {
        let spec = ProviderSpec {
            config: texts(&declared.config),
            secrets: references(&declared.secrets),
            ..ProviderSpec::new(declared.kind.value)
        };
        app.providers.insert(name.clone(), spec);
    }
    for link in links(manifest).filter(|link| link.to_component) {
        let name = &link.provider.value;
        if resolve(name, tenant).is_some() {
            continue;
        }
        app.providers.entry(name.clone()).or_insert_with(|| callee::provider(name.as_str()));
    }
    for link in &app.links {
        if let Some(spec) = resolve(&link.provider, tenant) {
            app.providers.entry(link.provider.clone()).or_insert(spec);
        }
    }
    add_sources(&mut app, tenant);
    app.routes.extend(manifest.routes.iter().map(|route| Route {
        host: route.host.value.clone(),
        path: route.path.value.clone(),
        methods: route.methods.iter().map(|m| m.value.clone()).collect(),
        component: route.component.value.clone(),
    }));
    app
}

/// Adds what the references of its providers name as sources of secrets and it has without declaring them.
pub fn add_sources(app: &mut LockedApp, tenant: &TenantSettings) {
    // A source is asked with secrets that may be of another source; none of those needs a third.
    for _ in 0..2 {
        let named =
            app.providers.values().flat_map(|spec| spec.secrets.values()).filter_map(|secret| secret.from.clone());
        for name in named.collect::<Vec<_>>() {
            if let Some(spec) = resolve(&name, tenant) {
                app.providers.entry(name).or_insert(spec);
            }
        }
    }
}

/// A provider that an app has without declaring it: built in, or the operator's.
fn resolve(name: &ProviderName, tenant: &TenantSettings) -> Option<ProviderSpec> {
    let own = tenant.providers.get(name).map(|spec| ProviderSpec { operator: true, ..spec.clone() });
    provider::built_in(name.as_str()).or(own)
}

fn locked(component: &Component, facts: Option<&ArtifactFacts>, ceilings: &Limits) -> LockedComponent {
    // Without facts there is an error already, and the rules look at the settings only.
    let info = facts.map(|f| &f.info);
    LockedComponent {
        digest: facts.map_or_else(|| Digest::of(&[]), |f| f.digest),
        size: facts.map_or(0, |f| f.size),
        world: info.map_or(World::P2, |i| i.world),
        imports: info.map(|i| i.imports.clone()).unwrap_or_default(),
        exports: info.map(|i| i.exports.clone()).unwrap_or_default(),
        config: texts(&component.config),
        config_from: component.config_from.iter().map(|name| SharedConfig::named(name.value.clone())).collect(),
        limits: limits(component, ceilings),
        reuse: component.reuse.as_ref().map(|r| r.value),
        allow_hosts: component.allow_hosts.iter().map(|h| h.value.clone()).collect(),
        health: component.health.as_ref().map(|path| path.value.clone()),
    }
}

/// The component's limits; a default above the tenant's ceiling becomes the ceiling, since nobody asked for it. A ceiling
/// below what any call needs is found by the rules, which name it and not the component.
fn limits(component: &Component, ceilings: &Limits) -> Limits {
    let mut limits = component.limits;
    for field in LIMIT_FIELDS.iter().filter(|field| !component.limit_spans.contains_key(field.name)) {
        let value = (field.get)(&limits).min((field.get)(ceilings));
        (field.set)(&mut limits, value);
    }
    limits
}

fn texts(settings: &BTreeMap<String, SettingEntry>) -> BTreeMap<String, String> {
    settings.iter().map(|(key, value)| (key.clone(), value.value.value.clone())).collect()
}

fn references(secrets: &BTreeMap<String, SecretEntry>) -> BTreeMap<String, SecretRef> {
    secrets.iter().map(|(key, entry)| (key.clone(), entry.reference.clone())).collect()
}

fn place(manifest: &Manifest, found: Found) -> Finding {
    let span = span_of(manifest, &found.subject);
    let mut finding = Finding::new(&manifest.source, span, found.violation);
    finding.related =
        found.related.into_iter().map(|(subject, text)| Related { span: span_of(manifest, &subject), text }).collect();
    finding
}

/// Where in the manifest a part of the app is written; the nearest place around it where it has none of its own.
fn span_of(manifest: &Manifest, subject: &Subject) -> Range<usize> {
    let links = || links(manifest);
    let component = |name: &ComponentName| manifest.components.get(name);
    let provider = |name: &ProviderName| manifest.providers.get(name);
    let span = match subject {
        Subject::App => None,
        Subject::Version => manifest.version.as_ref().map(|v| v.span.clone()),
        Subject::Component(name) => component(name).map(|c| c.span.clone()),
        Subject::Artifact(name) => component(name).map(|c| c.source.span.clone()),
        Subject::Limit(name, limit) => component(name).map(|c| c.limit_spans.get(limit).unwrap_or(&c.span).clone()),
        Subject::Reuse(name) => component(name).map(|c| c.reuse.as_ref().map_or(&c.span, |r| &r.span).clone()),
        Subject::Config(name, key) => {
            component(name).map(|c| c.config.get(key).map_or(&c.span, |v| &v.value.span).clone())
        }
        Subject::ConfigFrom(name, index) => {
            component(name).map(|c| c.config_from.get(*index).map_or(&c.span, |n| &n.span).clone())
        }
        Subject::AllowHost(name, index) => {
            component(name).map(|c| c.allow_hosts.get(*index).map_or(&c.span, |h| &h.span).clone())
        }
        Subject::Health(name) => component(name).map(|c| c.health.as_ref().map_or(&c.span, |h| &h.span).clone()),
        Subject::Link(index) => links().nth(*index).map(|l| l.span.clone()),
        Subject::LinkProvider(index) => links().nth(*index).map(|l| l.provider.span.clone()),
        Subject::LinkKey(index, key) => links().nth(*index).map(|l| key_of(&l.config, key).unwrap_or(&l.span).clone()),
        Subject::LinkValue(index, key) => {
            links().nth(*index).map(|l| value_of(&l.config, key).unwrap_or(&l.span).clone())
        }
        Subject::Provider(name) => provider(name).map(|p| p.span.clone()),
        Subject::ProviderKey(name, key) => provider(name).map(|p| {
            let secret = || p.secrets.get(key).map(|entry| &entry.key);
            key_of(&p.config, key).or_else(secret).unwrap_or(&p.span).clone()
        }),
        Subject::ProviderValue(name, key) => provider(name).map(|p| {
            let secret = || p.secrets.get(key).map(|entry| &entry.span);
            value_of(&p.config, key).or_else(secret).unwrap_or(&p.span).clone()
        }),
        Subject::RouteMethod(index, method) => {
            manifest.routes.get(*index).map(|r| r.methods.get(*method).map_or(&r.span, |m| &m.span).clone())
        }
        Subject::Route(index) => manifest.routes.get(*index).map(|r| r.span.clone()),
        Subject::Schedule(name, key) => {
            manifest.schedules.get(name).map(|s| s.keys.get(key).unwrap_or(&s.span).clone())
        }
        Subject::RouteComponent(index) => manifest.routes.get(*index).map(|r| r.component.span.clone()),
    };
    span.unwrap_or_else(|| manifest.name.span.clone())
}

fn key_of<'a>(settings: &'a BTreeMap<String, SettingEntry>, key: &str) -> Option<&'a Range<usize>> {
    settings.get(key).map(|entry| &entry.key)
}

fn value_of<'a>(settings: &'a BTreeMap<String, SettingEntry>, key: &str) -> Option<&'a Range<usize>> {
    settings.get(key).map(|entry| &entry.value.span)
}
