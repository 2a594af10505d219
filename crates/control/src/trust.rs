//! Whether an app may run: from its artifacts' bytes when it is deployed, and from what was vouched for then while it
//! runs. Nothing a client says of an artifact counts.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::problem::{Code, Problem};
use lru::LruCache;
use model::app::{LockedApp, LockedComponent};
use model::claims::{self, Claims, ClaimsError, TrustPolicy, Verdict};
use model::component::{ComponentInfo, inspect};
use model::egress::AllowedHost;
use model::plan::Wanted;
use model::rules::{self, MAX_COMPONENTS};
use model::tenant::TenantSettings;
use model::vouched::Vouched;
use model::{ComponentName, Digest, TenantName};
use store::blobs::{BlobError, Blobs};
use store::keys::RevisionRecord;

use crate::turns::Turns;

/// Artifacts whose inspection is remembered: about 2 KiB each.
const REMEMBERED: usize = 2048;
/// Artifacts that are read and inspected at once, and those of one tenant among them: each can be 50 MiB.
const AT_ONCE: (usize, usize) = (2, 1);

/// One reason to refuse an app.
pub(crate) type Finding = Problem;

/// What an artifact is, from its own bytes. The verdict was true for some tenant at some time: its signature and hash
/// hold for ever, trust and time are judged again for each use.
struct Artifact {
    size: u64,
    info: ComponentInfo,
    verdict: Verdict,
}

/// What became of reading one.
type Known = Result<Arc<Artifact>, Finding>;

/// What is known of all components of an app.
#[derive(Default)]
pub(crate) struct Vetted {
    /// For admission.
    pub(crate) infos: BTreeMap<Digest, ComponentInfo>,
    /// For the record.
    pub(crate) claims: BTreeMap<ComponentName, Claims>,
    /// What was read for it.
    pub(crate) seen: Seen,
}

/// What became of reading an app's artifacts before the turn of its change, also of those that cannot be had: in the turn
/// nothing is read, as everybody's changes would wait for that.
#[derive(Default)]
pub(crate) struct Seen(BTreeMap<Digest, Result<Arc<Artifact>, Finding>>);

/// What was read last. Where there is no more room, the tenant that has the most loses its oldest.
struct Remembered<T> {
    all: LruCache<Digest, (TenantName, T)>,
    by: HashMap<TenantName, usize>,
}

impl<T: Clone> Remembered<T> {
    fn new() -> Self {
        Self { all: LruCache::unbounded(), by: HashMap::new() }
    }

    fn get(&mut self, digest: &Digest) -> Option<T> {
        self.all.get(digest).map(|(_, artifact)| artifact.clone())
    }

    fn put(&mut self, tenant: &TenantName, digest: Digest, artifact: T) {
        if let Some((whose, _)) = self.all.put(digest, (tenant.clone(), artifact)) {
            self.one_less(&whose);
        }
        *self.by.entry(tenant.clone()).or_default() += 1;
        while self.all.len() > REMEMBERED {
            let most = self.by.iter().max_by_key(|(_, count)| **count).map(|(tenant, _)| tenant.clone());
            let Some(most) = most else { return };
            let oldest = self.all.iter().rev().find(|(_, (whose, _))| *whose == most).map(|(digest, _)| *digest);
            let Some(oldest) = oldest else { return };
            self.all.pop(&oldest);
            self.one_less(&most);
        }
    }

    fn one_less(&mut self, tenant: &TenantName) {
        if let Some(count) = self.by.get_mut(tenant) {
            *count -= 1;
            if *count == 0 {
                self.by.remove(tenant);
            }
        }
    }
}

/// Reads and judges artifacts, and remembers what it read.
pub(crate) struct Vetter {
    blobs: Blobs,
    remembered: Mutex<Remembered<Arc<Artifact>>>,
    turns: Arc<Turns>,
}

impl Vetter {
    pub(crate) fn new(blobs: Blobs) -> Self {
        let (at_once, of_tenant) = AT_ONCE;
        Self { blobs, remembered: Mutex::new(Remembered::new()), turns: Turns::new(at_once, of_tenant) }
    }

    /// Checks every artifact of an app for a tenant; all reasons against it at once. Where it is said what was `seen`,
    /// nothing is read and nobody waited for: then [`Code::Busy`] alone says that there is more to see first.
    pub(crate) async fn vet(
        &self,
        app: &LockedApp,
        (of, tenant): (&TenantName, &Arc<TenantSettings>),
        seen: Option<&Seen>,
        now: u64,
    ) -> Result<Vetted, Vec<Finding>> {
        if app.components.len() > MAX_COMPONENTS {
            let text = format!("an app has at most {MAX_COMPONENTS} components, this one has {}", app.components.len());
            return Err(vec![Problem::new(Code::ManifestInvalid, text)]);
        }
        let (mut vetted, mut findings) = (Vetted::default(), Vec::new());
        for (name, component) in &app.components {
            let artifact = match seen {
                Some(seen) => match self.seen(&component.digest, tenant, seen, now) {
                    Some(known) => known,
                    None => return Err(vec![unseen(name)]),
                },
                None => self.artifact(component.digest, (of, tenant), now).await,
            };
            match artifact {
                Ok(artifact) if artifact.size != component.size => findings.push(Problem::new(
                    Code::ManifestInvalid,
                    format!("component `{name}` is said to have {} bytes and has {}", component.size, artifact.size),
                )),
                Ok(artifact) => {
                    findings.extend(sockets(name, component, &artifact));
                    vetted.infos.insert(component.digest, artifact.info.clone());
                    vetted.seen.0.insert(component.digest, Ok(artifact.clone()));
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

    /// Reads the artifacts of an app that is about to be wanted. What speaks against it is found when it is judged.
    pub(crate) async fn see(&self, app: &LockedApp, whose: (&TenantName, &Arc<TenantSettings>), now: u64) -> Seen {
        let mut seen = Seen::default();
        for component in app.components.values().take(MAX_COMPONENTS) {
            if let Entry::Vacant(unseen) = seen.0.entry(component.digest) {
                unseen.insert(self.artifact(component.digest, whose, now).await);
            }
        }
        seen
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered<Arc<Artifact>>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An artifact that was seen or is remembered, judged by the settings of now.
    fn seen(&self, digest: &Digest, tenant: &TenantSettings, seen: &Seen, now: u64) -> Option<Known> {
        let known = seen.0.get(digest).cloned().or_else(|| self.remembered().get(digest).map(Ok))?;
        Some(known.and_then(|artifact| self.judged(artifact, digest, tenant, now)))
    }

    fn judged(&self, artifact: Arc<Artifact>, digest: &Digest, tenant: &TenantSettings, now: u64) -> Known {
        if !self.blobs.want(digest) {
            return Err(missing(BlobError::Missing(*digest)));
        }
        claims::recheck(&artifact.verdict, digest, &TrustPolicy::from(tenant), now).map_err(refused)?;
        Ok(artifact)
    }

    async fn artifact(
        &self,
        digest: Digest,
        (name, tenant): (&TenantName, &Arc<TenantSettings>),
        now: u64,
    ) -> Result<Arc<Artifact>, Finding> {
        let known = self.remembered().get(&digest);
        if let Some(artifact) = known {
            return self.judged(artifact, &digest, tenant, now);
        }
        let defect =
            |cause: &dyn std::fmt::Display| Problem::new(Code::Internal, format!("inspection stopped: {cause}"));
        let _turn = self.turns.take(Some(name)).await.ok_or_else(|| defect(&"there are no turns any more"))?;
        // Whoever was before in the row may have had it read.
        let known = self.remembered().get(&digest);
        if let Some(artifact) = known {
            return self.judged(artifact, &digest, tenant, now);
        }
        let (blobs, tenant) = (self.blobs.clone(), tenant.clone());
        let reading = tokio::task::spawn_blocking(move || read(&blobs, &digest, &tenant, now));
        let artifact = Arc::new(reading.await.map_err(|cause| defect(&cause))??);
        self.remembered().put(name, digest, artifact.clone());
        Ok(artifact)
    }
}

fn missing(cause: BlobError) -> Finding {
    crate::http::Refusal::from(cause).problem
}

/// Another change of the app came between the reading and the turn.
fn unseen(name: &ComponentName) -> Finding {
    let what = format!("component `{name}` came to be asked for while the app was being judged; nothing was changed");
    Problem::new(Code::Busy, what).help("try again")
}

fn read(blobs: &Blobs, digest: &Digest, tenant: &TenantSettings, now: u64) -> Result<Artifact, Finding> {
    let bytes = blobs.get(digest).map_err(missing)?;
    if !blobs.want(digest) {
        return Err(missing(BlobError::Missing(*digest)));
    }
    let info = inspect(&bytes).map_err(|cause| refused(cause.into()))?;
    let verdict = claims::verify(&bytes, &TrustPolicy::from(tenant), now).map_err(refused)?;
    Ok(Artifact { size: bytes.len() as u64, info, verdict })
}

/// Sockets hold nothing until an app opens addresses to them; then the signer has to have granted them.
fn sockets(name: &ComponentName, component: &LockedComponent, artifact: &Artifact) -> Option<Finding> {
    let Verdict::Signed(claims) = &artifact.verdict else { return None };
    let mut hosts = component.allow_hosts.iter().filter_map(|text| AllowedHost::parse(text));
    let opened = hosts.any(|host| host.is_for_sockets());
    let granted = claims.component.granted.as_deref().unwrap_or_default();
    let import = claims::ungranted_sockets(granted, &artifact.info.imports).filter(|_| opened)?;
    let what = format!(
        "component `{name}`: `allow-hosts` opens addresses to its sockets, and its signer did not grant {import}"
    );
    Some(Problem::new(Code::InterfaceNotGranted, what).help(
        "take the `tcp://` and `udp://` entries out, or sign it again with `--grant wasi:sockets` and what else it is granted",
    ))
}

fn refused(error: ClaimsError) -> Finding {
    let code = Code::ALL.iter().copied().find(|c| c.as_str() == error.code()).unwrap_or(Code::ArtifactInvalid);
    Problem::new(code, error.to_string()).help(error.help())
}

/// What is wanted of a revision that was recorded, judged by the tenant's settings as they are now.
pub(crate) fn wanted(record: &RevisionRecord, tenant: &TenantSettings, now: u64) -> Wanted {
    let wanted = Vouched::of(&record.app, &record.claims).judge(record.revision, tenant, now);
    match tenant.suspended.as_deref() {
        Some(why) => Wanted { denied: Some(Box::new(suspended(why).reason())), ..wanted },
        None => wanted,
    }
}

/// What an app, or whoever would change something, is told while the tenant is suspended.
pub(crate) fn suspended(why: &str) -> Problem {
    Problem::new(Code::Suspended, format!("the tenant is suspended by the operator: {why}"))
        .help("everything it has is kept; the operator ends this with `sidereal tenant resume`")
}

/// Whether [`wanted`] says the same of every app by either of two settings.
pub(crate) fn same_judgement(a: &TenantSettings, b: &TenantSettings) -> bool {
    a.trust_anchors == b.trust_anchors
        && a.revoked == b.revoked
        && a.allow_unsigned == b.allow_unsigned
        && a.suspended == b.suspended
        && a.providers.keys().eq(b.providers.keys())
}

/// Whether tenant settings can be what they say; every reason why not.
pub(crate) fn settings_problems(settings: &TenantSettings) -> Vec<String> {
    let mut problems = Vec::new();
    let most = TenantSettings::MAX_ANCHORS;
    if settings.trust_anchors.len() > most {
        problems.push(format!("there are {} trust anchors; there may be {most}", settings.trust_anchors.len()));
    }
    for anchor in settings.trust_anchors.iter().take(most) {
        match claims::PublicKey::parse(anchor) {
            Ok(key) if key.kind() == claims::KeyKind::Account => {}
            Ok(key) => problems.push(format!("trust anchor {key} is not an account's key (A…)")),
            // A mistyped anchor may be a seed: never repeat it.
            Err(cause) => problems.push(format!("a trust anchor is {cause}")),
        }
    }
    problems.extend(TenantSettings::revoked_problems(&settings.revoked));
    let (_, bad) = model::egress::Policy::of(settings);
    problems.extend(bad.into_iter().map(|cause| format!("egress: {cause}")));
    problems.extend(settings.hosts.iter().filter_map(|pattern| model::hosts::problem(pattern)));
    let shards = TenantSettings::SHARDS;
    if !shards.contains(&settings.shards) {
        problems.push(format!("shards is {}; it is {} to {}", settings.shards, shards.start(), shards.end()));
    }
    problems.extend(rules::ceiling_problems(&settings.ceilings));
    problems.extend(settings.quotas.problems());
    if settings
        .suspended
        .as_ref()
        .is_some_and(|why| why.is_empty() || why.len() > 200 || why.chars().any(char::is_control))
    {
        problems.push("suspended has 1 to 200 bytes and no control characters: it says why".to_owned());
    }
    for (name, spec) in &settings.providers {
        if rules::provider::built_in(name.as_str()).is_some() {
            problems.push(format!("provider `{name}` has the name of a built-in one"));
        }
        problems.extend(rules::provider::problems(name, spec).into_iter().map(|violation| violation.message));
    }
    let sources = rules::source::problems(&settings.providers);
    problems.extend(sources.into_iter().map(|violation| violation.message));
    problems
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn tenant(name: &str) -> TenantName {
        name.parse().unwrap()
    }

    /// A vetter that was never asked, and an app whose one artifact is no component: whoever reads it says so.
    fn unread(dir: &tempfile::TempDir) -> (Vetter, Digest, LockedApp) {
        let blobs = Blobs::open(dir.path()).unwrap();
        let digest = Digest::of(b"none");
        blobs.put(&digest, b"none").unwrap();
        let app = serde_json::json!({"name": "a", "components": {"c": {"digest": digest, "size": 4, "world": "p2",
            "imports": [], "exports": []}}});
        (Vetter::new(blobs), digest, serde_json::from_value(app).unwrap())
    }

    #[test]
    fn whoever_has_much_read_loses_its_own_first() {
        let mut remembered = Remembered::new();
        let digest = |whose: &str, n: usize| Digest::of(format!("{whose} {n}").as_bytes());
        for n in 0..10 {
            remembered.put(&tenant("one"), digest("one", n), n);
        }
        for n in 0..3 * REMEMBERED {
            remembered.put(&tenant("greedy"), digest("greedy", n), n);
        }
        assert!((0..10).all(|n| remembered.get(&digest("one", n)) == Some(n)));
        assert_eq!((remembered.all.len(), remembered.by.values().sum::<usize>()), (REMEMBERED, REMEMBERED));
        assert_eq!(remembered.get(&digest("greedy", 0)), None);
    }

    #[tokio::test]
    async fn what_was_read_before_the_turn_is_not_read_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let (vetter, digest, app) = unread(&dir);
        let (name, settings) = (tenant("t"), Arc::new(TenantSettings::default()));
        assert!(vetter.vet(&app, (&name, &settings), None, 0).await.is_err());
        let info = ComponentInfo { world: model::World::P2, imports: vec![], exports: vec![], claims: None };
        let artifact = Artifact { size: 4, info, verdict: Verdict::Unsigned };
        let seen = Seen([(digest, Ok(Arc::new(artifact)))].into());
        let unsigned = Arc::new(TenantSettings { allow_unsigned: true, ..TenantSettings::default() });
        assert!(vetter.vet(&app, (&name, &unsigned), Some(&seen), 0).await.is_ok());
    }

    #[tokio::test]
    async fn nobody_waits_in_a_row_of_readers_with_the_turn_of_all_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (vetter, _, app) = unread(&dir);
        let (name, settings) = (tenant("t"), Arc::new(TenantSettings::default()));
        let seen = vetter.see(&app, (&name, &settings), 0).await;
        // The tenant keeps its own row full.
        let _held = vetter.turns.take(Some(&name)).await;
        for (seen, code) in [(seen, Code::ArtifactInvalid), (Seen::default(), Code::Busy)] {
            let vetted = vetter.vet(&app, (&name, &settings), Some(&seen), 0);
            let findings = vetted.now_or_never().expect("it does not wait").err().unwrap();
            assert_eq!(findings.iter().map(|finding| finding.code).collect::<Vec<_>>(), [code]);
        }
        assert!(vetter.vet(&app, (&name, &settings), None, 0).now_or_never().is_none(), "outside of it one does");
    }
}
