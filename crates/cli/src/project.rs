//! An app's folder: the manifest and the bytes it names, read, signed where they are local builds, and locked.

use std::collections::BTreeMap;
use std::fs;
use std::io::IsTerminal as _;
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
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let shown = file.strip_prefix(std::env::current_dir()?).unwrap_or(&file).display().to_string();
        let draft = draft(&text, &shown);
        let settings = tenant(context, client).await?;
        let mut found = Artifacts::new();
        let mut artifacts = BTreeMap::new();
        if let Some(manifest) = draft.manifest.clone() {
            for (name, component) in &manifest.components {
                let bytes = match &component.source.value {
                    ComponentSource::Path(path) => local(&folder, path).and_then(|bytes| {
                        if sign { signed(context, &manifest, name, bytes, &folder.join(path)) } else { Ok(bytes) }
                    }),
                    ComponentSource::Oci(reference) => {
                        let spinner = context.out.spinner(&format!("bringing {name} from {}", reference.registry));
                        let pulled = oci::pull(reference).await;
                        spinner.finish_and_clear();
                        Ok(Bytes::from(pulled?))
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
/// its id comes from the bytes.
fn signed(
    context: &Context,
    manifest: &Manifest,
    name: &ComponentName,
    bytes: Bytes,
    file: &Path,
) -> Result<Bytes, ArtifactProblem> {
    let is_signed = matches!(claims::peek(&bytes), Ok(Some(_)) | Err(_));
    if is_signed {
        return Ok(bytes);
    }
    let failed = |cause: String| ArtifactProblem::Unreadable(format!("cannot sign it: {cause}"));
    let account = keys::load(&context.home, keys::ACCOUNT).map_err(|cause| failed(format!("{cause:#}")))?;
    let module = module_key(context, &manifest.name.value, name).map_err(|cause| failed(format!("{cause:#}")))?;
    let time = fs::metadata(file).and_then(|meta| meta.modified()).map_err(|cause| failed(cause.to_string()))?;
    let issued_at = time.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let claims = Claims::new(name.as_str(), &module.public(), Digest::of(&bytes).short(), issued_at);
    match claims::sign(&bytes, claims, &account) {
        Ok(signed) => Ok(signed.into()),
        Err(claims::SignError::Artifact(cause)) => Err(cause.into()),
        Err(cause) => Err(failed(cause.to_string())),
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
