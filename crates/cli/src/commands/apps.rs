//! `rollback`, `delete`, `status`: the app as a whole.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use api::agent::{AppOnHost, LinkTrouble};
use api::client::{ClientError, ControlClient, Require};
use api::control::{AppView, NodeView, RollbackRequest};
use api::{Code, Problem};
use model::AppName;
use model::app::{LockedApp, ProviderKind};
use model::observed::{AppObserved, Phase};
use serde::Serialize;

use crate::args::{Delete, Rollback, Status};
use crate::context::{Context, refused};
use crate::follow::{Follow, Served, word};
use crate::output::table;

/// `sidereal rollback`
///
/// # Errors
/// When there is no such revision, or it does not serve.
pub async fn rollback(context: &Context, args: Rollback) -> anyhow::Result<()> {
    let begun = Instant::now();
    let client = context.client()?;
    let follow = Follow::open(&client, &context.tenant, &args.app).await?;
    let request = RollbackRequest { to: args.to };
    let accepted = client.rollback(&context.tenant, &args.app, &request, Require::Exists).await.map_err(refused)?;
    let urls = follow.serving(&context.out, accepted.revision, Duration::from_secs(60)).await?;
    let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let served = Served { app: args.app, revision: accepted.revision, unchanged: accepted.unchanged, urls, ms };
    context.out.note("data in key-value stores is not rolled back");
    context.out.result(&served, || format!("{} serves as revision {} ({ms} ms)", served.app, served.revision));
    Ok(())
}

/// `sidereal delete`
///
/// # Errors
/// Without `--confirm`, or when there is no such app.
pub async fn delete(context: &Context, args: Delete) -> anyhow::Result<()> {
    let client = context.client()?;
    let view = match client.app(&context.tenant, &args.app).await {
        Ok(view) => Some(view),
        // Deleted before, and its data was kept then.
        Err(ClientError::Refused(problem)) if args.purge_data && problem.code == Code::NotFound => None,
        Err(cause) => return Err(refused(cause)),
    };
    if args.confirm.as_ref() != Some(&args.app) {
        let flag = if args.purge_data { " --purge-data" } else { "" };
        let mut problem = Problem::new(Code::RequestInvalid, format!("deleting `{0}` was not confirmed", args.app))
            .help(format!("sidereal delete {0} --confirm {0}{flag}", args.app));
        let urls = view.iter().flat_map(|view| &view.urls);
        problem.findings = urls.map(|url| format!("would stop answering: {url}")).collect();
        if args.purge_data {
            problem.findings.push("would be lost: its keys, objects and messages on this machine".to_owned());
        }
        return Err(problem.into());
    }
    let require = view.as_ref().map_or(Require::Any, |view| Require::At(view.desired.revision.0));
    if args.purge_data {
        return purge(context, &client, &args.app, require, view.as_ref()).await;
    }
    client.delete_app(&context.tenant, &args.app, require).await.map_err(refused)?;
    context.out.result(&serde_json::json!({ "app": args.app, "deleted": true }), || {
        format!("{0} is deleted; its data is kept (sidereal delete {0} --purge-data removes it)", args.app)
    });
    Ok(())
}

/// Deletes the app and what this machine keeps of it, and names what is elsewhere.
async fn purge(
    context: &Context,
    client: &ControlClient,
    app: &AppName,
    require: Require,
    view: Option<&AppView>,
) -> anyhow::Result<()> {
    let gone = client.delete_app_and_data(&context.tenant, app, require).await.map_err(refused)?;
    let elsewhere: BTreeSet<&str> = view.map(|view| elsewhere(&view.desired.app)).unwrap_or_default();
    let result = serde_json::json!({ "app": app, "deleted": true, "data_removed": gone, "kept_at": elsewhere });
    context.out.result(&result, || {
        let when = if gone { "is removed" } else { "goes when its last calls have ended" };
        let mut text = format!("{app} is deleted; its data on this machine {when}");
        if !elsewhere.is_empty() {
            let names = elsewhere.iter().copied().collect::<Vec<_>>().join(", ");
            text.push_str(&format!("; what it kept at {names} stays there"));
        }
        text
    });
    Ok(())
}

/// The providers of an app whose data the nodes do not keep.
fn elsewhere(app: &LockedApp) -> BTreeSet<&str> {
    let ours = |kind| {
        use ProviderKind as Kind;
        let embedded = [Kind::KeyvalueMemory, Kind::KeyvalueEmbedded, Kind::BlobstoreFolder, Kind::SqlSqlite];
        let secrets = [Kind::SecretsEmbedded, Kind::SecretsVault];
        let messages = [Kind::MessagingLocal, Kind::MessagingDurable, Kind::MessagingNats];
        // What another component keeps is in that one's own links.
        embedded.contains(&kind) || secrets.contains(&kind) || messages.contains(&kind) || kind == Kind::Component
    };
    let kept = |link: &model::Link| app.providers.get(&link.provider).is_some_and(|spec| !ours(spec.kind));
    app.links.iter().filter(|link| kept(link)).map(|link| link.provider.as_str()).collect()
}

/// One app: what is wanted, what is seen, and what its components did on each shard.
#[derive(Serialize)]
struct Detailed {
    #[serde(flatten)]
    view: AppView,
    in_flight: u32,
    shards: Vec<Vec<AppOnHost>>,
}

#[derive(Serialize)]
struct Everything {
    nodes: Vec<NodeView>,
    apps: Vec<AppView>,
    allow_unsigned: bool,
}

/// `sidereal status`
///
/// # Errors
/// When the platform cannot be reached, or there is no such app.
pub async fn status(context: &Context, args: Status) -> anyhow::Result<()> {
    let client = context.client()?;
    if let Some(app) = args.app {
        let view = client.app(&context.tenant, &app).await.map_err(refused)?;
        let hosts = client.hosts(&context.tenant).await.map_err(refused)?;
        let shards: Vec<Vec<AppOnHost>> =
            hosts.into_iter().map(|host| host.apps.into_iter().filter(|a| a.app == app).collect()).collect();
        let components = || shards.iter().flatten().flat_map(|a| a.components.values());
        let detailed = Detailed { in_flight: components().map(|c| c.in_flight).sum(), view, shards };
        context.out.result(&detailed, || detail(&detailed));
        return Ok(());
    }
    let tenant = client.tenant(&context.tenant).await.map_err(refused)?;
    // Machines are the operator's; a tenant sees what runs, not where.
    let nodes = match client.nodes().await {
        Ok(nodes) => nodes,
        Err(error) => match error.problem() {
            problem if problem.code == api::Code::Forbidden => Vec::new(),
            problem => return Err(problem.into()),
        },
    };
    let everything = Everything {
        nodes,
        apps: client.apps(&context.tenant).await.map_err(refused)?,
        allow_unsigned: tenant.settings.allow_unsigned,
    };
    context.out.result(&everything, || overview(context, &everything));
    Ok(())
}

fn overview(context: &Context, all: &Everything) -> String {
    let mut text = String::new();
    for node in &all.nodes {
        let state = if node.alive { "up" } else { "lost; what it ran is not moved" };
        text.push_str(&format!("node {} ({state}), ingress {}\n", node.name, node.ingress.join(", ")));
        if node.alive && node.waived.is_empty() {
            text.push_str(&format!("  tenants isolated by {}\n", node.layers.join(", ")));
        } else if node.alive {
            let on = if node.layers.is_empty() { "nothing".to_owned() } else { node.layers.join(", ") };
            text.push_str(&format!("  tenants isolated by {on}; NOT by:\n"));
            for (layer, why) in &node.waived {
                text.push_str(&format!("    {layer}: {why}\n"));
            }
        }
    }
    if all.allow_unsigned {
        text.push_str(&format!("tenant {} runs unsigned components (development policy)\n", context.tenant));
    }
    if all.apps.is_empty() {
        text.push_str("\nno apps yet: `sidereal deploy` in a folder with an app.toml");
        return text;
    }
    let rows = all.apps.iter().map(|app| {
        let observed = app.nodes.values().next();
        let state = observed.map_or_else(|| "waiting for a node".to_owned(), state);
        let reason = observed.and_then(|o| o.reason.as_ref()).map(|r| r.message.clone()).unwrap_or_default();
        let url = app.urls.first().cloned().unwrap_or_default();
        vec![app.name.to_string(), app.desired.revision.to_string(), state, url, reason]
    });
    text.push('\n');
    text.push_str(&table(&["APP", "REVISION", "STATE", "URL", "WHY"], rows.collect()));
    text
}

/// Where a revision stands, and which other one serves meanwhile.
fn state(observed: &AppObserved) -> String {
    match observed.serving.filter(|serving| *serving != observed.revision) {
        Some(serving) => format!("{}; revision {serving} serves", stands(observed)),
        None => stands(observed).to_owned(),
    }
}

/// In one word. What serves and has a reason beside that serves in a reduced way.
fn stands(observed: &AppObserved) -> &'static str {
    match (observed.phase, &observed.reason) {
        (Phase::Serving, Some(_)) => "degraded",
        (phase, _) => word(phase),
    }
}

/// What each shard says is wrong with a link, once per shard.
fn troubles<'a>(shards: &'a [Vec<AppOnHost>], link: &'a model::Link) -> impl Iterator<Item = (usize, &'a LinkTrouble)> {
    let of = move |trouble: &&LinkTrouble| {
        let key = &trouble.link;
        (&key.component, &key.contract, &key.label, &key.provider)
            == (&link.component, &link.contract, &link.label, &link.provider)
    };
    let shards = shards.iter().enumerate();
    shards.filter_map(move |(shard, apps)| Some((shard, apps.iter().flat_map(|app| &app.troubles).find(of)?)))
}

fn detail(detailed: &Detailed) -> String {
    let view = &detailed.view;
    let mut text = format!("{} revision {}\n", view.name, view.desired.revision);
    for (node, observed) in &view.nodes {
        text.push_str(&format!("  node {node}: revision {} {}", observed.revision, stands(observed)));
        if let Some(serving) = observed.serving.filter(|s| *s != observed.revision || observed.phase != Phase::Serving)
        {
            text.push_str(&format!("; revision {serving} serves"));
        }
        text.push('\n');
        if let Some(reason) = &observed.reason {
            text.push_str(&format!("    {} [{}]\n", reason.message, reason.code));
            if let Some(help) = &reason.help {
                text.push_str(&format!("    help: {help}\n"));
            }
        }
    }
    for url in &view.urls {
        text.push_str(&format!("  {url}\n"));
    }
    for (name, component) in &view.desired.app.components {
        text.push_str(&format!("  component {name}  {}  {}\n", component.digest.short(), component.world.as_str()));
    }
    for link in &view.desired.app.links {
        text.push_str(&format!("  link {} {} {} -> {}\n", link.component, link.contract, link.label, link.provider));
        for (shard, trouble) in troubles(&detailed.shards, link) {
            text.push_str(&format!("    does not work on shard {shard}: {} [{}]\n", trouble.reason, trouble.kind));
        }
    }
    for (shard, revisions) in detailed.shards.iter().enumerate() {
        for (name, c) in
            revisions.iter().flat_map(|r| r.components.iter().map(move |(n, c)| (format!("{n} r{}", r.revision), c)))
        {
            let loaded = if c.loaded { "loaded" } else { "not loaded" };
            text.push_str(&format!(
                "  shard {shard} {name}: {loaded}, {} in flight, {} calls, {} failed, {} refused, {} ms CPU\n",
                c.in_flight,
                c.calls,
                c.failed,
                c.refused,
                c.cpu_us / 1000
            ));
            if let Some(fault) = &c.last_fault {
                text.push_str(&format!("    last failure: {fault}\n"));
            }
        }
    }
    text.trim_end().to_owned()
}
