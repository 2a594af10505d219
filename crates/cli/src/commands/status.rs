//! `status`: what runs, where it stands and why, and what it was before.

use api::Code;
use api::agent::{AppOnHost, LinkTrouble};
use api::control::{AppView, NodeView, Origin, RevisionView};
use model::app::Revision;
use model::observed::{AppObserved, Phase, Reason};
use serde::Serialize;

use crate::args::Status;
use crate::context::{Context, refused};
use crate::follow::word;
use crate::output::{moment, table};

/// Revisions that `status APP` tells of.
const HISTORY: usize = 10;

/// One app: what is wanted, what is seen, what was wanted before, and what its components did on each shard.
#[derive(Serialize)]
struct Detailed {
    #[serde(flatten)]
    view: AppView,
    /// The last ones, newest first.
    history: Vec<Past>,
    in_flight: u32,
    shards: Vec<Vec<AppOnHost>>,
}

/// A revision, without the app that it is.
#[derive(Serialize)]
struct Past {
    revision: Revision,
    created_ms: u64,
    origin: Origin,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl Past {
    fn of(view: RevisionView) -> Self {
        let RevisionView { revision, created_ms, origin, message, app: _ } = view;
        Self { revision, created_ms, origin, message }
    }

    fn row(&self) -> Vec<String> {
        let message = self.message.clone().unwrap_or_default();
        vec![format!("  {}", self.revision), moment(self.created_ms), came_by(&self.origin), message]
    }
}

/// What made a revision, in people's words.
fn came_by(origin: &Origin) -> String {
    match origin {
        Origin::Deploy => "deploy".to_owned(),
        Origin::Link => "link set".to_owned(),
        Origin::Rollback { to } => format!("rollback to {to}"),
        Origin::Provider => "provider changed".to_owned(),
        Origin::Config { name, version } => format!("config {name} version {version}"),
    }
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
        let revisions = client.revisions(&context.tenant, &app).await.map_err(refused)?;
        let shards: Vec<Vec<AppOnHost>> =
            hosts.into_iter().map(|host| host.apps.into_iter().filter(|a| a.app == app).collect()).collect();
        let components = || shards.iter().flatten().flat_map(|a| a.components.values());
        let history = revisions.into_iter().take(HISTORY).map(Past::of).collect();
        let detailed = Detailed { in_flight: components().map(|c| c.in_flight).sum(), view, history, shards };
        context.out.result(&detailed, || detail(&detailed));
        return Ok(());
    }
    let tenant = client.tenant(&context.tenant).await.map_err(refused)?;
    // Machines are the operator's; a tenant sees what runs, not where.
    let nodes = match client.nodes().await {
        Ok(nodes) => nodes,
        Err(error) => match error.problem() {
            problem if problem.code == Code::Forbidden => Vec::new(),
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
        if let Some(groups) = &node.groups {
            text.push_str(&format!("  control groups: {groups}\n"));
        }
    }
    if all.allow_unsigned {
        text.push_str(&format!("tenant {} runs unsigned components (development policy)\n", context.tenant));
    }
    if all.apps.is_empty() {
        text.push_str("\nno apps yet: `sidereal deploy` in a folder with an app.toml");
        return text;
    }
    text.push('\n');
    text.push_str(&table(&["APP", "REVISION", "STATE", "URL", "WHY"], all.apps.iter().map(row).collect()));
    text
}

/// One line of the overview. What a node says of the app is nearer to it than what the platform knows of the node.
fn row(app: &AppView) -> Vec<String> {
    let observed = app.nodes.values().next();
    let reason = observed.and_then(|o| o.reason.as_ref()).or(app.reason.as_ref());
    let state = match (observed, reason) {
        (Some(observed), _) => state(observed),
        // It is placed nowhere until that has changed.
        (None, Some(reason)) if reason.code != Code::Unreachable.as_str() => "suspended".to_owned(),
        (None, _) => "waiting for a node".to_owned(),
    };
    let reason = reason.map(|r| r.message.clone()).unwrap_or_default();
    let url = app.urls.first().cloned().unwrap_or_default();
    vec![app.name.to_string(), app.desired.revision.to_string(), state, url, reason]
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
            text.push_str(&why("    ", reason));
        }
    }
    let said = |reason: &&Reason| view.nodes.values().any(|observed| observed.reason.as_ref() == Some(*reason));
    if let Some(reason) = view.reason.as_ref().filter(|reason| !said(reason)) {
        text.push_str(&why("  ", reason));
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
    if !detailed.history.is_empty() {
        let rows = detailed.history.iter().map(Past::row).collect();
        text.push_str(&table(&["  REVISION", "WHEN", "BY", "MESSAGE"], rows));
    }
    text.trim_end().to_owned()
}

/// A reason with what to do about it, on lines of their own.
fn why(indent: &str, reason: &Reason) -> String {
    let help = reason.help.as_ref().map(|help| format!("{indent}help: {help}\n")).unwrap_or_default();
    format!("{indent}{} [{}]\n{help}", reason.message, reason.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(more: serde_json::Value) -> AppView {
        let app = serde_json::json!({ "name": "shop", "components": {} });
        let desired = serde_json::json!({ "revision": 3, "created_ms": 0, "origin": { "kind": "deploy" }, "app": app });
        let mut view = serde_json::json!({
            "tenant": "t", "name": "shop", "desired": desired, "nodes": {}, "urls": []
        });
        view.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(view).unwrap()
    }

    #[test]
    fn why_an_app_does_not_run_is_told_by_its_node_or_else_by_the_platform() {
        let lost = serde_json::json!({ "code": "unreachable", "message": "the node is lost", "help": "start it" });
        let own = serde_json::json!({ "revision": 3, "phase": "failed", "reason": { "code": "start-failed", "message": "no" } });
        let told = |view: AppView| {
            let detailed = Detailed { view, history: Vec::new(), in_flight: 0, shards: Vec::new() };
            (row(&detailed.view).pop().unwrap(), detail(&detailed))
        };
        let (short, long) = told(view(serde_json::json!({ "reason": lost })));
        assert_eq!(short, "the node is lost");
        assert!(long.contains("the node is lost [unreachable]") && long.contains("help: start it"), "{long}");
        let (short, long) = told(view(serde_json::json!({ "nodes": { "n": own }, "reason": lost })));
        assert_eq!(short, "no");
        assert!(long.contains("no [start-failed]") && long.contains("the node is lost [unreachable]"), "{long}");
        let (short, long) = told(view(serde_json::json!({ "nodes": { "n": own }, "reason": own["reason"] })));
        assert_eq!((short.as_str(), long.matches("start-failed").count()), ("no", 1), "said once: {long}");
    }

    #[test]
    fn the_last_revisions_say_what_made_them() {
        let past = |revision, origin, message: Option<&str>| Past {
            revision: Revision(revision),
            created_ms: 0,
            origin,
            message: message.map(str::to_owned),
        };
        let history = vec![past(2, Origin::Rollback { to: Revision(1) }, None), past(1, Origin::Deploy, Some("first"))];
        let shown = detail(&Detailed { view: view(serde_json::json!({})), history, in_flight: 0, shards: Vec::new() });
        let lines: Vec<&str> = shown.lines().rev().take(3).collect();
        let [first, second, head] = lines[..] else { panic!("{shown}") };
        assert!(head.trim_start().starts_with("REVISION"), "{shown}");
        assert!(second.contains("1970-01-01") && second.contains("rollback to 1"), "{shown}");
        assert!(first.contains("deploy") && first.ends_with("first"), "{shown}");
    }
}
