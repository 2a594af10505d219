//! What a host tells of what runs on it: how it stands, and everything it counted.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use api::agent::{AppOnHost, HostStatus};
use api::metrics::{ComponentCounts, ComponentMetrics, Counts as _, HostMetrics};
use model::{AppName, ComponentName};

use super::{Apps, lock};
use crate::{memory, totals};

impl Apps {
    /// Every counter, over all revisions.
    pub(crate) fn metrics(&self) -> HostMetrics {
        let mut sums: BTreeMap<(AppName, ComponentName), ComponentCounts> = BTreeMap::new();
        {
            // Held until both are added up: no revision is counted twice, or not at all, while it leaves.
            let revisions = lock(&self.revisions);
            for ((app, _), running) in &*revisions {
                for entry in &running.entries {
                    let counts = totals::counts(&entry.status());
                    let sum = sums.entry((app.clone(), entry.component().clone())).or_default();
                    sum.add(&counts);
                    sum.in_flight += counts.in_flight;
                }
            }
            self.totals.add_past(&mut sums);
        }
        let components = sums.into_iter().map(|((app, component), counts)| ComponentMetrics { app, component, counts });
        HostMetrics {
            since_us: self.since_us,
            in_flight: self.in_flight.load(Relaxed),
            rss: memory::resident(),
            components: components.collect(),
            links: self.totals.links(),
        }
    }

    pub(crate) fn status(&self) -> HostStatus {
        let revisions = lock(&self.revisions);
        let apps = revisions.iter().map(|((app, revision), running)| AppOnHost {
            app: app.clone(),
            revision: *revision,
            draining: running.draining.load(Relaxed),
            components: running.entries.iter().map(|entry| (entry.component().clone(), entry.status())).collect(),
            troubles: self.totals.troubles(app),
        });
        HostStatus { in_flight: self.in_flight.load(Relaxed), rss: memory::resident(), apps: apps.collect() }
    }
}
