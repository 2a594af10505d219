//! Writes down what became of each dial: into the tenant's flow records at once, and into the node's own log behind a
//! queue, so that no connection waits for a terminal or a disk.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use api::flows::{CallerKind, FlowRecord, Verdict};
use api::services::{Caller, Dial, FileFault};
use model::egress::Grant;
use tokio::sync::mpsc;

use super::Failed;
use crate::flows::now_ms;
use crate::tenant::Tenant;

/// Records that wait to be logged; more are only kept and counted.
const QUEUE: usize = 4096;
/// Characters of a host that are written down: no name is longer.
const SHOWN: usize = 260;

/// What became of a dial.
pub(super) struct Outcome {
    verdict: Verdict,
    address: Option<SocketAddr>,
    /// As the tenant may read it.
    reason: String,
    /// As the node's own log has it, where that is not the same.
    own: Option<String>,
    policy: String,
}

impl Outcome {
    pub(super) fn connected(address: SocketAddr, grant: Grant) -> Self {
        let policy = grant.to_string();
        Self { verdict: Verdict::Connected, address: Some(address), reason: String::new(), own: None, policy }
    }

    pub(super) fn revoked(address: SocketAddr, reason: String) -> Self {
        Self { verdict: Verdict::Revoked, address: Some(address), reason, own: None, policy: String::new() }
    }

    pub(super) fn of(failed: &Failed) -> Self {
        let (verdict, address, reason) = match &failed.fault {
            FileFault::Denied { address, what } => (Verdict::Denied, Some(address), what.clone()),
            FileFault::Limited { what, .. } => (Verdict::Limited, None, what.clone()),
            FileFault::Connect { address, cause } => (Verdict::Failed, Some(address), cause.clone()),
            other => (Verdict::Failed, None, other.to_string()),
        };
        // A host that never became an address is none.
        let address = address.and_then(|text| text.parse().ok());
        Self { verdict, address, reason, own: failed.own.clone(), policy: String::new() }
    }
}

/// A host as it is written down: somebody else's text, on one line.
pub(super) fn shown(host: &str) -> String {
    host.chars().take(SHOWN).flat_map(char::escape_default).collect()
}

/// Where flows are written down.
#[derive(Default)]
pub(super) struct Journal {
    /// Made with the first record: its reader is a task.
    log: OnceLock<mpsc::Sender<Arc<FlowRecord>>>,
    unlogged: Arc<AtomicU64>,
}

impl Journal {
    /// Must run inside a tokio runtime.
    pub(super) fn write(&self, tenant: &Tenant, dial: &Dial, outcome: Outcome) {
        let (kind, caller) = match &dial.caller {
            Caller::Component(name) => (CallerKind::Component, name.as_str()),
            Caller::Provider(name) => (CallerKind::Provider, name.as_str()),
        };
        let record = Arc::new(FlowRecord {
            time_ms: now_ms(),
            tenant: tenant.name.clone(),
            app: dial.app.clone(),
            kind,
            caller: caller.to_owned(),
            transport: dial.transport,
            host: shown(&dial.host),
            port: dial.port,
            address: outcome.address,
            verdict: outcome.verdict,
            reason: outcome.own.unwrap_or_else(|| outcome.reason.clone()),
            policy: outcome.policy,
            missed: 0,
        });
        let log = self.log.get_or_init(|| {
            let (sender, receiver) = mpsc::channel(QUEUE);
            tokio::spawn(log(receiver, self.unlogged.clone()));
            sender
        });
        if log.try_send(record.clone()).is_err() {
            self.unlogged.fetch_add(1, Relaxed);
        }
        tenant.flows.record(told(record, outcome.reason));
    }
}

/// As the tenant may read it: what a name resolves to is nothing that it is told by being refused it.
fn told(record: Arc<FlowRecord>, reason: String) -> Arc<FlowRecord> {
    let literal = record.host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    let hidden = record.verdict == Verdict::Denied && !literal;
    if record.reason == reason && !(hidden && record.address.is_some()) {
        return record;
    }
    Arc::new(FlowRecord { address: record.address.filter(|_| !hidden), reason, ..FlowRecord::clone(&record) })
}

async fn log(mut records: mpsc::Receiver<Arc<FlowRecord>>, unlogged: Arc<AtomicU64>) {
    while let Some(record) = records.recv().await {
        let missed = unlogged.swap(0, Relaxed);
        if missed > 0 {
            tracing::warn!(target: "flow", missed, "flows were recorded and not logged: there were too many at once");
        }
        let FlowRecord { tenant, app, kind, caller, transport, host, port, verdict, reason, policy, .. } = &*record;
        let address = record.address.map(tracing::field::display);
        tracing::info!(
            target: "flow", %tenant, %app, %kind, caller, %transport, %host, port, address, %verdict, reason, policy
        );
    }
}
