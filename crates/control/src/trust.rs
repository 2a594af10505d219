//! Whether an app may run: from its artifacts' bytes when it is deployed, and from what was vouched for then while it
//! runs. Nothing a client says of an artifact counts.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use api::problem::{Code, Problem};
use lru::LruCache;
use model::app::LockedApp;
use model::claims::{self, Claims, ClaimsError, LEEWAY, TrustPolicy, Verdict};
use model::component::{ComponentInfo, inspect};
use model::observed::Reason;
use model::plan::{Expiry, Wanted};
use model::rules::MAX_COMPONENTS;
use model::tenant::TenantSettings;
use model::{ComponentName, Digest};
use store::blobs::{BlobError, Blobs};
use store::keys::RevisionRecord;
use tokio::sync::Semaphore;

/// Artifacts whose inspection is remembered: about 2 KiB each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2047);
/// Artifacts that are read and inspected at once: each can be 50 MiB.
const AT_ONCE: usize = 2;

/// One reason to refuse an app.
pub(crate) type Finding = Problem;

/// What an artifact is, from its own bytes. The verdict was true for some tenant at some time: its signature and hash
/// hold for ever, trust and time are judged again for each use.
struct Artifact {
    size: u64,
    info: ComponentInfo,
    verdict: Verdict,
}

/// What is known of all components of an app.
#[derive(Default)]
pub(crate) struct Vetted {
    /// For admission.
    pub(crate) infos: BTreeMap<Digest, ComponentInfo>,
    /// For the record.
    pub(crate) claims: BTreeMap<ComponentName, Claims>,
}

/// Reads and judges artifacts, and remembers what it read.
pub(crate) struct Vetter {
    blobs: Blobs,
    remembered: Mutex<LruCache<Digest, Arc<Artifact>>>,
    turns: Semaphore,
}

impl Vetter {
    pub(crate) fn new(blobs: Blobs) -> Self {
        Self { blobs, remembered: Mutex::new(LruCache::new(REMEMBERED)), turns: Semaphore::new(AT_ONCE) }
    }

    /// Checks every artifact of an app for a tenant; all reasons against it at once.
    pub(crate) async fn vet(
        &self,
        app: &LockedApp,
        tenant: &Arc<TenantSettings>,
        now: u64,
    ) -> Result<Vetted, Vec<Finding>> {
        if app.components.len() > MAX_COMPONENTS {
            let text = format!("an app has at most {MAX_COMPONENTS} components, this one has {}", app.components.len());
            return Err(vec![Problem::new(Code::ManifestInvalid, text)]);
        }
        let (mut vetted, mut findings) = (Vetted::default(), Vec::new());
        for (name, component) in &app.components {
            match self.artifact(component.digest, tenant, now).await {
                Ok(artifact) if artifact.size != component.size => findings.push(Problem::new(
                    Code::ManifestInvalid,
                    format!("component `{name}` is said to have {} bytes and has {}", component.size, artifact.size),
                )),
                Ok(artifact) => {
                    vetted.infos.insert(component.digest, artifact.info.clone());
                    if let Verdict::Signed(claims) = &artifact.verdict {
                        vetted.claims.insert(name.clone(), claims.clone());
                    }
                }
                Err(mut finding) => {
                    finding.detail = format!("component `{name}`: {}", finding.detail);
                    findings.push(finding);
                }
            }
        }
        if findings.is_empty() { Ok(vetted) } else { Err(findings) }
    }

    async fn artifact(&self, digest: Digest, tenant: &Arc<TenantSettings>, now: u64) -> Result<Arc<Artifact>, Finding> {
        let known = self.remembered.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned();
        if let Some(artifact) = known.filter(|_| self.blobs.want(&digest)) {
            claims::recheck(&artifact.verdict, &digest, &TrustPolicy::from(&**tenant), now).map_err(refused)?;
            return Ok(artifact);
        }
        let defect =
            |cause: &dyn std::fmt::Display| Problem::new(Code::Internal, format!("inspection stopped: {cause}"));
        let _turn = self.turns.acquire().await.map_err(|cause| defect(&cause))?;
        let (blobs, tenant) = (self.blobs.clone(), tenant.clone());
        let reading = tokio::task::spawn_blocking(move || read(&blobs, &digest, &tenant, now));
        let artifact = Arc::new(reading.await.map_err(|cause| defect(&cause))??);
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).put(digest, artifact.clone());
        Ok(artifact)
    }
}

fn read(blobs: &Blobs, digest: &Digest, tenant: &TenantSettings, now: u64) -> Result<Artifact, Finding> {
    let missing = |cause| crate::http::Refusal::from(cause).problem;
    let bytes = blobs.get(digest).map_err(missing)?;
    if !blobs.want(digest) {
        return Err(missing(BlobError::Missing(*digest)));
    }
    let info = inspect(&bytes).map_err(|cause| refused(cause.into()))?;
    let verdict = claims::verify(&bytes, &TrustPolicy::from(tenant), now).map_err(refused)?;
    Ok(Artifact { size: bytes.len() as u64, info, verdict })
}

fn refused(error: ClaimsError) -> Finding {
    let code = Code::ALL.iter().copied().find(|c| c.as_str() == error.code()).unwrap_or(Code::ArtifactInvalid);
    Problem::new(code, error.to_string()).help(error.help())
}

/// What is wanted of a revision that was recorded, judged by the tenant's settings as they are now.
pub(crate) fn wanted(record: &RevisionRecord, tenant: &TenantSettings, now: u64) -> Wanted {
    let policy = TrustPolicy::from(tenant);
    let mut denied = tenant.suspended.as_deref().map(|why| suspended(why).reason());
    let mut expiry = None::<Expiry>;
    for (name, component) in &record.app.components {
        let verdict = record.claims.get(name).cloned().map_or(Verdict::Unsigned, Verdict::Signed);
        match claims::recheck(&verdict, &component.digest, &policy, now) {
            // Time is the plan's: it suspends at the right second. A clock that went back does not undo a start.
            Ok(()) | Err(ClaimsError::Expired { .. } | ClaimsError::NotYetValid { .. }) => {}
            Err(error) => {
                denied.get_or_insert_with(|| reason(name, &error));
            }
        }
        if let Verdict::Signed(Claims { expires: Some(at), .. }) = verdict {
            let at = at.saturating_add(LEEWAY);
            if expiry.as_ref().is_none_or(|e| at < e.at) {
                expiry = Some(Expiry { at, component: name.clone() });
            }
        }
    }
    for (name, spec) in &record.app.providers {
        if spec.operator && !tenant.providers.contains_key(name) {
            denied.get_or_insert_with(|| Reason {
                code: Code::ProviderUnavailable.as_str().to_owned(),
                message: format!("the operator no longer offers provider `{name}` to this tenant"),
                help: Some("link to another provider: sidereal link set".to_owned()),
            });
        }
    }
    Wanted { revision: record.revision, denied: denied.map(Box::new), expiry: expiry.map(Box::new) }
}

/// What an app, or whoever would change something, is told while the tenant is suspended.
pub(crate) fn suspended(why: &str) -> Problem {
    Problem::new(Code::Suspended, format!("the tenant is suspended by the operator: {why}"))
        .help("everything it has is kept; the operator ends this with `sidereal tenant resume`")
}

fn reason(component: &ComponentName, error: &ClaimsError) -> Reason {
    Reason {
        code: error.code().to_owned(),
        message: format!("component `{component}`: {error}"),
        help: Some(error.help().to_owned()),
    }
}

/// Whether tenant settings can be what they say; every reason why not.
pub(crate) fn settings_problems(settings: &TenantSettings) -> Vec<String> {
    let mut problems = Vec::new();
    for anchor in &settings.trust_anchors {
        match claims::PublicKey::parse(anchor) {
            Ok(key) if key.kind() == claims::KeyKind::Account => {}
            Ok(key) => problems.push(format!("trust anchor {key} is not an account's key (A…)")),
            // A mistyped anchor may be a seed: never repeat it.
            Err(cause) => problems.push(format!("a trust anchor is {cause}")),
        }
    }
    for entry in &settings.revoked {
        if entry.is_empty() || entry.len() > 256 || !entry.bytes().all(|b| b.is_ascii_graphic()) {
            problems.push("a revoked entry is a key (A…, M…), a token id or a digest (sha256:…)".to_owned());
        } else if entry.starts_with("sha256:") && entry.parse::<Digest>().is_err() {
            problems.push(format!("revoked entry `{entry}` is not a whole digest"));
        }
    }
    let (_, bad) = model::egress::Policy::of(settings);
    problems.extend(bad.into_iter().map(|cause| format!("egress: {cause}")));
    if !(1..=64).contains(&settings.shards) {
        problems.push(format!("shards is {}; it is 1 to 64", settings.shards));
    }
    problems.extend(settings.quotas.problems());
    if settings
        .suspended
        .as_ref()
        .is_some_and(|why| why.is_empty() || why.len() > 200 || why.chars().any(char::is_control))
    {
        problems.push("suspended has 1 to 200 bytes and no control characters: it says why".to_owned());
    }
    for (name, spec) in &settings.providers {
        if model::rules::provider::built_in(name.as_str()).is_some() {
            problems.push(format!("provider `{name}` has the name of a built-in one"));
        }
        problems.extend(model::rules::provider::problems(name, spec).into_iter().map(|violation| violation.message));
    }
    let sources = model::rules::source::problems(&settings.providers);
    problems.extend(sources.into_iter().map(|violation| violation.message));
    problems
}
