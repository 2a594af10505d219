//! What the links of an app take from the node's brokers: which groups there are, and how long a delivery of each may be
//! out.

use std::time::Duration;

use api::services::messaging::BrokerKind;
use model::messaging::{Group, Pattern, Subscription};
use model::watch::Kept;
use model::{LockedApp, ProviderKind};

/// What a host gets beyond the wall time of a call: to find a place for it, before and after a move of the app's data that
/// it waits for, and to tell what became of it. A host that is gone is noticed at once.
const SLACK: Duration = Duration::from_secs(90);
const _: () = assert!(SLACK.as_secs() >= api::copy::PATIENCE.as_secs() + 2 * 10 + 30);

/// What one link of a revision takes from a broker of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub(super) broker: BrokerKind,
    pub(super) group: Group,
    /// What is published under these subjects; other groups are given messages by name.
    pub(super) patterns: Vec<Pattern>,
    /// How long a delivery may be out.
    pub(super) lease: Duration,
    /// One at a time, to whomever: as changes of a watched bucket are told.
    pub(super) in_order: bool,
    /// It takes new messages; otherwise what it holds from before is handed out, and it is made only to look for that on disk.
    pub(super) takes: bool,
}

/// What the links of an app take from the node's brokers.
pub fn declared(app: &LockedApp) -> Vec<Declared> {
    let built_in = |name: &str| ProviderKind::BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
    let links = model::messaging::subscriptions(app).filter_map(|(link, subscription)| {
        let kind = app.providers.get(&link.provider).map(|spec| spec.kind);
        let kind = kind.or_else(|| built_in(link.provider.as_str()))?;
        let wall = app.components.get(&link.component)?.limits.wall.duration();
        let Subscription { group, patterns, .. } = subscription;
        let one = |broker, group, patterns, takes| Declared {
            broker,
            group,
            patterns,
            lease: wall.saturating_add(SLACK),
            in_order: false,
            takes,
        };
        // NATS keeps none itself. What hosts left of it follows a link that goes elsewhere.
        let untried = one(BrokerKind::Local, group.untried(), Vec::new(), kind == ProviderKind::MessagingNats);
        // A link that goes elsewhere now may have been one to `durable`: what was acknowledged then is on disk.
        let on_disk = match kind {
            ProviderKind::MessagingDurable => one(BrokerKind::Durable, group.clone(), patterns.clone(), true),
            _ => one(BrokerKind::Durable, group.clone(), Vec::new(), false),
        };
        let local = (kind == ProviderKind::MessagingLocal).then(|| one(BrokerKind::Local, group, patterns, true));
        Some(local.into_iter().chain([on_disk, untried]))
    });
    let links = links.flatten();
    let watched = model::watch::watches(app).filter_map(|watch| {
        let wall = app.components.get(&watch.link.component)?.limits.wall.duration();
        let Subscription { group, patterns, .. } = watch.subscription(&app.name);
        let lease = wall.saturating_add(SLACK);
        let one = |broker, group, patterns, takes| Declared { broker, group, patterns, lease, in_order: true, takes };
        // As with messages: the bucket may have been one on disk.
        let on_disk = one(BrokerKind::Durable, group.clone(), patterns.clone(), watch.kept == Kept::Disk);
        let local = (watch.kept == Kept::Memory).then(|| one(BrokerKind::Local, group, patterns, true));
        Some(local.into_iter().chain([on_disk]))
    });
    links.chain(watched.flatten()).collect()
}
