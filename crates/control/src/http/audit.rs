//! The audit log over the API: its last lines, and whether it is whole.

use std::sync::Arc;

use api::Problem;
use api::control::{AuditReport, AuditView};
use api::problem::Code;
use axum::extract::State;
use axum::response::Response;
use model::TenantName;
use serde::Deserialize;
use store::audit::{Outcome, Record, Report};

use super::Api;
use super::extract::{Asked, At, json};
use super::refusal::{Answer, Refusal};
use super::system::stopped;

/// Lines that one request reads at most.
const MOST: usize = 10_000;
/// Files of the log, 16 MiB each, that are looked through for the lines of a tenant: it may have few.
const FILES: usize = 16;

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    /// At most this many lines, the newest; 100 where absent, up to 10000.
    #[serde(default = "some")]
    last: usize,
}

fn some() -> usize {
    100
}

fn view(record: Record, operator: bool) -> AuditView {
    let Record { number, time_ms, act, .. } = record;
    AuditView {
        // How much others do is nobody's business: numbers are the operator's.
        number: operator.then_some(number),
        begun: act.begun.filter(|_| operator),
        // Of a tenant's lines, what is left out is its own.
        left_out: act.left_out,
        time_ms,
        who: act.who,
        tenant: act.tenant,
        from: act.from,
        what: act.what,
        outcome: match act.outcome {
            Outcome::Begun => "begun",
            Outcome::Done => "done",
            Outcome::Refused => "refused",
            Outcome::Broken => "broken",
            Outcome::Found => "found",
        }
        .to_owned(),
        status: act.status,
        code: act.code,
    }
}

fn checked(Query { last }: &Query) -> Answer<usize> {
    match (1..=MOST).contains(last) {
        true => Ok(*last),
        false => Err(Refusal::new(Code::RequestInvalid, format!("`last` is 1 to {MOST}"))),
    }
}

/// The last lines of the audit log, oldest first.
#[utoipa::path(get, path = "/v1/audit", params(Query),
    responses((status = 200, body = Vec<AuditView>), (status = "default", body = Problem)))]
pub(super) async fn list(State(api): State<Arc<Api>>, Asked(query): Asked<Query>) -> Answer<Response> {
    let most = checked(&query)?;
    let _look = api.looks.take(None).await.ok_or_else(stopped)?;
    let found = api.audit.last(most, usize::MAX, |_| true).await?;
    Ok(json(&found.into_iter().rev().map(|record| view(record, true)).collect::<Vec<_>>()))
}

/// The last lines of the audit log that are about the tenant, oldest first.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/audit", params(("tenant" = TenantName, Path), Query),
    responses((status = 200, body = Vec<AuditView>), (status = "default", body = Problem)))]
pub(super) async fn of_tenant(
    State(api): State<Arc<Api>>,
    At(tenant): At<TenantName>,
    Asked(query): Asked<Query>,
) -> Answer<Response> {
    let most = checked(&query)?;
    let _look = api.looks.take(Some(&tenant)).await.ok_or_else(stopped)?;
    let of_it = move |record: &Record| record.act.tenant.as_ref() == Some(&tenant);
    let found = api.audit.last(most, FILES, of_it).await?;
    Ok(json(&found.into_iter().rev().map(|record| view(record, false)).collect::<Vec<_>>()))
}

/// Reads the whole audit log and says what in it is not as it was written: edited, removed, moved or cut off.
#[utoipa::path(get, path = "/v1/audit/verify",
    responses((status = 200, body = AuditReport), (status = "default", body = Problem)))]
pub(super) async fn verify(State(api): State<Arc<Api>>) -> Answer<Response> {
    let _look = api.looks.take(None).await.ok_or_else(stopped)?;
    let report = api.audit.verify().await?;
    let Report { lines, files, problems, found, tail: _ } = report;
    Ok(json(&AuditReport { lines, files, problems, found }))
}
