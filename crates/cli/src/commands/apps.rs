//! `rollback`, `delete`, `status`: the app as a whole.

use std::time::{Duration, Instant};

use api::agent::{AppOnHost, LinkTrouble};
use api::client::Require;
use api::control::{AppView, NodeView, RollbackRequest};
use api::{Code, Problem};
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
    let view = client.app(&context.tenant, &args.app).await.map_err(refused)?;
    if args.confirm.as_ref() != Some(&args.app) {
        let mut problem = Problem::new(Code::RequestInvalid, format!("deleting `{0}` was not confirmed", args.app))
            .help(format!("sidereal delete {0} --confirm {0}", args.app));
        problem.findings = view.urls.iter().map(|url| format!("would stop answering: {url}")).collect();
        return Err(problem.into());
    }
    client.delete_app(&context.tenant, &args.app, Require::At(view.desired.revision.0)).await.map_err(refused)?;
    context.out.result(&serde_json::json!({ "app": args.app, "deleted": true }), || {
        format!("{} is deleted; its data is kept", args.app)
    });
    Ok(())
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
    let everything = Everything {
        nodes: client.nodes().await.map_err(refused)?,
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
        Some(serving) => format!("{}; revision {serving} serves", word(observed.phase)),
        None => word(observed.phase).to_owned(),
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
        text.push_str(&format!("  node {node}: revision {} {}", observed.revision, word(observed.phase)));
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
