//! Configs that apps share. Setting one writes it, then makes a new revision of every app that names it: revisions stay
//! immutable, and each says what it ran with. What a crash leaves undone is done at the next start.

use std::collections::BTreeSet;

use api::client::Require;
use api::control::{ConfigFollowed, ConfigRequest, ConfigSet, ConfigUse, ConfigView, Origin};
use api::problem::{Code, Problem};
use model::app::LockedApp;
use model::config::{self, ENV, MAX_CONFIG, MAX_CONFIGS, Values};
use model::plan::AppId;
use model::rules::{MAX_CONFIG_ENTRIES, MAX_REVISION};
use model::{AppName, ConfigName, TenantName, rules};
use store::keys::{self, ConfigRecord, RevisionRecord};
use store::{Expect, StoreError};

use super::{Cause, SHOWN, Writer, and_more, counted, decode, encode, judge};
use crate::clock;
use crate::http::{Answer, Refusal, stopped};
use crate::named::Thing;
use crate::tokens::Caller;
use crate::turns::Turn;

/// A config that is there, and the store revision it was written at.
struct Kept {
    record: ConfigRecord,
    etag: u64,
}

/// Whether two apps are the same but for what shared configs held.
pub(super) fn same_wish(a: &LockedApp, b: &LockedApp) -> bool {
    let bare = |app: &LockedApp| {
        let mut app = app.clone();
        config::strip(&mut app);
        app
    };
    a == b || bare(a) == bare(b)
}

impl Writer {
    /// The tenant's configs, what names each, and the operator's environment.
    pub(crate) async fn configs(&self, tenant: &TenantName) -> Answer<Vec<ConfigView>> {
        self.tenant(tenant).await?;
        let mut views = Vec::new();
        if let Some(kept) = self.read(&keys::env()).await? {
            let name: ConfigName = ENV.parse().map_err(super::defect)?;
            views.push(view(name, Kept { etag: 0, ..kept }));
        }
        for entry in self.store.list(&keys::configs_of(tenant)).await?.entries {
            let Some(name) = keys::parts(&entry.key).nth(1).and_then(|name| name.parse().ok()) else { continue };
            views.push(view(name, Kept { record: decode(&entry)?, etag: entry.revision }));
            tokio::task::yield_now().await;
        }
        let apps: BTreeSet<AppName> = {
            let state = self.state.lock();
            views.iter().flat_map(|view| state.users(tenant, named(&view.name)).first(usize::MAX)).collect()
        };
        for app in apps {
            let Some(record) = self.user(tenant, app).await? else { continue };
            let names = config::names(&record.app);
            for view in views.iter_mut().filter(|view| names.contains(&view.name)) {
                view.used_by.push(used(&record, &view.name, &view.values));
                // The app was copied and compared, and it may name hundreds: this thread is everybody's.
                tokio::task::yield_now().await;
            }
        }
        Ok(views)
    }

    /// One config and what names it.
    pub(crate) async fn config(&self, tenant: &TenantName, name: &ConfigName) -> Answer<ConfigView> {
        self.tenant(tenant).await?;
        let kept = self.kept(tenant, name).await?.ok_or_else(|| none(tenant, name))?;
        self.used(tenant, view(name.clone(), kept)).await
    }

    /// Sets a config whole, and makes new revisions of the apps that name it.
    pub(crate) async fn set_config(
        &self,
        tenant: &TenantName,
        name: &ConfigName,
        request: ConfigRequest,
        require: Require,
        by: &Caller,
    ) -> Answer<ConfigSet> {
        changeable(name)?;
        let values = sound(name, request.values)?;
        self.tenant(tenant).await?;
        // Reading all users takes time, so it is done before the turn. An app that names it only since then is judged as
        // the others are when its turn comes, and the answer says what became of it.
        {
            let _look = self.look(tenant, name).await?;
            self.bearable(tenant, name, &values).await?;
        }
        let turn = self.turn(Some(by), tenant).await?;
        self.tenant(tenant).await?;
        let kept = self.kept(tenant, name).await?;
        let expect = expected(name, kept.as_ref(), require)?;
        if kept.is_none() && self.store.list(&keys::configs_of(tenant)).await?.entries.len() >= MAX_CONFIGS {
            return Err(Refusal::new(Code::RequestInvalid, format!("a tenant has at most {MAX_CONFIGS} configs"))
                .help("delete one that no app names: `sidereal config list` shows them"));
        }
        let unchanged = kept.as_ref().is_some_and(|kept| kept.record.values == values);
        let version = kept.as_ref().map_or(0, |kept| kept.record.version).saturating_add(u64::from(!unchanged));
        let updated_ms = kept.filter(|_| unchanged).map_or_else(clock::millis, |kept| kept.record.updated_ms);
        // As it is once every app has it: what is there already takes no more room, however little there is.
        let record = ConfigRecord { version, updated_ms, values, pending: false };
        let key = keys::config(tenant, name);
        self.admit(tenant, &key, encode(&record)?.len()).await?;
        let users = self.users(tenant, name);
        let (apps, etag) = self.roll_out(turn, &key, name, record, expect, users).await?;
        let kept = self.kept(tenant, name).await?.filter(|kept| Some(kept.etag) == etag).ok_or_else(|| {
            Refusal::new(Code::Conflict, format!("the config `{name}` was set again at the same moment"))
                .help("the apps that name it get the later values; look at it again, then decide anew")
        })?;
        let _look = self.look(tenant, name).await?;
        Ok(ConfigSet { config: self.used(tenant, view(name.clone(), kept)).await?, unchanged, apps })
    }

    /// Deletes a config that no app names.
    pub(crate) async fn delete_config(
        &self,
        tenant: &TenantName,
        name: &ConfigName,
        require: Require,
        by: &Caller,
    ) -> Answer<()> {
        changeable(name)?;
        let _turn = self.turn(Some(by), tenant).await?;
        self.tenant(tenant).await?;
        let kept = self.kept(tenant, name).await?.ok_or_else(|| none(tenant, name))?;
        let expect = match expected(name, Some(&kept), require)? {
            Expect::Any => Expect::Revision(kept.etag),
            other => other,
        };
        let (used, all) = {
            let state = self.state.lock();
            let users = state.users(tenant, named(name));
            (users.first(SHOWN), users.count())
        };
        if all > 0 {
            let more = and_more(used.len(), all);
            let by: Vec<String> = used.iter().map(ToString::to_string).chain(more.clone()).collect();
            let mut refusal =
                Refusal::new(Code::ConfigInUse, format!("the config `{name}` is in use by {}", by.join(", ")))
                    .help("deploy these apps without it first");
            refusal.problem.findings = used.iter().map(|app| format!("app `{app}`")).chain(more).collect();
            return Err(refusal);
        }
        self.let_go(&keys::config(tenant, name), expect).await?;
        Ok(())
    }

    /// Puts the values of the shared configs into `app`; what keeps it from that, where something does. What there is no room for is
    /// not put there: it is counted before it is copied.
    pub(crate) async fn fill(&self, tenant: &TenantName, app: &mut LockedApp) -> Answer<Option<Vec<Problem>>> {
        config::strip(app);
        let many = counted(app);
        if !many.is_empty() {
            return Ok(Some(many));
        }
        let (mut missing, mut shared) = (Vec::new(), 0_usize);
        for (name, places) in config::places(app) {
            match self.kept(tenant, &name).await? {
                Some(kept) if !config::is_env(&name) || !kept.record.values.is_empty() => {
                    let size = config::size(&kept.record.values);
                    shared = shared.saturating_add(size.saturating_mul(places));
                    if shared <= config::MAX_SHARED {
                        config::fill(app, &name, &kept.record.values);
                    }
                }
                _ if config::is_env(&name) => missing.push(
                    Problem::new(Code::ConfigMissing, "the operator offers nothing of the environment".to_owned())
                        .help("start with `sidereal up --config-env NAME`, or leave `env` out of `config-from`"),
                ),
                _ => missing.push(
                    Problem::new(Code::ConfigMissing, format!("tenant `{tenant}` has no config `{name}`"))
                        .help(format!("set it with `sidereal config set {name} key=value`, then deploy again")),
                ),
            }
        }
        if shared > config::MAX_SHARED {
            missing.push(judge::problem(rules::shared_too_large(&app.name, shared)));
        }
        Ok((!missing.is_empty()).then_some(missing))
    }

    /// Puts what the operator offers of the environment now into `app`.
    pub(super) async fn fill_env(&self, app: &mut LockedApp) -> Answer<()> {
        for name in config::names(app).into_iter().filter(config::is_env) {
            let values = self.read(&keys::env()).await?.map(|kept| kept.record.values).unwrap_or_default();
            config::fill(app, &name, &values);
        }
        Ok(())
    }

    /// At start: the environment as the operator chose it now, and what an earlier process did not finish.
    pub(crate) async fn resume_configs(&self, env: Option<Values>) -> Answer<()> {
        let name: ConfigName = ENV.parse().map_err(super::defect)?;
        let kept = self.read(&keys::env()).await?;
        let (expect, before) = match &kept {
            Some(kept) => (Expect::Revision(kept.etag), kept.record.version),
            None => (Expect::Absent, 0),
        };
        // Offered before and not any more: apps that name it go on without the values.
        let values = env.or_else(|| kept.as_ref().map(|_| Values::new()));
        if let Some(values) = values
            && kept.as_ref().is_none_or(|kept| kept.record.pending || kept.record.values != values)
        {
            let record = ConfigRecord {
                version: before.saturating_add(1),
                updated_ms: clock::millis(),
                values: sound(&name, values)?,
                pending: true,
            };
            let tenants: Vec<TenantName> = {
                let listed = self.store.list(keys::TENANTS).await?.entries;
                listed.iter().filter_map(|entry| keys::parts(&entry.key).next()?.parse().ok()).collect()
            };
            let mut users = Vec::new();
            for tenant in &tenants {
                users.extend(self.users(tenant, &name));
            }
            let turn = self.next(None).await?;
            let (apps, _) = self.roll_out(turn, &keys::env(), &name, record, expect, users).await?;
            said(&name, &apps);
        }
        for entry in self.store.list(keys::CONFIGS).await?.entries {
            let record: ConfigRecord = decode(&entry)?;
            let mut parts = keys::parts(&entry.key);
            let (Some(tenant), Some(name)) = (parts.next(), parts.next()) else { continue };
            let (Ok(tenant), Ok(name)) = (tenant.parse::<TenantName>(), name.parse::<ConfigName>()) else { continue };
            if record.pending {
                let users = self.users(&tenant, &name);
                let expect = Expect::Revision(entry.revision);
                let turn = self.turn(None, &tenant).await?;
                let (apps, _) = self.roll_out(turn, &entry.key, &name, record, expect, users).await?;
                said(&name, &apps);
            }
        }
        Ok(())
    }

    /// Writes a config as pending, makes a new revision of every app that names it, and writes it as done; answers with
    /// its etag, or none where somebody else set it meanwhile: they bring the apps theirs. The caller's turn ends with
    /// the first write, and is taken anew for each app: a tenant of thousands does not keep the others waiting, and neither
    /// does one with hundreds of configs, as its apps follow one of them after the other. An app that is deployed in between
    /// finds the new values.
    async fn roll_out(
        &self,
        turn: Turn,
        key: &str,
        name: &ConfigName,
        mut record: ConfigRecord,
        expect: Expect,
        users: Vec<AppId>,
    ) -> Answer<(Vec<ConfigFollowed>, Option<u64>)> {
        record.pending = true;
        let etag = self.keep(key, encode(&record)?, expect).await?;
        drop(turn);
        let _one = self.roll_outs.take(users.first().map(|id| &id.tenant)).await.ok_or_else(stopped)?;
        let mut followed = Vec::new();
        for id in &users {
            let seen = self.see_current(id).await.unwrap_or_default();
            let _turn = self.turn(None, &id.tenant).await?;
            if self.read(key).await?.is_none_or(|kept| kept.etag != etag) {
                return Ok((followed, None));
            }
            let before = match self.current(id).await {
                Ok(current) if config::names(&current.record.app).contains(name) => current.record,
                Ok(_) => continue,
                // Deleted meanwhile.
                Err(refusal) if refusal.problem.code == Code::NotFound => continue,
                Err(refusal) => return Err(refusal),
            };
            let mut app = before.app.clone();
            config::fill(&mut app, name, &record.values);
            let (revision, problem) = if app == before.app {
                (Some(before.revision), None)
            } else {
                let origin = Origin::Config { name: name.clone(), version: record.version };
                let cause = Cause { origin, message: None, require: Require::Any, key: None, free: false };
                let head = self.head(id).await?;
                match self.append(id, head, app, cause, &seen).await {
                    Ok(accepted) => (Some(accepted.revision), None),
                    Err(refusal) => (None, Some(refusal.problem)),
                }
            };
            followed.push(ConfigFollowed { app: id.app.clone(), revision, problem });
        }
        // Where the store failed an app, or another revision of it came in between, the next start tries it again; another
        // refusal would be one again.
        let passes = |problem: &Problem| matches!(problem.code, Code::StoreUnavailable | Code::Busy);
        let again = |one: &ConfigFollowed| one.problem.as_ref().is_some_and(passes);
        if followed.iter().any(again) {
            return Ok((followed, Some(etag)));
        }
        record.pending = false;
        match self.keep(key, encode(&record)?, Expect::Revision(etag)).await {
            Ok(etag) => Ok((followed, Some(etag))),
            Err(StoreError::Conflict { .. }) => Ok((followed, None)),
            Err(cause) => Err(cause.into()),
        }
    }

    async fn kept(&self, tenant: &TenantName, name: &ConfigName) -> Answer<Option<Kept>> {
        if config::is_env(name) {
            return Ok(self.read(&keys::env()).await?.map(|kept| Kept { etag: 0, ..kept }));
        }
        self.read(&keys::config(tenant, name)).await
    }

    async fn read(&self, key: &str) -> Answer<Option<Kept>> {
        let entry = self.store.get(key).await?;
        entry.map(|entry| Ok(Kept { record: decode(&entry)?, etag: entry.revision })).transpose()
    }

    /// The tenant's apps that name a config, as they are wanted.
    fn users(&self, tenant: &TenantName, name: &ConfigName) -> Vec<AppId> {
        let apps = self.state.lock().users(tenant, named(name)).first(usize::MAX);
        apps.into_iter().map(|app| AppId { tenant: tenant.clone(), app }).collect()
    }

    /// A place among those who read many apps; where no app names the config, there is nothing to wait for.
    async fn look(&self, tenant: &TenantName, name: &ConfigName) -> Answer<Option<Turn>> {
        if self.state.lock().users(tenant, named(name)).count() == 0 {
            return Ok(None);
        }
        self.looks.take(Some(tenant)).await.map(Some).ok_or_else(stopped)
    }

    /// One of them; none where it was deleted a moment ago.
    async fn user(&self, tenant: &TenantName, app: AppName) -> Answer<Option<RevisionRecord>> {
        match self.current(&AppId { tenant: tenant.clone(), app }).await {
            Ok(current) => Ok(Some(current.record)),
            Err(refusal) if refusal.problem.code == Code::NotFound => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// The view with what names the config.
    async fn used(&self, tenant: &TenantName, mut view: ConfigView) -> Answer<ConfigView> {
        for id in self.users(tenant, &view.name) {
            let record = self.user(tenant, id.app).await?;
            // One that names it no more has changed a moment ago.
            let record = record.filter(|record| config::names(&record.app).contains(&view.name));
            let used = record.map(|record| used(&record, &view.name, &view.values));
            view.used_by.extend(used);
        }
        Ok(view)
    }

    /// No app may get more by a config than it may have: then nothing is changed.
    async fn bearable(&self, tenant: &TenantName, name: &ConfigName, values: &Values) -> Answer<()> {
        let (mut findings, mut more) = (Vec::new(), 0usize);
        for id in self.users(tenant, name) {
            let Some(record) = self.user(tenant, id.app).await? else { continue };
            match unbearable(record.app, name, values) {
                found if found.is_empty() => {}
                found if findings.len() < SHOWN => findings.extend(found),
                _ => more = more.saturating_add(1),
            }
        }
        if findings.is_empty() {
            return Ok(());
        }
        findings.extend(and_more(0, more));
        let text = format!(
            "with these values of `{name}` an app would have more than {MAX_CONFIG_ENTRIES} entries at a component, or more than {} bytes of \
             shared configs, or be larger than {MAX_REVISION} bytes; nothing was changed",
            config::MAX_SHARED
        );
        let mut refusal =
            Refusal::new(Code::TooLarge, text).help("split the config, or put larger data behind a contract");
        refusal.problem.findings = findings;
        Err(refusal)
    }
}

fn named(name: &ConfigName) -> Thing {
    Thing::Config(name.clone())
}

/// What an app would have too much of with these values.
fn unbearable(mut app: LockedApp, name: &ConfigName, values: &Values) -> Vec<String> {
    let before = rules::size(&app);
    config::fill(&mut app, name, values);
    let entries = app.components.iter().map(|(component, locked)| (component, locked.answers().len()));
    let mut findings: Vec<String> = entries
        .filter(|(_, entries)| *entries > MAX_CONFIG_ENTRIES)
        .map(|(component, entries)| {
            format!("component `{component}` of app `{}` would have {entries} entries", app.name)
        })
        .collect();
    let (shared, size) = (config::shared_size(&app), rules::size(&app));
    if shared > config::MAX_SHARED {
        findings.push(format!("app `{}` would hold {shared} bytes of shared configs", app.name));
    } else if size > MAX_REVISION && size > before {
        findings.push(format!("a revision of app `{}` would be {size} bytes", app.name));
    }
    findings
}

fn sound(name: &ConfigName, values: Values) -> Answer<Values> {
    let problems = config::problems(&values);
    if problems.is_empty() {
        return Ok(values);
    }
    let code = if config::size(&values) > MAX_CONFIG { Code::TooLarge } else { Code::RequestInvalid };
    let mut refusal = Refusal::new(code, format!("`{name}` cannot be set: {}", problems.join("; ")))
        .help("put larger data behind a contract, for example `wasi:keyvalue`");
    refusal.problem.findings = problems;
    Err(refusal)
}

fn changeable(name: &ConfigName) -> Answer<()> {
    if !config::is_env(name) {
        return Ok(());
    }
    Err(Refusal::new(Code::RequestInvalid, "`env` is the environment of the operator's choice, and is not set here")
        .help("choose another name; the operator chooses variables with `sidereal up --config-env NAME`"))
}

fn expected(name: &ConfigName, kept: Option<&Kept>, require: Require) -> Answer<Expect> {
    match (require, kept) {
        (Require::Any, None) | (Require::Absent, _) => Ok(Expect::Absent),
        (Require::Any, Some(kept)) | (Require::Exists, Some(kept)) => Ok(Expect::Revision(kept.etag)),
        (Require::At(etag), _) => Ok(Expect::Revision(etag)),
        (Require::Exists, None) => Err(Refusal::new(Code::Conflict, format!("there is no config `{name}` to replace"))),
    }
}

/// Without what names it.
fn view(name: ConfigName, kept: Kept) -> ConfigView {
    let Kept { record: ConfigRecord { version, updated_ms, values, .. }, etag } = kept;
    ConfigView { name, values, version, updated_ms, etag, used_by: Vec::new() }
}

/// An app that names the config.
fn used(record: &RevisionRecord, name: &ConfigName, values: &Values) -> ConfigUse {
    let mut app = record.app.clone();
    config::fill(&mut app, name, values);
    ConfigUse { app: record.app.name.clone(), revision: record.revision, differs: app != record.app }
}

/// What nobody waits for is said in the log.
fn said(name: &ConfigName, apps: &[ConfigFollowed]) {
    for one in apps {
        match (&one.revision, &one.problem) {
            (Some(revision), _) => tracing::info!(config = %name, app = %one.app, %revision, "an app has the config"),
            (None, Some(problem)) => {
                tracing::warn!(config = %name, app = %one.app, %problem, "an app goes on with what it had");
            }
            (None, None) => {}
        }
    }
}

fn none(tenant: &TenantName, name: &ConfigName) -> Refusal {
    let help = if config::is_env(name) {
        "the operator offers none: `sidereal up --config-env NAME`"
    } else {
        "`sidereal config list` shows those there are"
    };
    Refusal::new(Code::NotFound, format!("tenant `{tenant}` has no config `{name}`")).help(help)
}
