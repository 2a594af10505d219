//! Asks the components of a revision that name a `health` path whether they are well, before any route points to them: a
//! request like others, to the host that loaded them.

use std::sync::Arc;
use std::time::Duration;

use api::Code;
use api::shares::Shares;
use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::{Request, Response};
use model::observed::Reason;
use model::{ComponentName, LockedApp, TenantName};
use tokio::time::Instant;

use crate::ingress::call::{Room, forward};
use crate::ingress::{ShardSet, Target};
use crate::serving;
use crate::tenant::{Prepared, Tenant};

/// How long a component may go on answering that it is not well.
const WITHIN: Duration = Duration::from_secs(5);
/// The first pause before it is asked again; each is twice the one before.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of an answer that are read.
const MOST: usize = 64 * 1024;

/// What a component is asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Question {
    component: ComponentName,
    path: String,
    /// A host its routes answer for.
    host: String,
}

/// What the components of an app are asked.
pub(crate) fn questions(app: &LockedApp) -> Vec<Question> {
    let asked = |(name, component): (&ComponentName, &model::LockedComponent)| {
        let mut routes = app.routes.iter().filter(|route| route.component == *name && !route.host.starts_with('*'));
        let host = routes.next().map_or_else(|| "localhost".to_owned(), |route| route.host.clone());
        Some(Question { component: name.clone(), path: component.health.clone()?, host })
    };
    app.components.iter().filter_map(asked).collect()
}

/// Asks all of them; the first that is not well in time is the reason why the revision does not serve.
pub(crate) async fn well(tenant: &Tenant, prepared: &Prepared, shards: &Arc<ShardSet>) -> Result<(), Reason> {
    for question in &prepared.health {
        let Some(target) = serving::target(tenant, prepared, &question.component, shards.clone()) else { continue };
        let began = Instant::now();
        let mut pause = PAUSE;
        loop {
            let left = WITHIN.saturating_sub(began.elapsed());
            let said = match ask(&target, &tenant.name, question, left).await {
                Ok(answer) if answer.status().as_u16() < 400 => break,
                Ok(answer) => outcome(&answer),
                Err(cause) => cause.to_string(),
            };
            if began.elapsed() + pause >= WITHIN {
                return Err(unwell(prepared, question, &said));
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
    Ok(())
}

async fn ask(
    target: &Target,
    tenant: &TenantName,
    question: &Question,
    within: Duration,
) -> Result<Response<Bytes>, http::Error> {
    let request = Request::get(&question.path).header(HOST, &question.host).header(USER_AGENT, "sidereal-health");
    // Its own: one tenant has half of what there is.
    let room = Room { most: MOST, held: Shares::new(2 * MOST).hold(tenant) };
    Ok(forward(target, request.body(Bytes::new())?, within, room).await)
}

/// An answer in a few words.
fn outcome(answer: &Response<Bytes>) -> String {
    let fault = answer.headers().get(api::agent::FAULT_HEADER).and_then(|fault| fault.to_str().ok());
    match fault {
        Some(fault) => format!("{} ({fault})", answer.status().as_u16()),
        None => answer.status().as_u16().to_string(),
    }
}

fn unwell(prepared: &Prepared, question: &Question, said: &str) -> Reason {
    let Question { component, path, .. } = question;
    Reason {
        code: Code::ProbeFailed.as_str().to_owned(),
        message: format!(
            "component `{component}` of revision {} is not well: `GET {path}` is answered with {said}",
            prepared.revision
        ),
        help: Some(format!(
            "`sidereal logs {}` shows what it wrote; an answer below 400 to its `health` path lets it serve",
            prepared.app
        )),
    }
}
