//! From a task to an app: the manifest a person would have written for it, read, checked and locked as every other is.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::run::RunRequest;
use api::task::{Place, TaskComponent, TaskLink, TaskSpec};
use api::{Code, Problem};
use bytes::Bytes;
use model::claims::{self, TrustPolicy};
use model::component::{MAX_COMPONENT, inspect};
use model::lock::{ArtifactFacts, ArtifactProblem, Artifacts, lock_draft};
use model::manifest::{ComponentSource, Report, draft};
use model::rules::{LIMIT_FIELDS, LimitUnit};
use model::unit::{ByteSize, Millis};
use model::{ContractId, Digest, InterfaceId, Limits, LockedApp, ProviderKind, Route};
use node::artifacts::Pulled;
use toml::{Table, Value};

use super::{adapt, place, pull};

/// The name of the app, and of its component.
pub const NAME: &str = "task";

/// How long a registry may take.
const PULL: Duration = Duration::from_secs(300);

/// A task that may run.
pub struct Ready {
    /// What runs.
    pub app: LockedApp,
    /// The component.
    pub wasm: Bytes,
    /// How it is run, where it is a program.
    pub program: Option<RunRequest>,
    /// What a registry sent, as it is kept.
    pub pulled: Option<Pulled>,
    /// Secrets its providers use, by the name under which the app knows them; each in a file.
    pub secrets: BTreeMap<String, Place>,
}

/// Reads the component, from a registry by the program `exe` and by way of the network `outside`, and checks it, its links and its claims.
///
/// # Errors
/// Everything that is wrong with them.
pub async fn prepare(spec: &TaskSpec, exe: &Path, outside: Option<File>) -> Result<Ready, Problem> {
    let (manifest, secrets) = manifest(spec)?;
    let text = toml::to_string(&manifest).map_err(|cause| Problem::new(Code::Internal, cause.to_string()))?;
    let draft = draft(&text, "the task");
    let source = draft.manifest.as_ref().and_then(|manifest| manifest.components.values().next());
    let mut pulled = None;
    let wasm = match (&spec.component, source.map(|component| &component.source.value)) {
        (TaskComponent::Oci(_), Some(ComponentSource::Oci(reference))) => {
            pulled = Some(Pulled::of(&spec.code, &reference.digest));
            Some(pull::component(reference, (spec, exe), PULL, outside).await?)
        }
        (TaskComponent::Path(place), Some(_)) => Some(file(place.clone()).await?),
        // What is wrong with the reference is in the report.
        _ => None,
    };
    // What is signed are the bytes that were published.
    let published = wasm.clone();
    let wasm = match wasm {
        Some(module) if spec.listen.is_none() && adapt::is_module(&module) => Some(adapt::component(module).await?),
        other => other,
    };
    let facts = wasm.as_ref().ok_or(ArtifactProblem::Missing).and_then(|bytes| {
        let info = inspect(bytes)?;
        Ok(ArtifactFacts { digest: Digest::of(bytes), size: bytes.len() as u64, info })
    });
    let name = NAME.parse().map_err(|_| Problem::new(Code::Internal, "no name"))?;
    let found: Artifacts = [(name, facts)].into();
    let locked = lock_draft(draft, &found, &spec.settings).map_err(|report| refused(&report))?;
    let mut app = locked.app;
    let (Some(wasm), Some(published)) = (wasm, published) else {
        return Err(Problem::new(Code::Internal, "the task has no component"));
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    claims::verify_as(&published, &wasm, &TrustPolicy::from(&spec.settings), now).map_err(|error| {
        let code = Code::ALL.iter().copied().find(|code| code.as_str() == error.code());
        Problem::new(code.unwrap_or(Code::ArtifactInvalid), error.to_string()).help(error.help())
    })?;
    let component: model::ComponentName = NAME.parse().map_err(|_| Problem::new(Code::Internal, "no name"))?;
    let own = app.components.get_mut(&component);
    let own = own.ok_or_else(|| Problem::new(Code::Internal, "the task has no component"))?;
    if let Some(problem) = unfit(spec, &own.exports) {
        return Err(problem);
    }
    let program = match spec.listen {
        // Whatever name the port is called by: it has this one component.
        Some(_) => {
            app.routes = vec![Route { host: "*".to_owned(), path: "/".to_owned(), methods: Vec::new(), component }];
            None
        }
        None => {
            own.limits = unbounded(own.limits, &spec.limits, &spec.settings.ceilings);
            let export = own.exports.iter().find(|export| is_run(export)).map(ToString::to_string).unwrap_or_default();
            let args = std::iter::once(called(&spec.component)).chain(spec.args.iter().cloned()).collect();
            let env = spec.env.clone().into_iter().collect();
            Some(RunRequest { component, export, args, env })
        }
    };
    Ok(Ready { app, wasm, program, pulled, secrets })
}

/// Whether an export makes a component a program.
fn is_run(export: &InterfaceId) -> bool {
    let version = export.version.as_ref();
    export.contract.to_string() == "wasi:cli"
        && &*export.interface == "run"
        && version.is_some_and(|v| v.major == 0 && matches!(v.minor, 2 | 3) && v.pre.is_empty())
}

/// Why a component with these exports is not what the task says of it.
fn unfit(spec: &TaskSpec, exports: &[InterfaceId]) -> Option<Problem> {
    let serves = exports.iter().any(|export| export.to_string().starts_with("wasi:http/"));
    let runs = exports.iter().any(is_run);
    let (what, help) = match (spec.listen, serves, runs) {
        (Some(_), true, _) | (None, _, true) => return None,
        (None, true, false) => (
            "the task has no `http` block, so nothing would reach its component, which answers HTTP",
            "write http { port = \"<label>\" } with the label of a port of the group's network",
        ),
        (None, false, false) => (
            "the component exports neither wasi:cli/run nor wasi:http/incoming-handler, so there is nothing to run",
            "build it as a program, or for wasi:http",
        ),
        (Some(_), false, true) => (
            "the task has an `http` block, and its component does not export wasi:http/incoming-handler; it is a program",
            "take the block away: a program (wasi:cli/run) is run once, and the task ends with it",
        ),
        (Some(_), false, false) => (
            "the task has an `http` block, and its component does not export wasi:http/incoming-handler",
            "build the component for wasi:http",
        ),
    };
    Some(Problem::new(Code::ArtifactInvalid, what).help(help))
}

/// A program computes as long as its task may run: what bounds it is its scheduler, by control groups and by ending it, and what
/// its job names. What bounds the platform's own memory stays, and so does what the operator says of memory.
fn unbounded(limits: Limits, named: &BTreeMap<String, String>, ceilings: &Limits) -> Limits {
    let mut free = Limits {
        cpu: Millis(u64::MAX),
        wall: Millis(u64::MAX),
        memory: ceilings.memory,
        table_elements: ceilings.table_elements,
        subrequests: u32::MAX,
        log_per_call: ByteSize(u64::MAX),
        ..limits
    };
    for field in LIMIT_FIELDS.iter().filter(|field| named.contains_key(field.name)) {
        (field.set)(&mut free, (field.get)(&limits));
    }
    free
}

/// Limits as a manifest has them: counts are numbers.
fn limits(spec: &TaskSpec) -> Table {
    let is_count = |name: &str| LIMIT_FIELDS.iter().any(|field| field.name == name && field.unit == LimitUnit::Count);
    let value = |name: &str, text: &str| match text.parse() {
        Ok(number) if is_count(name) => Value::Integer(number),
        _ => Value::String(text.to_owned()),
    };
    spec.limits.iter().map(|(name, text)| (name.clone(), value(name, text))).collect()
}

/// What a program is called: the first of its arguments.
fn called(component: &TaskComponent) -> String {
    let name = match component {
        TaskComponent::Path(place) => place.path.file_name().map(|name| name.to_string_lossy().into_owned()),
        TaskComponent::Oci(reference) => {
            reference.split('@').next().and_then(|name| name.rsplit('/').next()).map(str::to_owned)
        }
    };
    name.unwrap_or_else(|| NAME.to_owned())
}

/// Whether a path of the task looks like the name of something in a registry: with a tag, or behind the name of a machine.
fn is_reference(path: &Path) -> bool {
    let part = |part: Option<&OsStr>| part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default();
    let (first, last) = (part(path.iter().next()), part(path.file_name()));
    last.contains(':') || (first.contains(['.', ':']) && path.iter().count() > 1)
}

async fn file(at: Place) -> Result<Bytes, Problem> {
    let (name, written) = (at.name(), at.path.clone());
    let shown = name.display();
    let read = tokio::task::spawn_blocking(move || place::read(&at, MAX_COMPONENT));
    let read = read.await.map_err(|cause| Problem::new(Code::Internal, cause.to_string()))?;
    read.map(Bytes::from).map_err(|cause| match cause.kind() {
        std::io::ErrorKind::NotFound => {
            let help = match is_reference(&written) {
                true => {
                    "a component of a registry is named by its digest, `registry/repository@sha256:…`, and by no tag"
                }
                false => {
                    "`component` is a path in the task's directory, for example `local/app.wasm` of an `artifact` block"
                }
            };
            Problem::new(Code::ArtifactMissing, format!("there is no component at {shown}")).help(help)
        }
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::FileTooLarge => {
            Problem::new(Code::ArtifactInvalid, format!("the component {shown} is not read: {cause}"))
        }
        // It may be there the next time: the disk or this machine's descriptors are at fault.
        _ => Problem::new(Code::StoreUnavailable, format!("the component {shown} cannot be read: {cause}")),
    })
}

fn refused(report: &Report) -> Problem {
    let said = |f: &model::manifest::Finding| match &f.help {
        Some(help) => format!("{} ({help})", f.message),
        None => f.message.clone(),
    };
    let findings: Vec<String> = report.findings.iter().map(said).collect();
    Problem::new(Code::ManifestInvalid, findings.join("; "))
}

type Secrets = BTreeMap<String, Place>;

fn manifest(spec: &TaskSpec) -> Result<(Table, Secrets), Problem> {
    let text = |text: &str| Value::String(text.to_owned());
    let texts = |map: &BTreeMap<String, String>| {
        Value::Table(map.iter().map(|(key, value)| (key.clone(), text(value))).collect())
    };
    let (mut links, mut providers, mut secrets) = (Table::new(), Table::new(), Secrets::new());
    for (index, link) in spec.links.iter().enumerate() {
        let declared = provider(link)?;
        let own: Vec<&str> =
            model::rules::links::settings(&link.contract.to_string()).iter().map(|setting| setting.name).collect();
        let (of_link, of_provider): (BTreeMap<_, _>, BTreeMap<_, _>) =
            link.settings.clone().into_iter().partition(|(name, _)| own.contains(&name.as_str()));
        let mut entry = Table::new();
        entry.insert("label".into(), text(link.label.as_str()));
        entry.extend(of_link.iter().map(|(name, value)| (name.clone(), text(value))));
        let provider = match declared {
            Declared::BuiltIn(name) if of_provider.is_empty() && link.secret_files.is_empty() => name.to_owned(),
            Declared::BuiltIn(name) => {
                let what = format!("provider `{name}` is built in and has no settings");
                return Err(Problem::new(Code::ManifestInvalid, what).help("remove them, or name another provider"));
            }
            Declared::Kind(kind) => {
                let name = format!("link-{index}");
                let mut table = Table::new();
                table.insert("type".into(), text(kind.as_str()));
                table.extend(of_provider.iter().map(|(name, value)| (name.clone(), text(value))));
                for (key, file) in &link.secret_files {
                    let secret = format!("link-{index}-{key}");
                    table.insert(
                        key.clone(),
                        Value::Table([("secret".to_owned(), text(&secret))].into_iter().collect()),
                    );
                    secrets.insert(secret, file.clone());
                }
                providers.insert(name.clone(), Value::Table(table));
                name
            }
        };
        entry.insert("provider".into(), text(&provider));
        let entries = links.entry(link.contract.to_string()).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(entries) = entries {
            entries.push(Value::Table(entry));
        }
    }
    let mut component = Table::new();
    let source = match &spec.component {
        TaskComponent::Oci(reference) => Value::Table([("oci".to_owned(), text(reference))].into_iter().collect()),
        // The path was checked where it was written; here any that a manifest may have stands for it.
        TaskComponent::Path(_) => text("component.wasm"),
    };
    component.insert("source".into(), source);
    component.insert("config".into(), texts(&spec.config));
    component.insert("allow-hosts".into(), Value::Array(spec.allow_hosts.iter().map(|host| text(host)).collect()));
    component.insert("limits".into(), Value::Table(limits(spec)));
    component.insert("links".into(), Value::Table(links));
    let mut manifest = Table::new();
    manifest.insert("schema".into(), Value::Integer(1));
    manifest.insert("name".into(), text(NAME));
    manifest
        .insert("components".into(), Value::Table([(NAME.to_owned(), Value::Table(component))].into_iter().collect()));
    if !providers.is_empty() {
        manifest.insert("providers".into(), Value::Table(providers));
    }
    Ok((manifest, secrets))
}

enum Declared {
    BuiltIn(&'static str),
    Kind(ProviderKind),
}

/// What a job's `provider` means: a built-in one, a type, or a type without its family.
fn provider(link: &TaskLink) -> Result<Declared, Problem> {
    let written = link.provider.as_str();
    if let Some((name, _)) = ProviderKind::BUILT_IN.into_iter().find(|(name, _)| *name == written) {
        return Ok(Declared::BuiltIn(name));
    }
    let answers = |kind: &ProviderKind| {
        kind.answers(&link.contract) && !matches!(kind, ProviderKind::Component | ProviderKind::External)
    };
    let fits = |kind: &ProviderKind| {
        kind.as_str() == written || kind.as_str().split_once('-').is_some_and(|(_, short)| short == written)
    };
    let found = ProviderKind::ALL.into_iter().filter(answers).find(fits);
    found.map(Declared::Kind).ok_or_else(|| unknown(&link.contract, written, answers))
}

fn unknown(contract: &ContractId, written: &str, answers: impl Fn(&ProviderKind) -> bool) -> Problem {
    let kinds: Vec<&str> =
        ProviderKind::ALL.into_iter().filter(|kind| answers(kind)).map(ProviderKind::as_str).collect();
    let help = match &kinds[..] {
        [] => "no provider of this version answers that contract".to_owned(),
        kinds => format!("{contract} is answered by {}", kinds.join(", ")),
    };
    Problem::new(Code::ManifestInvalid, format!("`{written}` is no provider for {contract}")).help(help)
}
