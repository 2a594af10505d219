//! `deploy` and `plan`: from a folder with an `app.toml` to an app that serves.

use std::time::{Duration, Instant};

use api::client::{ControlClient, Require};
use api::control::{Accepted, DeployRequest};
use serde::Serialize;

use crate::args::{AppDir, Deploy};
use crate::context::{Context, refused};
use crate::follow::{Follow, Served};
use crate::output::problem_of;
use crate::project::{self, Project};

/// A result, and what is doubtful in the manifest. People saw that before.
#[derive(Serialize)]
struct WithWarnings<'r, T: Serialize> {
    #[serde(flatten)]
    what: &'r T,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'r [String],
}

/// `sidereal deploy`
///
/// # Errors
/// Every reason an app is refused or does not serve.
pub async fn deploy(context: &Context, args: Deploy) -> anyhow::Result<()> {
    let begun = Instant::now();
    let client = context.client()?;
    let project = Project::read(context, &client, &args.app, !args.no_sign).await?;
    upload(context, &client, &project).await?;
    let follow = Follow::open(&client, &context.tenant, &project.app.name).await?;
    let request = DeployRequest { app: project.app.clone(), message: args.message };
    let require = args.expect.map_or(Require::Any, |revision| Require::At(revision.0));
    // Repeating a request whose answer was lost must not make a second revision.
    let key = format!("{:032x}", rand::random::<u128>());
    let accepted =
        client.deploy(&context.tenant, &project.app.name, &request, require, Some(&key)).await.map_err(refused)?;
    let served = served(context, follow, &project, accepted, args.patience.within(), begun).await?;
    let done = WithWarnings { what: &served, warnings: &project.warnings };
    context.out.result(&done, || {
        let what = if served.unchanged { "nothing changed; serves" } else { "serves" };
        let mut text = format!("{} {what} as revision {} ({} ms)", served.app, served.revision, served.ms);
        served.urls.iter().for_each(|url| text.push_str(&format!("\n  {url}")));
        text
    });
    Ok(())
}

async fn served(
    context: &Context,
    follow: Follow,
    project: &Project,
    accepted: Accepted,
    within: Duration,
    begun: Instant,
) -> anyhow::Result<Served> {
    let urls = follow.serving(&context.out, accepted.revision, within).await?;
    let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Served { app: project.app.name.clone(), revision: accepted.revision, unchanged: accepted.unchanged, urls, ms })
}

/// Brings the artifacts that the control plane does not have.
///
/// # Errors
/// When one is refused.
pub async fn upload(context: &Context, client: &ControlClient, project: &Project) -> anyhow::Result<()> {
    for (digest, bytes) in &project.artifacts {
        if client.has_blob(&context.tenant, digest).await.map_err(refused)? {
            continue;
        }
        let spinner = context.out.spinner(&format!("uploading {} ({} KiB)", digest.short(), bytes.len() / 1024));
        let done = client.put_blob(&context.tenant, digest, bytes.clone()).await;
        spinner.finish_and_clear();
        done.map_err(refused)?;
        context.out.step(&format!("artifact {} uploaded", digest.short()));
    }
    Ok(())
}

/// Exit code of a plan whose app would be refused, or could not be looked at.
const REFUSED: u8 = 255;

/// `sidereal plan`: 0 nothing to do, 1 something, 255 it would be refused. No failure exits with 1.
///
/// # Errors
/// When the platform cannot be reached.
pub async fn plan(context: &Context, args: &AppDir) -> anyhow::Result<u8> {
    match compare(context, args).await {
        Err(error) if problem_of(&error).code.exit() == 1 => {
            context.out.failure(&problem_of(&error));
            Ok(REFUSED)
        }
        other => other,
    }
}

async fn compare(context: &Context, args: &AppDir) -> anyhow::Result<u8> {
    let client = context.client()?;
    let project = Project::read(context, &client, args, true).await?;
    upload(context, &client, &project).await?;
    let request = DeployRequest { app: project.app.clone(), message: None };
    let plan = client.plan(&context.tenant, &project.app.name, &request).await.map_err(refused)?;
    let code = match (plan.problems.is_empty(), plan.changes.is_empty()) {
        (false, _) => REFUSED,
        (true, true) => 0,
        (true, false) => 1,
    };
    context.out.result(&WithWarnings { what: &plan, warnings: &project.warnings }, || {
        let mut text = match plan.current {
            Some(revision) => format!("{} against revision {revision}", project.app.name),
            None => format!("{} is new", project.app.name),
        };
        plan.changes.iter().for_each(|change| text.push_str(&format!("\n  {change}")));
        if plan.changes.is_empty() {
            text.push_str("\n  nothing differs");
        }
        plan.problems.iter().for_each(|problem| text.push_str(&format!("\n  would be refused: {problem}")));
        text
    });
    Ok(code)
}

/// Deploys artifacts that are part of this program, and waits until they serve.
///
/// # Errors
/// As `deploy`.
pub async fn deploy_built_in(context: &Context, client: &ControlClient, project: Project) -> anyhow::Result<Served> {
    let begun = Instant::now();
    upload(context, client, &project).await?;
    let follow = Follow::open(client, &context.tenant, &project.app.name).await?;
    let request = DeployRequest { app: project.app.clone(), message: Some(project::DEMO_MESSAGE.to_owned()) };
    let accepted =
        client.deploy(&context.tenant, &project.app.name, &request, Require::Any, None).await.map_err(refused)?;
    served(context, follow, &project, accepted, Duration::from_secs(60), begun).await
}
