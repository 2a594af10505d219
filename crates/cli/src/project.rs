//! An app's folder: the manifest and the bytes it names, read, signed where they are local builds, and locked.

use std::collections::BTreeMap;
use std::fs;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use api::client::ControlClient;
use api::{Code, Problem};
use bytes::Bytes;
use model::claims::keys::{KeyKind, KeyPair};
use model::claims::{self, Claims};
use model::component::{MAX_COMPONENT, inspect};
use model::lock::{ArtifactFacts, ArtifactProblem, Artifacts, Locked, lock_draft};
use model::manifest::{ComponentSource, Manifest, Report, draft};
use model::rules::MAX_MANIFEST;
use model::tenant::TenantSettings;
use model::{AppName, ComponentName, Digest, LockedApp};

use crate::args::AppDir;
use crate::context::{Context, refused};
use crate::{keys, oci};

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
        if let Some(manifest) = draft.manifest.clone() {
            for (name, component) in &manifest.components {
                let bytes = match &component.source.value {
                    ComponentSource::Path(path) => match local(&folder, path) {
                        Ok(bytes) if sign => signed(context, &manifest, name, bytes, &folder.join(path))?,
                        other => other,
                    },
                    ComponentSource::Oci(reference) => {
                        let spinner = context.out.spinner(&format!("bringing {name} from {}", reference.registry));
                        let pulled = oci::pull(reference).await;
                        spinner.finish_and_clear();
                        // The others are looked at all the same, so that one report has every problem.
                        pulled.map(Bytes::from).map_err(|cause| ArtifactProblem::Unreadable(format!("{cause:#}")))
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
                Ok(Self { app, artifacts })
            }
            Err(report) => Err(invalid(context, &report).into()),
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
        Ok(Self { app: locked.app, artifacts })
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
            .help("go to a folder with an app.toml, or name one: `sidereal deploy examples/counter`")
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
    let claims = Claims::new(name.as_str(), &module.public(), Digest::of(&bytes).short(), issued_at);
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
fn invalid(context: &Context, report: &Report) -> Problem {
    let mut problem =
        Problem::new(Code::ManifestInvalid, report.to_string()).help("mend what is listed, then try again");
    if context.out.json() {
        problem.findings = report
            .findings
            .iter()
            .map(|f| format!("{}:{}:{} [{}] {}", f.file, f.line, f.column, f.code, f.message))
            .collect();
    } else {
        eprint!("{}", shown_report(report));
    }
    problem
}

fn shown_report(report: &Report) -> String {
    if !std::io::stderr().is_terminal() || std::env::var_os("NO_COLOR").is_some() {
        return report.render();
    }
    let mut text = String::new();
    match miette::GraphicalReportHandler::new().render_report(&mut text, report) {
        Ok(()) => text,
        Err(_) => report.render(),
    }
}
