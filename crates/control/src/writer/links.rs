//! Moving a link to another provider: which link is meant, what the app is with it there, and, before data are copied,
//! whether that would be accepted. With their data all links of one bucket move, in one revision.

use std::collections::BTreeMap;

use api::client::Require;
use api::control::{Accepted, LinkRequest, Origin};
use api::problem::Code;
use model::ProviderName;
use model::app::{LockedApp, ProviderSpec, Revision};
use model::plan::AppId;
use model::rules::provider::built_in;
use model::tenant::TenantSettings;
use store::keys::RevisionRecord;

use super::offers::{offered, refreshed};
use super::{Cause, Writer, defect, encode, refuse};
use crate::clock;
use crate::http::{Answer, Refusal};
use crate::place::{Place, goes_to, may_be, spec};
use crate::tokens::Caller;
use crate::trust::Seen;

/// A link that is to be moved with its data.
pub(crate) struct Planned {
    /// Which app of that name it is of, as [`Writer::since`] has it.
    pub(crate) since: Option<Revision>,
    /// The revision it is in.
    pub(crate) revision: Revision,
    /// As it is.
    pub(crate) link: model::Link,
    /// What it reaches; `None` where nothing of its contract is copied.
    pub(crate) place: Option<Place>,
    /// Other links that reach the same and move with it.
    pub(crate) with: Vec<model::Link>,
    /// Those that stay and reach some of it, where it is or where it goes.
    pub(crate) shared: Vec<model::Link>,
    /// Providers of those that stay and would reach it, were they the one it comes from or goes to by another name: their
    /// settings do not say that they are not.
    pub(crate) others: BTreeMap<ProviderName, ProviderSpec>,
    /// Where it goes now.
    pub(crate) from: (ProviderName, ProviderSpec),
    /// Where it will go.
    pub(crate) to: (ProviderName, ProviderSpec),
    /// The providers that secrets of either come from.
    pub(crate) sources: BTreeMap<ProviderName, ProviderSpec>,
}

/// Whether a link moves alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moves {
    /// It does.
    Alone,
    /// With its data, and with every link that reaches the same.
    WithData,
}

impl Writer {
    /// `link set`: a new revision that differs in one link's provider.
    pub(crate) async fn link(
        &self,
        id: &AppId,
        request: &LinkRequest,
        require: Require,
        by: &Caller,
    ) -> Answer<Accepted> {
        self.set(id, request, require, Moves::Alone, Some(by)).await
    }

    /// What [`Writer::planned`] said, now that the data are there.
    pub(crate) async fn moved(&self, id: &AppId, request: &LinkRequest, require: Require) -> Answer<Accepted> {
        self.set(id, request, require, Moves::WithData, None).await
    }

    async fn set(
        &self,
        id: &AppId,
        request: &LinkRequest,
        require: Require,
        moves: Moves,
        by: Option<&Caller>,
    ) -> Answer<Accepted> {
        let seen = self.see_current(id).await?;
        let _turn = self.turn(by, &id.tenant).await?;
        let (current, head) = self.there(id, require).await?;
        let tenant = self.tenant(&id.tenant).await?;
        let app = relinked(current.record.app, request, &tenant.settings, moves)?;
        self.append(
            id,
            head,
            app,
            Cause { origin: Origin::Link, message: None, require, key: None, free: false },
            &seen,
        )
        .await
    }

    /// What [`Writer::moved`] would do: the links as they are, and both providers. Refuses what it would refuse. Whoever
    /// holds the turn has `seen` the artifacts before.
    pub(crate) async fn planned(&self, id: &AppId, request: &LinkRequest, seen: Option<&Seen>) -> Answer<Planned> {
        let current = self.current(id).await?;
        let tenant = self.tenant(&id.tenant).await?;
        let (since, revision) = (current.head.since, current.record.revision);
        let mut meant = meant(&current.record.app, request, Moves::WithData)?.into_iter();
        let Some((index, link)) = meant.next() else { return Err(none(&current.record.app, request)) };
        let with: Vec<model::Link> = meant.map(|(_, link)| link).collect();
        let place = Place::of(&current.record.app, &link);
        let from = spec(&current.record.app, &link.provider);
        let mut sources =
            from.as_ref().map(|from| model::secret::sources(&current.record.app, from)).unwrap_or_default();
        let app = relinked(current.record.app.clone(), request, &tenant.settings, Moves::WithData)?;
        let claims = self.judge(id, &app, &tenant, seen).await.map_err(refuse)?.claims;
        // As it will be recorded: who has copied for hours is not refused the room for it then.
        let record = RevisionRecord {
            revision,
            previous: Some(revision),
            created_ms: clock::millis(),
            origin: serde_json::to_value(Origin::Link).map_err(defect)?,
            message: None,
            app,
            claims,
        };
        let unkept = self.unkept(id, revision, encode(&record)?.len(), &tenant.settings).await?;
        unkept.map_or(Ok(()), |problem| Err(Refusal::from(problem)))?;
        let app = record.app;
        let to = spec(&app, &request.provider);
        match (from, to) {
            (Some(from), Some(to)) => {
                sources.extend(model::secret::sources(&app, &to));
                let (from, to) = ((link.provider.clone(), from), (request.provider.clone(), to));
                let now = &current.record.app;
                let stays = now.links.iter().filter(|other| {
                    let meets = || Some(place.as_ref()?.meets(&Place::of(now, other)?));
                    let stays = **other != link && !with.contains(other) && other.contract == link.contract;
                    stays && meets() == Some(true)
                });
                let there =
                    |other: &&model::Link| [&from, &to].iter().any(|(name, spec)| goes_to(now, other, (name, spec)));
                let (shared, elsewhere): (Vec<_>, Vec<_>) = stays.partition(there);
                let others = elsewhere
                    .into_iter()
                    .filter_map(|other| Some((other.provider.clone(), spec(now, &other.provider)?)));
                let others: BTreeMap<_, _> =
                    others.filter(|(_, other)| may_be(other, &from.1) || may_be(other, &to.1)).collect();
                sources.extend(others.values().flat_map(|other| model::secret::sources(now, other)));
                let shared = shared.into_iter().cloned().collect();
                Ok(Planned { since, revision, from, to, sources, link, place, with, shared, others })
            }
            _ => Err(Refusal::new(Code::Internal, format!("link {index} names a provider that is not there"))),
        }
    }
}

/// The links that a request means, and where they are in the app: one, and with its data every other one that reaches the
/// same.
fn meant(app: &LockedApp, request: &LinkRequest, moves: Moves) -> Answer<Vec<(usize, model::Link)>> {
    let fits = |link: &model::Link| {
        link.contract == request.contract
            && request.component.as_ref().is_none_or(|c| *c == link.component)
            && request.label.as_ref().is_none_or(|l| *l == link.label)
    };
    let first = app.links.iter().find(|link| fits(link)).ok_or_else(|| none(app, request))?;
    let place = Place::of(app, first).filter(|_| moves == Moves::WithData);
    let moves = |link: &model::Link| {
        let same =
            || link.contract == first.contract && link.provider == first.provider && Place::of(app, link) == place;
        link == first || place.is_some() && same()
    };
    if app.links.iter().any(|link| fits(link) && !moves(link)) {
        let what = format!("several links of `{}` are meant", request.contract);
        return Err(Refusal::new(Code::RequestInvalid, what).help("name the component and the label"));
    }
    Ok((0..).zip(&app.links).filter(|(_, link)| moves(link)).map(|(index, link)| (index, link.clone())).collect())
}

fn none(app: &LockedApp, request: &LinkRequest) -> Refusal {
    let there = app.links.iter().map(|l| format!("{} {} {}", l.component, l.contract, l.label));
    let there = there.collect::<Vec<_>>().join(", ");
    let help = if there.is_empty() { "it has no links".to_owned() } else { format!("its links: {there}") };
    let what = format!("app `{}` has no such link of `{}`", app.name, request.contract);
    Refusal::new(Code::NotFound, what).help(help)
}

/// The app with what is meant moved. Providers that the lock added for a link only go when no link names them.
fn relinked(mut app: LockedApp, request: &LinkRequest, tenant: &TenantSettings, moves: Moves) -> Answer<LockedApp> {
    app = refreshed(app, tenant);
    for (index, _) in meant(&app, request, moves)? {
        if let Some(link) = app.links.get_mut(index) {
            link.provider = request.provider.clone();
        }
    }
    if !app.providers.contains_key(&request.provider) {
        let spec = offered(&request.provider, tenant).ok_or_else(|| {
            Refusal::new(Code::NotFound, format!("there is no provider `{}` for app `{}`", request.provider, app.name))
                .help("`sidereal provider list` shows those there are")
        })?;
        app.providers.insert(request.provider.clone(), spec);
    }
    let links = &app.links;
    app.providers.retain(|name, spec| {
        let declared = !spec.operator && built_in(name.as_str()).is_none();
        declared || links.iter().any(|link| link.provider == *name)
    });
    model::lock::add_sources(&mut app, tenant);
    Ok(app)
}
