//! Moving a link to another provider: which link is meant, what the app is with it there, and, before data are copied,
//! whether that would be accepted.

use std::collections::BTreeMap;

use api::client::Require;
use api::control::{Accepted, LinkRequest, Origin};
use api::problem::Code;
use model::ProviderName;
use model::app::{LockedApp, ProviderSpec, Revision};
use model::plan::AppId;
use model::rules::provider::built_in;
use model::tenant::TenantSettings;

use super::offers::{offered, refreshed};
use super::{Cause, Writer, refuse};
use crate::http::{Answer, Refusal};

/// A link that is to be moved.
pub(crate) struct Planned {
    /// The revision it is in.
    pub(crate) revision: Revision,
    /// As it is.
    pub(crate) link: model::Link,
    /// Where it goes now.
    pub(crate) from: (ProviderName, ProviderSpec),
    /// Where it will go.
    pub(crate) to: (ProviderName, ProviderSpec),
    /// The providers that secrets of either come from.
    pub(crate) sources: BTreeMap<ProviderName, ProviderSpec>,
    /// The labels of the component's other links of this contract.
    pub(crate) others: Vec<model::Label>,
}

impl Writer {
    /// `link set`: a new revision that differs in one link's provider.
    pub(crate) async fn link(&self, id: &AppId, request: &LinkRequest, require: Require) -> Answer<Accepted> {
        let _turn = self.turn.lock().await;
        let (current, head) = self.there(id, require).await?;
        let tenant = self.tenant(&id.tenant).await?;
        let app = relinked(current.record.app, request, &tenant.settings)?;
        self.append(id, head, app, Cause { origin: Origin::Link, message: None, require, key: None }).await
    }

    /// What [`Writer::link`] would do: the link as it is, and both providers. Refuses what it would refuse.
    pub(crate) async fn planned(&self, id: &AppId, request: &LinkRequest) -> Answer<Planned> {
        let current = self.current(id).await?;
        let tenant = self.tenant(&id.tenant).await?;
        let revision = current.record.revision;
        let (index, link) = meant(&current.record.app, request)?;
        let spec =
            |app: &LockedApp, name: &ProviderName| app.providers.get(name).cloned().or_else(|| built_in(name.as_str()));
        let from = spec(&current.record.app, &link.provider);
        let mut sources =
            from.as_ref().map(|from| model::secret::sources(&current.record.app, from)).unwrap_or_default();
        let others = current.record.app.links.iter().filter(|other| {
            (&other.component, &other.contract) == (&link.component, &link.contract) && other.label != link.label
        });
        let others = others.map(|other| other.label.clone()).collect();
        let app = relinked(current.record.app, request, &tenant.settings)?;
        self.judge(id, &app, &tenant).await.map_err(refuse)?;
        let to = spec(&app, &request.provider);
        match (from, to) {
            (Some(from), Some(to)) => {
                sources.extend(model::secret::sources(&app, &to));
                let (from, to) = ((link.provider.clone(), from), (request.provider.clone(), to));
                Ok(Planned { revision, from, to, sources, link, others })
            }
            _ => Err(Refusal::new(Code::Internal, format!("link {index} names a provider that is not there"))),
        }
    }
}

/// The one link that a request means, and its place.
fn meant(app: &LockedApp, request: &LinkRequest) -> Answer<(usize, model::Link)> {
    let fits = |link: &model::Link| {
        link.contract == request.contract
            && request.component.as_ref().is_none_or(|c| *c == link.component)
            && request.label.as_ref().is_none_or(|l| *l == link.label)
    };
    let what = &request.contract;
    let mut found = (0..).zip(&app.links).filter(|(_, link)| fits(link));
    match (found.next(), found.next()) {
        (Some((index, link)), None) => Ok((index, link.clone())),
        (None, _) => {
            let there = app.links.iter().map(|l| format!("{} {} {}", l.component, l.contract, l.label));
            let there = there.collect::<Vec<_>>().join(", ");
            let help = if there.is_empty() { "it has no links".to_owned() } else { format!("its links: {there}") };
            Err(Refusal::new(Code::NotFound, format!("app `{}` has no such link of `{what}`", app.name)).help(help))
        }
        (Some(_), Some(_)) => Err(Refusal::new(Code::RequestInvalid, format!("several links of `{what}` are meant"))
            .help("name the component and the label")),
    }
}

/// The app with one link moved. Providers that the lock added for a link only go when no link names them.
fn relinked(mut app: LockedApp, request: &LinkRequest, tenant: &TenantSettings) -> Answer<LockedApp> {
    app = refreshed(app, tenant);
    let (index, _) = meant(&app, request)?;
    if let Some(link) = app.links.get_mut(index) {
        link.provider = request.provider.clone();
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
