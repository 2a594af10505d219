//! An app's folder: the manifest and the bytes it names, read, signed where they are local builds, and locked.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use api::client::ControlClient;
use api::{Code, Problem};
use bytes::Bytes;
use model::claims::keys::{KeyKind, KeyPair};
use model::claims::{self, Claims};
use model::component::{MAX_COMPONENT, inspect};
use model::egress::AllowedHost;
use model::lock::{ArtifactFacts, ArtifactProblem, Artifacts, Locked, lock_draft};
use model::manifest::{ComponentSource, Finding, Manifest, Report, Severity, draft};
use model::rules::MAX_MANIFEST;
use model::tenant::TenantSettings;
use model::{AppName, ComponentName, Digest, LockedApp};

use crate::args::AppDir;
use crate::context::{Context, refused};
use crate::{keys, output, task};

/// The manifest's file name.
pub const MANIFEST: &str = "app.toml";
/// The message of the revision that `up --demo` makes.
pub const DEMO_MESSAGE: &str = "the demo of `sidereal up --demo`";

/// An app that is ready to be uploaded.
pub struct Project {
    /// What is deployed.
    pub app: LockedApp,
    /// Its artifacts.
    pub artifacts: BTreeMap<Digest, Bytes>,
    /// What is doubtful in its manifest and stops nothing: for programs, as people saw it.
    pub warnings: Vec<String>,
}

impl Project {
    /// Reads an app's folder. Local builds without claims are signed, in memory, with this machine's account key.
    ///
    /// # Errors
    /// `not-found` without a manifest; `manifest-invalid` with every finding.
    pub async fn read(context: &Context, client: &ControlClient, dir: &AppDir, sign: bool) -> anyhow::Result<Self> {
        let (folder, file) = locate(&dir.path)?;
        let text = manifest_text(&file)?;
        let shown = file.strip_prefix(std::env::current_dir()?).unwrap_or(&file).display().to_string();
        let draft = draft(&text, &shown);
        let settings = tenant(context, client).await?;
        let mut found = Artifacts::new();
        let mut artifacts = BTreeMap::new();
        let mut not_brought = Vec::new();
        if let Some(manifest) = draft.manifest.clone() {
            for (name, component) in &manifest.components {
                let bytes = match &component.source.value {
                    ComponentSource::Path(path) => match local(&folder, path) {
                        Ok(bytes) if sign => signed(context, &manifest, name, bytes, &folder.join(path))?,
                        other => other,
                    },
                    ComponentSource::Oci(reference) => {
                        let spinner = context.out.spinner(&format!("bringing {name} from {}", reference.registry));
                        let pulled = task::pull_for_command(reference).await;
                        spinner.finish_and_clear();
                        // The others are looked at all the same, so that one report has every problem.
                        pulled.map_err(|problem| {
                            let why = ArtifactProblem::Unreadable(problem.to_string());
                            not_brought.push(problem);
                            why
                        })
                    }
                };
                found.insert(name.clone(), facts(bytes, &mut artifacts));
            }
        }
        match lock_draft(draft, &found, &settings) {
            Ok(Locked { app, warnings }) => {
                if !warnings.findings.is_empty() && !context.out.json() {
                    eprint!("{}", shown_report(&warnings));
                }
                let warnings = warnings.findings.iter().map(listed).collect();
                Ok(Self { app, artifacts, warnings })
            }
            Err(report) => Err(invalid(context, &report, not_brought).into()),
        }
    }

    /// An app whose manifest and artifact are part of this program.
    ///
    /// # Errors
    /// When they do not fit each other.
    pub fn built_in(manifest: &str, wasm: &'static [u8], settings: &TenantSettings) -> anyhow::Result<Self> {
        let draft = draft(manifest, "the built-in app.toml");
        let mut artifacts = BTreeMap::new();
        let names: Vec<ComponentName> =
            draft.manifest.iter().flat_map(|manifest| manifest.components.keys().cloned()).collect();
        let found = names.into_iter().map(|name| (name, facts(Ok(Bytes::from_static(wasm)), &mut artifacts))).collect();
        let locked = lock_draft(draft, &found, settings).map_err(|report| anyhow::anyhow!("{}", report.render()))?;
        Ok(Self { app: locked.app, artifacts, warnings: Vec::new() })
    }
}

/// The tenant's settings; the defaults where it does not exist yet.
async fn tenant(context: &Context, client: &ControlClient) -> anyhow::Result<TenantSettings> {
    match client.tenant(&context.tenant).await {
        Ok(view) => Ok(view.settings),
        Err(error) => match error.problem() {
            problem if problem.code == Code::NotFound => Ok(TenantSettings::default()),
            problem => Err(refused(problem.into())),
        },
    }
}

fn locate(path: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let path = std::path::absolute(path)?;
    let file = if path.is_dir() { path.join(MANIFEST) } else { path };
    if !file.is_file() {
        return Err(Problem::new(Code::NotFound, format!("there is no app here: {} does not exist", file.display()))
            .help("go to a folder with an app.toml, or name one: `sidereal deploy FOLDER` (`sidereal up --demo` runs an example)")
            .into());
    }
    let folder = file.parent().context("the manifest lies in no folder")?.to_owned();
    Ok((folder, file))
}

/// The manifest's text. What is no text, or too much of it, is a fault of the manifest.
fn manifest_text(file: &Path) -> anyhow::Result<String> {
    let shown = file.display();
    let mut bytes = Vec::new();
    // One byte more than a manifest may have tells a large file without reading it.
    fs::File::open(file)
        .and_then(|opened| opened.take(MAX_MANIFEST as u64 + 1).read_to_end(&mut bytes))
        .map_err(|cause| unreadable_manifest(file, &cause))?;
    if bytes.len() > MAX_MANIFEST {
        return Err(Problem::new(
            Code::ManifestInvalid,
            format!("{shown} is too large: a manifest has at most {MAX_MANIFEST} bytes"),
        )
        .help("keep data out of app.toml; is this the right file?")
        .into());
    }
    String::from_utf8(bytes).map_err(|cause| {
        let at = cause.utf8_error().valid_up_to();
        let line = cause.as_bytes().iter().take(at).filter(|b| **b == b'\n').count() + 1;
        Problem::new(Code::ManifestInvalid, format!("{shown} is not UTF-8 text: line {line}, byte {at} of the file"))
            .help("save it as UTF-8")
            .into()
    })
}

fn unreadable_manifest(file: &Path, cause: &std::io::Error) -> Problem {
    let code = match cause.kind() {
        std::io::ErrorKind::NotFound => Code::NotFound,
        std::io::ErrorKind::PermissionDenied => Code::Forbidden,
        _ => Code::ManifestInvalid,
    };
    Problem::new(code, format!("cannot read {}: {cause}", file.display())).help("check the file and its permissions")
}

/// The bytes of a file in the app's folder; links that lead outside are refused.
fn local(folder: &Path, path: &str) -> Result<Bytes, ArtifactProblem> {
    let unreadable = |cause: std::io::Error| match cause.kind() {
        std::io::ErrorKind::NotFound => ArtifactProblem::Missing,
        _ => ArtifactProblem::Unreadable(cause.to_string()),
    };
    let real = folder.join(path).canonicalize().map_err(unreadable)?;
    let inside = folder.canonicalize().map_err(unreadable)?;
    if !real.starts_with(&inside) {
        return Err(ArtifactProblem::Outside);
    }
    let meta = fs::metadata(&real).map_err(unreadable)?;
    if !meta.is_file() {
        return Err(ArtifactProblem::Unreadable("it is no file".to_owned()));
    }
    if meta.len() > MAX_COMPONENT as u64 {
        return Err(ArtifactProblem::TooLarge(meta.len()));
    }
    fs::read(&real).map(Bytes::from).map_err(unreadable)
}

fn facts(
    bytes: Result<Bytes, ArtifactProblem>,
    artifacts: &mut BTreeMap<Digest, Bytes>,
) -> Result<ArtifactFacts, ArtifactProblem> {
    let bytes = bytes?;
    let info = inspect(&bytes)?;
    let digest = Digest::of(&bytes);
    let size = bytes.len() as u64;
    artifacts.insert(digest, bytes);
    Ok(ArtifactFacts { digest, size, info })
}

/// Signs a local build that carries no claims. The same build gives the same artifact: the token's time is the file's,
/// its id comes from the bytes. The outer error is this machine's, such as a key that cannot be made; the inner one the
/// artifact's.
fn signed(
    context: &Context,
    manifest: &Manifest,
    name: &ComponentName,
    bytes: Bytes,
    file: &Path,
) -> anyhow::Result<Result<Bytes, ArtifactProblem>> {
    let is_signed = matches!(claims::peek(&bytes), Ok(Some(_)) | Err(_));
    if is_signed {
        return Ok(Ok(bytes));
    }
    let account = keys::load(&context.home, keys::ACCOUNT)?;
    let module = module_key(context, &manifest.name.value, name)?;
    let time = match fs::metadata(file).and_then(|meta| meta.modified()) {
        Ok(time) => time,
        Err(cause) => return Ok(Err(ArtifactProblem::Unreadable(cause.to_string()))),
    };
    let issued_at = time.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut claims = Claims::new(name.as_str(), &module.public(), Digest::of(&bytes).short(), issued_at);
    // Whoever writes the manifest signs here: what it opens is granted. What cannot be inspected is refused below.
    let hosts = manifest.components.get(name).into_iter().flat_map(|component| &component.allow_hosts);
    let sockets = hosts.filter_map(|host| AllowedHost::parse(&host.value)).any(|host| host.is_for_sockets());
    claims.component.granted = inspect(&bytes).ok().map(|info| claims::needed(&info.imports, sockets));
    match claims::sign(&bytes, claims, &account) {
        Ok(signed) => Ok(Ok(signed.into())),
        Err(claims::SignError::Artifact(cause)) => Ok(Err(cause.into())),
        Err(claims::SignError::NotAnAccount(key)) => {
            Err(Problem::new(Code::Forbidden, format!("the key `{}` is no account's: {key}", keys::ACCOUNT))
                .help("restore the account key, or deploy signed components with --no-sign")
                .into())
        }
        Err(cause) => Err(anyhow::Error::new(cause).context(format!("cannot sign component `{name}`"))),
    }
}

/// The key that identifies a component of an app over its versions; made on first use.
fn module_key(context: &Context, app: &AppName, component: &ComponentName) -> anyhow::Result<KeyPair> {
    let name = format!("module-{}", Digest::of(format!("{app}/{component}").as_bytes()).short());
    keys::ensure(&context.home, &name, KeyKind::Module)
}

/// The report as a problem. People get the picture on stderr, programs every finding in the envelope.
fn invalid(context: &Context, report: &Report, not_brought: Vec<Problem>) -> Problem {
    let mut problem = verdict(report, not_brought);
    if context.out.json() {
        problem.findings = report.findings.iter().map(listed).collect();
    } else {
        eprint!("{}", shown_report(report));
    }
    problem
}

/// What the report comes to. A registry that is away, or answers with other bytes, is no mistake of the manifest: where
/// nothing else is wrong it is told as what it is, and bytes that somebody changed always are.
fn verdict(report: &Report, mut not_brought: Vec<Problem>) -> Problem {
    let errors = report.findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let tampered = not_brought.iter().position(|problem| problem.code == Code::ArtifactTampered);
    match tampered.or((errors == not_brought.len()).then_some(0)) {
        Some(which) if which < not_brought.len() => not_brought.swap_remove(which),
        _ => Problem::new(Code::ManifestInvalid, report.to_string()).help("mend what is listed, then try again"),
    }
}

/// One finding on one line.
fn listed(finding: &Finding) -> String {
    let Finding { file, line, column, code, message, .. } = finding;
    let what = format!("{file}:{line}:{column} [{code}] {message}");
    finding.help.as_ref().map_or(what.clone(), |help| format!("{what}: {help}"))
}

fn shown_report(report: &Report) -> String {
    if !output::colors() {
        return report.render();
    }
    let mut text = String::new();
    let handler = miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode());
    match handler.render_report(&mut text, report) {
        Ok(()) => text,
        Err(_) => report.render(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manifest with a component from a registry that did not give it, and what else is wrong.
    fn report(rest: &str) -> Report {
        let digest = Digest::of(b"x");
        let text = format!(
            "schema = 1\nname = \"shop\"\n\n[components.main]\nsource = {{ oci = \"127.0.0.1:1/shop@{digest}\" }}\n{rest}\n\n\
             [[routes]]\nhost = \"shop.localhost\"\npath = \"/\"\ncomponent = \"main\"\n"
        );
        let found: Artifacts = [("main".parse().unwrap(), Err(ArtifactProblem::Unreadable("gone".to_owned())))].into();
        lock_draft(draft(&text, "app.toml"), &found, &TenantSettings::default()).unwrap_err()
    }

    #[test]
    fn a_registry_that_fails_is_no_mistake_of_the_manifest() {
        let away = || Problem::new(Code::Unreachable, "away").help("try later");
        let changed = || Problem::new(Code::ArtifactTampered, "changed").help("find out who");
        assert_eq!(verdict(&report(""), vec![away()]), away());
        let both = verdict(&report("limits = { cpu = \"2h\" }"), vec![away()]);
        assert_eq!(
            (both.code, both.help.is_some()),
            (Code::ManifestInvalid, true),
            "the mistake is to be mended first"
        );
        assert_eq!(verdict(&report("limits = { cpu = \"2h\" }"), vec![away(), changed()]), changed());
        assert_eq!(verdict(&report("limits = { cpu = \"2h\" }"), Vec::new()).code, Code::ManifestInvalid);
    }
}
