//! `rollback` and `delete`: the app as a whole.

use std::collections::BTreeSet;
use std::time::Instant;

use api::client::{ClientError, ControlClient, Require};
use api::control::{AppView, RollbackRequest};
use api::{Code, Problem};
use model::AppName;
use model::app::{LockedApp, ProviderKind};

use crate::args::{Delete, Rollback};
use crate::context::{Context, refused};
use crate::follow::{Follow, Served};

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
    let urls = follow.serving(&context.out, accepted.revision, args.patience.within()).await?;
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
        let purge = format!("sidereal delete {0} --confirm {0} --purge-data", args.app);
        format!("{} is deleted; its data is kept (`{purge}` removes it)", args.app)
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
