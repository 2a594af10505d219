//! What `up` says once it is ready, and the demo that it may run: the first words of a new user's platform.

use std::time::{Duration, Instant};

use api::Code;
use api::client::ControlClient;
use model::TenantName;
use serde::Serialize;

use crate::commands::deploy::deploy_built_in;
use crate::context::Context;
use crate::demo;
use crate::follow::{Follow, Served};

/// How long an app that is there already may take to serve.
const DEMO: Duration = Duration::from_secs(60);

/// What the ready line says.
#[derive(Debug, Serialize)]
pub struct Ready {
    /// The API.
    pub api: String,
    /// The ingress.
    pub ingress: String,
    /// What Prometheus reads, where it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
    /// The process.
    pub pid: u32,
    /// From its start, milliseconds.
    pub ms: u64,
    /// The demo, where it was asked for and serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<Served>,
}

/// The demo serves. An app of its name that is there is left as its owner made it; where that one does not serve, the
/// platform runs all the same.
///
/// # Errors
/// When the platform cannot be asked, or a new one does not serve.
pub async fn the_demo(context: &Context, client: &ControlClient) -> anyhow::Result<Option<Served>> {
    let begun = Instant::now();
    let project = demo::project(context, client).await?;
    let view = match client.app(&context.tenant, &project.app.name).await {
        Ok(view) => view,
        Err(error) => match error.problem() {
            problem if problem.code == Code::NotFound => {
                return Ok(Some(deploy_built_in(context, client, project).await?));
            }
            problem => return Err(problem.into()),
        },
    };
    let revision = view.desired.revision;
    let follow = Follow::open(client, &context.tenant, &view.name).await?;
    match follow.serving(&context.out, revision, DEMO).await {
        Ok(urls) => {
            let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            Ok(Some(Served { app: view.name, revision, unchanged: true, urls, ms }))
        }
        Err(error) => {
            context.out.warn(&format!("the app `{}` that is there does not serve: {error}", view.name));
            Ok(None)
        }
    }
}

/// Where it answers, how it is stopped, and what to try next.
pub fn greeting(context: &Context, ready: &Ready, demo: bool) -> String {
    let mut text = format!("  ready in {:.2} s\n", Duration::from_millis(ready.ms).as_secs_f64());
    if let Some(app) = &ready.app {
        for url in &app.urls {
            text.push_str(&format!("  app      {url}\n"));
        }
    }
    text.push_str(&format!("  ingress  http://{}\n  api      {}\n  stop     Ctrl-C\n", ready.ingress, ready.api));
    // Each of them works as it stands, whatever folder this is.
    let next = match (&ready.app, demo) {
        (Some(_), _) => {
            "link set counter wasi:keyvalue=memory   (in another terminal: swaps its store, nothing restarts)"
        }
        (None, true) => "status counter   (in another terminal: why it does not serve)",
        (None, false) => {
            "up --demo   (after Ctrl-C: runs an example; in another terminal, `deploy FOLDER` runs an app.toml of yours)"
        }
    };
    let mut program = program();
    if !context.home.is_usual() {
        program.push_str(&format!(" --data-dir {}", context.home.dir().display()));
    }
    if context.tenant != TenantName::local() {
        program.push_str(&format!(" --tenant {}", context.tenant));
    }
    text.push_str(&format!("  next     {program} {next}"));
    text
}

/// How the user can start this program again: by name where it is on the `PATH`, else by its file.
fn program() -> String {
    let Ok(own) = std::env::current_exe() else { return "sidereal".to_owned() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let named = std::env::split_paths(&path).map(|dir| dir.join("sidereal")).find(|file| file.is_file());
    if named.and_then(|file| file.canonicalize().ok()) == Some(own.clone()) {
        return "sidereal".to_owned();
    }
    let here = std::env::current_dir().unwrap_or_default();
    match own.strip_prefix(&here) {
        Ok(below) => format!("./{}", below.display()),
        Err(_) => own.display().to_string(),
    }
}
