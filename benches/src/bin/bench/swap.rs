//! A link that is moved while requests come: what those notice that come at that moment.
//!
//! What is compared has one thing that differs. Both providers are of one kind, because another one is faster or slower by
//! itself, and each move is one: asking for the provider that a link has already makes no revision. A window begins when what
//! the move before it left has gone from the hosts. Beside the command there is the same move asked for by this process, and a
//! command that changes nothing: on a machine with few cores the start of any program is noticed by requests, and what that
//! costs is no part of a move.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use api::client::{ControlClient, Require};
use api::control::LinkRequest;
use model::{AppName, Revision, TenantName};
use sidereal_benches::load::percentile;
use sidereal_tests::offered::{Offer, Offered, Report};
use sidereal_tests::platform::until;

use crate::Args;
use crate::table::Table;
use crate::us::Us;

/// Windows of each kind, in turn; the medians count.
const ROUNDS: usize = 7;
/// One window, of whichever kind: something happens in its middle. Of windows of other lengths the p99 would be another
/// measure: the longer one, the fewer of its requests come at that moment.
const WINDOW: Duration = Duration::from_secs(1);
/// Requests a second, whatever becomes of them.
const RATE: u32 = 1000;
/// A revision that was replaced is gone by then: late calls are taken for a quarter of a second.
const GONE: Duration = Duration::from_secs(10);
const APP: &str = "swapped";
const CONTRACT: &str = "wasi:keyvalue";
/// The two providers, of one kind. The app declares both, so that none comes or goes with a move.
const PROVIDERS: [&str; 2] = ["here", "there"];

/// What happens in the middle of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happens {
    Nothing,
    /// The command moves the link.
    Command,
    /// The link is moved by a request to the API, as the command makes it.
    Request,
    /// A command that changes nothing.
    Idle,
}

/// Windows of one kind.
#[derive(Default)]
struct Seen {
    p99_us: Vec<f64>,
    took_ms: Vec<f64>,
    failed: usize,
}

struct Bench {
    us: Us,
    client: ControlClient,
    runtime: tokio::runtime::Runtime,
    tenant: TenantName,
    app: AppName,
    moves: usize,
    /// What the hosts have.
    revision: Revision,
}

/// Measures and fills in.
///
/// # Errors
/// When something cannot be started or gives no answer.
pub fn run(_: &Args, table: &mut Table) -> anyhow::Result<()> {
    let mut bench = Bench::start()?;
    let kinds = [Happens::Nothing, Happens::Command, Happens::Request, Happens::Idle];
    let mut seen: [Seen; 4] = Default::default();
    // The first one finds everything cold.
    bench.window(Happens::Nothing, &mut Seen::default())?;
    for _ in 0..ROUNDS {
        for (kind, seen) in kinds.into_iter().zip(&mut seen) {
            bench.window(kind, seen)?;
        }
    }
    let [quiet, command, request, idle] = seen.map(|seen| (median(seen.p99_us), median(seen.took_ms), seen.failed));
    let detail = format!("{:.0} µs, quiet {:.0} µs, {:.0} ms to move", command.0, quiet.0, command.1);
    let measure = "p99 in the second around a link swap, 1000 requests a second";
    table.at_most(measure, command.0 / quiet.0, 2.0, "x quiet", &detail);
    table.at_most("requests that failed meanwhile", (command.2 + request.2) as f64, 0.0, "of them", "");
    let ratio = |of: f64, ms: f64| format!("{:.2} x quiet ({of:.0} µs, {ms:.0} ms)", of / quiet.0);
    table.note("the same, moved by a request to the API", ratio(request.0, request.1));
    table.note("the same around a command that changes nothing", ratio(idle.0, idle.1));
    Ok(())
}

impl Bench {
    fn start() -> anyhow::Result<Self> {
        let us = Us::start(&[])?;
        let [first, second] = PROVIDERS;
        let declared = |name| format!("[providers.{name}]\ntype = \"keyvalue-embedded\"\n");
        let link = format!("[components.main.links]\n\"{CONTRACT}\" = \"{first}\"\n");
        us.deploy(APP, "kv-counter", &(link + &declared(first) + &declared(second)))?;
        let token = std::fs::read_to_string(us.data().join("token")).context("the token of the platform")?;
        let api = us.platform.info.get("api").and_then(|api| api.as_str()).context("the address of the API")?;
        let address = api.trim_start_matches("http://").parse().context("the address of the API")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = ControlClient::new(address, token.trim());
        Ok(Self {
            us,
            client,
            runtime,
            tenant: TenantName::local(),
            app: APP.parse()?,
            moves: 0,
            revision: Revision(1),
        })
    }

    /// One window, and the wait until nothing is left of what happened in it.
    fn window(&mut self, kind: Happens, seen: &mut Seen) -> anyhow::Result<()> {
        let moves = matches!(kind, Happens::Command | Happens::Request);
        self.moves += usize::from(moves);
        let to = if self.moves.is_multiple_of(2) { PROVIDERS[0] } else { PROVIDERS[1] };
        let (address, host) = (self.us.platform.ingress, format!("{APP}.localhost"));
        let offered = Offered::start(Offer { address, host, paths: vec!["/".to_owned()], rate: RATE });
        std::thread::sleep(WINDOW / 2);
        let began = Instant::now();
        let happened = self.happen(kind, to);
        let took = began.elapsed();
        std::thread::sleep((WINDOW / 2).saturating_sub(took));
        let report = offered.stop()?;
        happened?;
        seen.took_ms.push(took.as_secs_f64() * 1000.0);
        seen.p99_us.push(p99_us(&report));
        seen.failed += report.failures.len();
        if moves { self.wait_for_one_revision() } else { Ok(()) }
    }

    fn happen(&self, kind: Happens, to: &str) -> anyhow::Result<()> {
        match kind {
            Happens::Nothing => Ok(()),
            Happens::Command => self.us.platform.ok(&["link", "set", APP, &format!("{CONTRACT}={to}")]).map(drop),
            Happens::Request => {
                let (component, label) = (None, None);
                let request = LinkRequest { component, contract: CONTRACT.parse()?, label, provider: to.parse()? };
                let asked = self.client.link(&self.tenant, &self.app, &request, Require::Exists);
                Ok(self.runtime.block_on(asked).map(drop)?)
            }
            Happens::Idle => self.us.platform.ok(&["link", "list"]).map(drop),
        }
    }

    /// Until each host that has the app has the new revision alone: what it replaced has left.
    fn wait_for_one_revision(&mut self) -> anyhow::Result<()> {
        let mut new = self.revision;
        let one = || {
            let Ok(hosts) = self.runtime.block_on(self.client.hosts(&self.tenant)) else { return false };
            let all: std::collections::BTreeSet<Revision> =
                hosts.iter().flat_map(|host| &host.apps).map(|app| app.revision).collect();
            new = all.last().copied().unwrap_or(new);
            all.len() == 1 && new > self.revision
        };
        until(GONE, one).context("the revision that was replaced is still there, or nothing has replaced it")?;
        self.revision = new;
        Ok(())
    }
}

/// From when a request was due, so that those that wait for their turn to be sent count.
fn p99_us(report: &Report) -> f64 {
    let ns = |took: Duration| u32::try_from(took.as_nanos()).unwrap_or(u32::MAX);
    let mut took: Vec<u32> = report.answers.iter().map(|answer| ns(answer.took)).collect();
    took.sort_unstable();
    percentile(&took, 99)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}
