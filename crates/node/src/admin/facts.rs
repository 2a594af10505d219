//! What there is to tell at one moment, read from wherever it is counted.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use api::flows::Verdict;
use api::metrics::TenantMetrics;
use futures::stream::StreamExt as _;
use model::TenantName;

use crate::agent::HostIndex;
use crate::ingress::{Meter, Requests};
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::otlp::Exporter;
use crate::serving::ServingIndex;
use crate::supervisor::HostState;

/// Tenants whose hosts are asked at once.
const AT_ONCE: usize = 16;

/// Where it is counted.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) hosts: Arc<HostIndex>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) index: Arc<ServingIndex>,
    pub(crate) ingress: Vec<Arc<Meter>>,
    pub(crate) exporter: Option<Arc<Exporter>>,
    pub(crate) files: Vec<(&'static str, PathBuf)>,
    /// When the node started, seconds since 1970.
    pub(crate) since: f64,
}

/// Everything that is told.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) since: f64,
    pub(super) process: Process,
    pub(super) requests: Requests,
    pub(super) files: Vec<(&'static str, u64)>,
    pub(super) serving: u64,
    /// Spans and lines by what became of them; empty where none are exported.
    pub(super) exported: Vec<(&'static str, u64)>,
    pub(super) tenants: Vec<Tenant>,
}

/// This process.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) cpu_seconds: f64,
    pub(super) resident: u64,
    pub(super) open_files: u64,
}

/// One tenant.
#[derive(Debug)]
pub(super) struct Tenant {
    pub(super) name: TenantName,
    /// Which of its hosts answer.
    pub(super) hosts: Vec<bool>,
    pub(super) restarts: u64,
    /// Outgoing connections by outcome.
    pub(super) dials: [(&'static str, u64); Verdict::ALL.len()],
    /// Outgoing connections that are open.
    pub(super) open: usize,
    /// What its quotas refused: requests, lines of log, and writes.
    pub(super) refused: [(&'static str, u64); 3],
    pub(super) counted: Arc<TenantMetrics>,
}

impl Source {
    pub(super) async fn gather(&self) -> Facts {
        let tenants = futures::stream::iter(self.hosts.all()).map(|(tenant, hosts)| async move {
            let counted = self.metrics.read(&tenant, &hosts).await;
            let flows = &tenant.flows;
            Tenant {
                name: tenant.name.clone(),
                hosts: hosts.iter().map(|host| *host.state.borrow() == HostState::Ready).collect(),
                restarts: tenant.restarts.load(Relaxed),
                dials: Verdict::ALL.map(|verdict| (verdict.as_str(), flows.count(verdict))),
                open: tenant.open_connections(),
                refused: [
                    ("requests", tenant.gate.refused()),
                    ("log-lines", self.logs.dropped(&tenant.name)),
                    ("store-writes", tenant.kept.room.refused()),
                ],
                counted,
            }
        });
        let tenants = tenants.buffered(AT_ONCE).collect().await;
        let mut requests = Requests::default();
        self.ingress.iter().for_each(|meter| meter.add_to(&mut requests));
        let size = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
        Facts {
            since: self.since,
            process: process(),
            requests,
            files: self.files.iter().map(|(name, path)| (*name, size(path))).collect(),
            serving: self.index.len(),
            exported: self.exporter.as_ref().map_or_else(Vec::new, |exporter| {
                let sent = exporter.sent();
                let counters = [("taken", &sent.taken), ("overflown", &sent.overflown), ("failed", &sent.failed)];
                counters.map(|(outcome, count)| (outcome, count.load(Relaxed))).into()
            }),
            tenants,
        }
    }
}

/// Zeros where the kernel does not say.
fn process() -> Process {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Process {
        cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
        resident: kib.map_or(0, |kib: u64| kib * 1024),
        open_files: fs::read_dir("/proc/self/fd").map_or(0, |all| all.count() as u64),
    }
}
