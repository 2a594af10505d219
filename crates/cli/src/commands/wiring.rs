//! `link`, `provider`, `route`: what is connected to what.

use std::collections::BTreeMap;
use std::time::Instant;

use api::client::{ControlClient, Require};
use api::control::{ContractView, LinkRequest, ProviderType, TenantView};
use api::{Code, Problem};
use model::tenant::TenantSettings;
use model::{AppName, ProviderKind, ProviderName, ProviderSpec, TenantName};

use crate::args::{LinkCommand, ProviderCommand, RouteCommand};
use crate::commands::moving;
use crate::context::{Context, refused};
use crate::follow::{Follow, Served};
use crate::output::table;

/// `sidereal link`
///
/// # Errors
/// When there is no such link or provider, or the app does not serve with it.
pub async fn link(context: &Context, command: LinkCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        LinkCommand::Set { app, link, component, copy_data: Some(extra), .. } => {
            moving::copy_and_link(context, &client, app, link, component, extra).await?;
        }
        LinkCommand::Set { app, link, component, copy_data: None, patience } => {
            let begun = Instant::now();
            let follow = Follow::open(&client, &context.tenant, &app).await?;
            let provider = link.provider.clone();
            let request =
                LinkRequest { component, contract: link.contract, label: link.label, provider: link.provider };
            let accepted = client.link(&context.tenant, &app, &request, Require::Exists).await.map_err(refused)?;
            let urls = follow.serving(&context.out, accepted.revision, patience.within()).await?;
            let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            context
                .out
                .note("keys are not copied: the new provider answers with what it has (`--copy-data` copies them)");
            let served = Served { app, revision: accepted.revision, unchanged: accepted.unchanged, urls, ms };
            context.out.result(&served, || {
                format!(
                    "{}: {} is answered by {provider} from revision {} on ({ms} ms)",
                    served.app, request.contract, served.revision
                )
            });
        }
        LinkCommand::List { app } => list_links(context, &client, app).await?,
    }
    Ok(())
}

async fn list_links(context: &Context, client: &ControlClient, app: Option<AppName>) -> anyhow::Result<()> {
    let apps = match app {
        Some(app) => vec![client.app(&context.tenant, &app).await.map_err(refused)?],
        None => client.apps(&context.tenant).await.map_err(refused)?,
    };
    let links: Vec<serde_json::Value> = apps
        .iter()
        .flat_map(|app| {
            app.desired.app.links.iter().map(move |link| serde_json::json!({ "app": app.name, "link": link }))
        })
        .collect();
    let rows = apps.iter().flat_map(|app| {
        app.desired.app.links.iter().map(move |link| {
            vec![
                app.name.to_string(),
                link.component.to_string(),
                link.contract.to_string(),
                link.label.to_string(),
                link.provider.to_string(),
            ]
        })
    });
    let rows: Vec<_> = rows.collect();
    context.out.result(&links, || {
        if rows.is_empty() {
            "no links".to_owned()
        } else {
            table(&["APP", "COMPONENT", "CONTRACT", "LABEL", "PROVIDER"], rows)
        }
    });
    Ok(())
}

/// `sidereal provider`
///
/// # Errors
/// When the settings are refused, or a provider that is removed is linked.
pub async fn provider(context: &Context, command: ProviderCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        ProviderCommand::List { contracts: true } => {
            let contracts = client.contracts().await.map_err(refused)?;
            context.out.result(&contracts, || offered(&contracts));
        }
        ProviderCommand::List { contracts: false } => {
            let providers = client.providers(&context.tenant).await.map_err(refused)?;
            let rows = providers.iter().map(|p| {
                vec![
                    p.name.to_string(),
                    p.kind.as_str().to_owned(),
                    p.contract.clone(),
                    p.from.clone(),
                    p.links.join(", "),
                ]
            });
            let rows = rows.collect();
            context.out.result(&providers, || table(&["PROVIDER", "TYPE", "CONTRACT", "FROM", "LINKED BY"], rows));
        }
        ProviderCommand::Add { name, kind, url, settings, secrets } => {
            let known = ProviderKind::ALL.iter().copied().find(|k| k.as_str() == kind);
            let kind = known.ok_or_else(|| {
                let names: Vec<&str> = ProviderKind::ALL.iter().map(|k| k.as_str()).collect();
                Problem::new(Code::RequestInvalid, format!("there is no provider type `{kind}`"))
                    .help(format!("one of {}", names.join(", ")))
            })?;
            let config: BTreeMap<String, String> =
                url.map(|url| ("url".to_owned(), url)).into_iter().chain(settings).collect();
            let secrets = secrets.into_iter().collect();
            let spec = ProviderSpec { config, secrets, operator: true, ..ProviderSpec::new(kind) };
            replaceable(context, &client, &name, kind).await?;
            change(context, &client, &context.tenant, |settings| {
                settings.providers.insert(name.clone(), spec.clone());
                Ok(())
            })
            .await?;
            context.out.result(&serde_json::json!({ "provider": name, "type": kind }), || {
                let contracts = spec.contracts();
                let first = contracts.first().copied().unwrap_or_default();
                format!("{name} answers {}: `sidereal link set APP {first}={name}`", contracts.join(", "))
            });
        }
        ProviderCommand::Remove { name } => {
            let views = client.providers(&context.tenant).await.map_err(refused)?;
            let view = views.iter().find(|p| p.name == name && p.from == "operator").ok_or_else(|| {
                Problem::new(Code::NotFound, format!("the operator offers no provider `{name}`"))
                    .help("`sidereal provider list` shows them")
            })?;
            if !view.links.is_empty() {
                let mut problem =
                    Problem::new(Code::Conflict, format!("`{name}` is linked")).help("move the links first");
                problem.findings = view.links.clone();
                return Err(problem.into());
            }
            change(context, &client, &context.tenant, |settings| {
                settings.providers.remove(&name);
                Ok(())
            })
            .await?;
            context
                .out
                .result(&serde_json::json!({ "provider": name, "removed": true }), || format!("{name} is withdrawn"));
        }
    }
    Ok(())
}

/// Two tables: what may be imported, and who answers what goes by link.
fn offered(contracts: &[ContractView]) -> String {
    let rows = contracts.iter().map(|c| {
        let version = if c.track { format!("{} and its line", c.version) } else { c.version.clone() };
        let link = if c.by_link { "by link" } else { "always" };
        vec![c.contract.clone(), version, link.to_owned(), c.interfaces.join(" ")]
    });
    let mut providers: Vec<(&str, &ProviderType)> =
        contracts.iter().flat_map(|c| c.providers.iter().map(|p| (c.contract.as_str(), p))).collect();
    // A contract can be offered in several versions, by the same providers.
    providers.dedup_by(|a, b| a.0 == b.0 && a.1.kind == b.1.kind);
    let types = providers.into_iter().map(|(contract, p)| {
        let name = p.built_in_as.clone().unwrap_or_default();
        let texts = [p.durability.clone(), p.atomicity.clone(), p.reach.clone()];
        [vec![contract.to_owned(), p.kind.as_str().to_owned(), name], texts.to_vec()].concat()
    });
    format!(
        "{}\n\n{}",
        table(&["CONTRACT", "VERSION", "THERE", "INTERFACES"], rows.collect()),
        table(&["CONTRACT", "TYPE", "BUILT IN AS", "SURVIVES", "AT ONCE", "SHARED WITH"], types.collect())
    )
}

/// A provider that is linked keeps its type: another one would answer with other data, or another contract.
async fn replaceable(
    context: &Context,
    client: &ControlClient,
    name: &ProviderName,
    kind: ProviderKind,
) -> anyhow::Result<()> {
    let views = client.providers(&context.tenant).await.map_err(refused)?;
    let taken = views.iter().find(|p| p.name == *name && p.from == "operator" && p.kind != kind && !p.links.is_empty());
    let Some(view) = taken else { return Ok(()) };
    let detail = format!("`{name}` is linked and of type {}; it cannot become {}", view.kind.as_str(), kind.as_str());
    let mut problem = Problem::new(Code::Conflict, detail).help("add it under another name, or move the links first");
    problem.findings = view.links.clone();
    Err(problem.into())
}

/// `sidereal route`
///
/// # Errors
/// When the platform cannot be reached, or nobody gave up the host that is to be freed.
pub async fn route(context: &Context, command: RouteCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    let app = match command {
        RouteCommand::List { app } => app,
        RouteCommand::Free { host } => {
            client.free_host(&host).await.map_err(refused)?;
            context.out.result(&serde_json::json!({ "host": host, "freed": true }), || {
                format!("{host} is free: a tenant that may have it gets it with its next deploy")
            });
            return Ok(());
        }
    };
    let mut routes = client.routes(&context.tenant).await.map_err(refused)?;
    routes.retain(|route| app.as_ref().is_none_or(|app| *app == route.app));
    let rows: Vec<_> = routes
        .iter()
        .map(|r| {
            let methods = if r.route.methods.is_empty() { "all".to_owned() } else { r.route.methods.join(",") };
            vec![r.app.to_string(), methods, r.urls.join(" "), r.route.component.to_string()]
        })
        .collect();
    context.out.result(&routes, || {
        if rows.is_empty() { "no routes".to_owned() } else { table(&["APP", "METHODS", "URL", "COMPONENT"], rows) }
    });
    Ok(())
}

/// Reads, changes and writes the settings of a tenant that is there; tries again when somebody else was faster. Says where they
/// are not carried out yet.
pub(super) async fn change(
    context: &Context,
    client: &ControlClient,
    tenant: &TenantName,
    edit: impl Fn(&mut TenantSettings) -> Result<(), Problem>,
) -> anyhow::Result<TenantView> {
    loop {
        let TenantView { mut settings, etag, .. } = client.tenant(tenant).await.map_err(refused)?;
        edit(&mut settings)?;
        match client.put_tenant(tenant, &settings, Require::At(etag)).await {
            Ok(view) => {
                if view.pending {
                    context.out.warn(&format!(
                        "this is written, and not everything of {tenant} that runs follows it yet; `sidereal tenant show {tenant}` says so \
                         for as long as that takes"
                    ));
                }
                return Ok(view);
            }
            Err(error) => match error.problem() {
                problem if problem.code == Code::Conflict => {}
                problem => return Err(problem.into()),
            },
        }
    }
}
