//! From "recorded" to "serving": prints each transition and ends with the platform's own verdict.

use std::time::Duration;

use api::client::{ControlClient, EventQuery, Events};
use api::{Code, Problem};
use futures::StreamExt as _;
use model::app::Revision;
use model::observed::{AppObserved, Phase};
use model::{AppName, TenantName};
use serde::Serialize;

use crate::context::refused;
use crate::output::Output;

/// An app that serves.
#[derive(Debug, Serialize)]
pub struct Served {
    /// The app.
    pub app: AppName,
    /// The revision that serves.
    pub revision: Revision,
    /// Nothing differed; no revision was made.
    pub unchanged: bool,
    /// Where it answers.
    pub urls: Vec<String>,
    /// From the command's start, milliseconds.
    pub ms: u64,
}

/// Watches one app. Opened before the change is made, so that no transition is missed.
pub struct Follow {
    events: Events,
    client: ControlClient,
    tenant: TenantName,
    app: AppName,
}

impl Follow {
    /// Starts watching.
    ///
    /// # Errors
    /// When the control plane cannot be reached.
    pub async fn open(client: &ControlClient, tenant: &TenantName, app: &AppName) -> anyhow::Result<Self> {
        let query = EventQuery { tenant: Some(tenant.clone()), app: Some(app.clone()), ..EventQuery::default() };
        let events = client.events(query).await.map_err(refused)?;
        Ok(Self { events, client: client.clone(), tenant: tenant.clone(), app: app.clone() })
    }

    /// Waits until `revision` serves.
    ///
    /// # Errors
    /// The reason why it does not, or `timed-out`.
    pub async fn serving(mut self, out: &Output, revision: Revision, within: Duration) -> anyhow::Result<Vec<String>> {
        let spinner = out.spinner(&format!("{} revision {revision}", self.app));
        let mut last = None;
        let wait = async {
            loop {
                let view = self.client.app(&self.tenant, &self.app).await.map_err(refused)?;
                for observed in view.nodes.values() {
                    if observed.revision == revision && last != Some(observed.phase) {
                        last = Some(observed.phase);
                        spinner.set_message(format!("{} revision {revision}: {}", self.app, word(observed.phase)));
                        // A failure is no step that was done; the error says it.
                        if observed.phase != Phase::Failed {
                            spinner.suspend(|| {
                                out.step(&format!("{} revision {revision}: {}", self.app, word(observed.phase)))
                            });
                        }
                    }
                    if verdict(observed, revision)? {
                        return Ok(view.urls);
                    }
                }
                if view.desired.revision > revision {
                    return Err(Problem::new(
                        Code::Conflict,
                        format!("revision {revision} was overtaken by revision {}", view.desired.revision),
                    )
                    .into());
                }
                if self.events.next().await.transpose().map_err(refused)?.is_none() {
                    return Err(Problem::new(
                        Code::Unreachable,
                        "the control plane stopped while the app was starting",
                    )
                    .into());
                }
            }
        };
        let done = tokio::time::timeout(within, wait).await;
        spinner.finish_and_clear();
        done.unwrap_or_else(|_| {
            let at = last.map_or("it was not assigned to a node", word);
            Err(Problem::new(
                Code::TimedOut,
                format!("{} revision {revision} does not serve after {} s: {at}", self.app, within.as_secs()),
            )
            .help(format!("`sidereal status {}` says where it stands", self.app))
            .into())
        })
    }
}

fn verdict(observed: &AppObserved, revision: Revision) -> anyhow::Result<bool> {
    if observed.revision != revision {
        return Ok(false);
    }
    match (observed.phase, &observed.reason) {
        (Phase::Serving, _) => Ok(true),
        (Phase::Failed, Some(reason)) => {
            let code = Code::ALL.iter().copied().find(|c| c.as_str() == reason.code).unwrap_or(Code::StartFailed);
            let mut problem = Problem::new(code, reason.message.clone());
            problem.help = reason.help.clone();
            if let Some(old) = observed.serving {
                problem.findings.push(format!("revision {old} goes on serving"));
            }
            Err(problem.into())
        }
        (Phase::Failed, None) => Err(Problem::new(Code::StartFailed, "the node gave no reason").into()),
        _ => Ok(false),
    }
}

/// A phase in people's words.
pub fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Fetching => "artifact checked",
        Phase::Compiling => "compiling",
        Phase::Starting => "starting",
        Phase::Probing => "probing",
        Phase::Serving => "serving",
        Phase::Draining => "draining",
        Phase::Failed => "failed",
    }
}
