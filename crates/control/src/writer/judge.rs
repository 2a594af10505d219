//! May this app be deployed now? Everything that speaks against it is found and told at once; nothing is changed here.

use std::collections::BTreeSet;

use api::problem::{Code, Problem};
use model::app::LockedApp;
use model::plan::AppId;
use model::{TenantName, admission, rules};
use store::keys;

use super::{Tenant, Writer};
use crate::clock;
use crate::http::{Answer, Refusal};
use crate::trust::{Seen, Vetted};

impl Writer {
    /// Reads the artifacts of an app that is about to be wanted, so that its turn does not wait for that.
    pub(super) async fn see(&self, id: &AppId, app: &LockedApp) -> Seen {
        match self.tenant(&id.tenant).await {
            Ok(tenant) => self.vetter.see(app, (&id.tenant, &tenant.settings), clock::seconds()).await,
            Err(_) => Seen::default(),
        }
    }

    /// The same of an app as it is wanted.
    pub(crate) async fn see_current(&self, id: &AppId) -> Answer<Seen> {
        Ok(self.see(id, &self.current(id).await?.record.app).await)
    }

    /// Everything that keeps an app from being deployed now. Whoever holds the turn has `seen` its artifacts before.
    pub(crate) async fn judge(
        &self,
        id: &AppId,
        app: &LockedApp,
        tenant: &Tenant,
        seen: Option<&Seen>,
    ) -> Result<Vetted, Vec<Problem>> {
        if app.name != id.app {
            let text = format!("the request is for app `{}` and contains app `{}`", id.app, app.name);
            return Err(vec![Problem::new(Code::RequestInvalid, text)]);
        }
        let vetted = self.vetter.vet(app, (&id.tenant, &tenant.settings), seen, clock::seconds()).await?;
        let routes = self.state.lock().routes_near(id, app);
        let mut violations = admission::check(app, &vetted.infos, &id.tenant, &tenant.settings, &routes);
        violations.extend(self.unfit_hosts(id, app, &tenant.settings));
        violations.extend(self.unknown_programs(app));
        let missing = self.missing_secrets(&id.tenant, app).await?;
        let over = self.state.lock().over_quota(id, app, &tenant.settings.quotas);
        let over: Vec<Problem> = over
            .into_iter()
            .map(|text| {
                Problem::new(Code::QuotaExceeded, text).help("delete what is not needed, or ask your operator for more")
            })
            .collect();
        if violations.is_empty() && missing.is_empty() && over.is_empty() {
            return Ok(vetted);
        }
        let near = |v: &rules::Violation| {
            // A collision inside the app is a mistake of its manifest, one with another app a conflict.
            let ours = v.code == rules::Code::RouteCollision && routes.is_empty();
            if ours { Code::ManifestInvalid } else { code(v.code) }
        };
        Err(violations
            .into_iter()
            .map(|v| Problem { help: v.help.clone(), ..Problem::new(near(&v), v.message.clone()) })
            .chain(missing)
            .chain(over)
            .collect())
    }

    /// Programs the app names and no node has. Before a node has said what it has, the node itself refuses them.
    fn unknown_programs(&self, app: &LockedApp) -> Vec<rules::Violation> {
        let state = self.state.lock();
        if state.nodes.is_empty() {
            return Vec::new();
        }
        let known: BTreeSet<&str> =
            state.nodes.values().flat_map(|node| node.programs.iter().map(String::as_str)).collect();
        let known: Vec<&str> = known.into_iter().collect();
        let named = app.providers.iter().filter_map(|(name, spec)| Some((name, rules::external::program(spec)?)));
        let unknown = named.filter(|(_, program)| !known.contains(program));
        unknown.map(|(name, program)| rules::external::unknown_program(name, program, &known)).collect()
    }

    /// What the app names as secrets and the tenant does not have.
    async fn missing_secrets(&self, tenant: &TenantName, app: &LockedApp) -> Result<Vec<Problem>, Vec<Problem>> {
        let uses = model::secret::uses(app);
        if uses.is_empty() {
            return Ok(Vec::new());
        }
        let there = self.secrets.list(tenant).await.map_err(|cause| vec![Refusal::from(cause).problem])?;
        let missing = uses.iter().filter(|used| there.iter().all(|info| info.name != used.secret));
        Ok(missing
            .map(|used| {
                let text =
                    format!("{} is the secret `{}`, which tenant `{tenant}` does not have", used.by, used.secret);
                Problem::new(Code::SecretMissing, text)
                    .help(format!("set it with `sidereal secret set {}`, then deploy again", used.secret))
            })
            .collect())
    }

    /// Artifacts of the app that the tenant has not sent, and that the app does not have already: to the tenant they are
    /// not there, whoever else may have them.
    pub(crate) async fn foreign(&self, id: &AppId, app: &LockedApp) -> Answer<Vec<Problem>> {
        let had: BTreeSet<_> = match self.current(id).await {
            Ok(current) => current.record.app.components.values().map(|c| c.digest).collect(),
            Err(refusal) if refusal.problem.code == Code::NotFound => BTreeSet::new(),
            Err(refusal) => return Err(refusal),
        };
        let mut missing = Vec::new();
        for (name, component) in app.components.iter().filter(|(_, c)| !had.contains(&c.digest)) {
            if self.store.get(&keys::artifact(&id.tenant, &component.digest)).await?.is_none() {
                let cause = Refusal::from(store::blobs::BlobError::Missing(component.digest)).problem.detail;
                missing.push(Problem::new(Code::ArtifactMissing, format!("component `{name}`: {cause}")));
            }
        }
        Ok(missing)
    }
}

/// What an app has more of than it may: asked before anything is read, filled in or compared for it, whoever sends it.
pub(crate) fn counted(app: &LockedApp) -> Vec<Problem> {
    rules::too_many(app).into_iter().map(|found| problem(found.violation)).collect()
}

/// A broken rule as the API says it.
pub(super) fn problem(violation: rules::Violation) -> Problem {
    Problem { help: violation.help, ..Problem::new(code(violation.code), violation.message) }
}

/// One refusal for all findings: the first one's code, and every sentence with what to do about it.
pub(crate) fn refuse(mut findings: Vec<Problem>) -> Refusal {
    if findings.is_empty() {
        return Refusal::new(Code::Internal, "refused without a reason");
    }
    let mut first = findings.remove(0);
    if !findings.is_empty() {
        first.findings = std::iter::once(&first).chain(&findings).map(whole).collect();
        first.detail = format!("the app cannot be deployed, for {} reasons", first.findings.len());
        first.help = Some("mend what is listed, then try again".to_owned());
    }
    first.into()
}

/// A finding among others: what is wrong and what to do, on one line.
pub(crate) fn whole(finding: &Problem) -> String {
    match &finding.help {
        Some(help) => format!("{}: {help}", finding.detail),
        None => finding.detail.clone(),
    }
}

/// The API's code of a broken rule.
fn code(rule: rules::Code) -> Code {
    match rule {
        rules::Code::RouteCollision | rules::Code::RouteHostTaken | rules::Code::RouteHostLeft => Code::RouteTaken,
        rules::Code::RouteHostNotGiven => Code::HostNotGiven,
        rules::Code::LimitAboveCeiling => Code::LimitAboveCeiling,
        rules::Code::ImportNotLinked | rules::Code::ImportNotOffered | rules::Code::ImportVersion => Code::LinkMissing,
        rules::Code::ArtifactUnknown | rules::Code::ArtifactMissing => Code::ArtifactMissing,
        rules::Code::ArtifactCoreModule | rules::Code::ArtifactInvalid | rules::Code::ArtifactNotWasm => {
            Code::ArtifactInvalid
        }
        _ => Code::ManifestInvalid,
    }
}
