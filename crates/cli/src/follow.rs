//! From "recorded" to "serving": prints each transition and ends with the platform's own verdict.

use std::time::Duration;

use api::client::{ControlClient, EventQuery, Events};
use api::{Code, Problem};
use futures::StreamExt as _;
use model::app::Revision;
use model::observed::{AppObserved, Phase, Reason};
use model::{AppName, TenantName};
use serde::Serialize;
use tokio::time::timeout;

use crate::context::refused;
use crate::output::Output;

/// How long nothing may be told before it is asked anew: that an app must not run any more is no transition of it.
const LOOK: Duration = Duration::from_secs(1);

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
        let mut waits_for = None;
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
                    if verdict(observed, &self.app, revision)? {
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
                match view.reason {
                    // A node that is lost, or not there yet, may come.
                    Some(reason) if reason.code == Code::Unreachable.as_str() => waits_for = Some(reason.message),
                    Some(reason) => return Err(told(&reason).into()),
                    None => waits_for = None,
                }
                let Ok(event) = timeout(LOOK, self.events.next()).await else { continue };
                if event.transpose().map_err(refused)?.is_none() {
                    return Err(Problem::new(
                        Code::Unreachable,
                        "the control plane stopped while the app was starting",
                    )
                    .into());
                }
            }
        };
        let done = timeout(within, wait).await;
        spinner.finish_and_clear();
        done.unwrap_or_else(|_| {
            let at = waits_for.unwrap_or_else(|| last.map_or("it was not assigned to a node", word).to_owned());
            Err(Problem::new(
                Code::TimedOut,
                format!("{} revision {revision} does not serve after {} s: {at}", self.app, within.as_secs()),
            )
            .help(format!("it goes on starting by itself; `sidereal status {}` says where it stands", self.app))
            .into())
        })
    }
}

/// A reason of the platform's as the problem of a command.
fn told(reason: &Reason) -> Problem {
    let code = Code::ALL.iter().copied().find(|c| c.as_str() == reason.code).unwrap_or(Code::StartFailed);
    let mut problem = Problem::new(code, reason.message.clone());
    problem.help = reason.help.clone();
    problem
}

fn verdict(observed: &AppObserved, app: &AppName, revision: Revision) -> anyhow::Result<bool> {
    if observed.revision != revision {
        return Ok(false);
    }
    match (observed.phase, &observed.reason) {
        (Phase::Serving, _) => Ok(true),
        (Phase::Failed, Some(reason)) => {
            let mut problem = told(reason);
            if let Some(old) = observed.serving {
                problem.findings.push(format!("revision {old} goes on serving"));
            }
            // It may serve later although this command failed: whoever does not want that has to say so.
            if problem.code.may_pass() {
                let give_up = match observed.serving {
                    Some(old) => format!("`sidereal rollback {app} {old}`"),
                    None => format!("`sidereal delete {app} --confirm {app}`"),
                };
                problem.findings.push(format!("it is tried again by itself; {give_up} gives it up"));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(code: Code, serving: Option<u64>) -> Problem {
        let observed = AppObserved {
            revision: Revision(2),
            phase: Phase::Failed,
            serving: serving.map(Revision),
            reason: Some(Problem::new(code, "x").help("y").reason()),
        };
        let error = verdict(&observed, &"shop".parse().unwrap(), Revision(2)).unwrap_err();
        error.downcast::<Problem>().unwrap()
    }

    #[test]
    fn what_is_tried_again_is_said_with_how_to_give_it_up() {
        let problem = failed(Code::ProviderUnavailable, Some(1));
        assert_eq!((problem.code, problem.help.as_deref()), (Code::ProviderUnavailable, Some("y")));
        let [old, again] = problem.findings.as_slice() else { panic!("{problem:?}") };
        assert_eq!(old, "revision 1 goes on serving");
        assert!(again.contains("tried again") && again.contains("`sidereal rollback shop 1`"), "{again}");
        // There is nothing to roll back to.
        let first = failed(Code::ProviderUnavailable, None).findings;
        assert!(first.len() == 1 && first[0].contains("`sidereal delete shop --confirm shop`"), "{first:?}");
        assert!(failed(Code::ProbeFailed, None).findings.is_empty(), "the revision's own fault stays");
    }
}
