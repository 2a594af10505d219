//! `flows`: what was decided about a tenant's outgoing connections.

use api::flows::{FlowQuery, FlowRecord};
use futures::StreamExt as _;

use crate::args::Flows;
use crate::context::{Context, broken_off, refused};
use crate::output::{clock, stdout};

/// `sidereal flows`
///
/// # Errors
/// When there is no such tenant; with `--follow`, when the platform stops or the token ends.
pub async fn flows(context: &Context, args: Flows) -> anyhow::Result<()> {
    let query = FlowQuery {
        app: args.app,
        verdict: args.verdict,
        since: args.since,
        last: args.last.unwrap_or(if args.since.is_some() { 10_000 } else { 100 }),
        follow: args.follow,
    };
    let mut records = context.client()?.flows(&context.tenant, query).await.map_err(refused)?;
    let mut any = false;
    while let Some(record) = records.next().await {
        let record = record.map_err(refused)?;
        any = true;
        if record.missed > 0 {
            context
                .out
                .note(&format!("{} records came faster than they were read and are missing here", record.missed));
        }
        if context.out.json() { context.out.result(&record, String::new) } else { stdout(&pretty(&record)) }
    }
    if args.follow {
        return Err(broken_off(&format!("the connections of {}", context.tenant)));
    }
    if !any {
        context.out.note(&format!("{} has opened no connection of this kind since the node started", context.tenant));
    }
    Ok(())
}

fn pretty(record: &FlowRecord) -> String {
    let FlowRecord { app, kind, caller, transport, host, port, verdict, .. } = record;
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let address = record.address.map(|address| address.ip().to_string()).filter(|address| *address != record.host);
    let address = address.map(|address| format!(" ({address})")).unwrap_or_default();
    let why = if record.reason.is_empty() { &record.policy } else { &record.reason };
    let time = clock(record.time_ms);
    format!("{time} {verdict:<9} {app} {kind} {caller}: {transport}://{host}:{port}{address}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line() {
        let record = serde_json::json!({"time_ms": 0, "tenant": "t", "app": "shop", "kind": "component", "caller": "web",
            "transport": "tcp", "host": "db.example", "port": 5432, "address": "10.0.0.1:5432", "verdict": "denied",
            "reason": "a private address"});
        let record: FlowRecord = serde_json::from_value(record).unwrap();
        let line = pretty(&record);
        let expected = "denied    shop component web: tcp://db.example:5432 (10.0.0.1): a private address";
        assert!(line.ends_with(expected), "{line}");
        let record = FlowRecord { host: "::1".into(), address: "[::1]:1".parse().ok(), ..record };
        assert!(pretty(&record).ends_with("tcp://[::1]:5432: a private address"));
    }
}
