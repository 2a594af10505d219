//! Names that this node gave to the hosts of a tenant. A host that was taken over speaks of whatever it likes, and the node
//! would keep it: of any other name nothing is heard.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use api::agent::{AppOnHost, HostStatus};
use api::metrics::{BUCKETS, HostMetrics, LinkKey};
use model::{AppName, ComponentName, escape};

use crate::tenant::Prepared;

/// Components, and links, of one app that are known beside those of its newest revision: counters of what it left go on.
const LEFT: usize = 256;
/// What a host says in an answer of one component or link at most, bytes, and of itself.
const ENTRY: usize = 4 << 10;
const ITSELF: usize = 64 << 10;
/// However much a tenant has, an answer is no longer than this, bytes.
const MOST: usize = 16 << 20;
/// The longest reason of a fault that is passed on, bytes.
const REASON: usize = 1 << 10;

/// By app.
#[derive(Debug, Default)]
pub(crate) struct Named(RwLock<BTreeMap<AppName, Names>>);

#[derive(Debug, Default)]
struct Names {
    components: BTreeSet<ComponentName>,
    links: BTreeSet<LinkKey>,
}

impl Names {
    fn take(&mut self, prepared: &Prepared) {
        self.components.extend(prepared.components.iter().map(|(name, _)| name.clone()));
        self.links.extend(prepared.links.iter().cloned());
    }
}

impl Named {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<AppName, Names>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<AppName, Names>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hosts are to have this revision.
    pub(crate) fn add(&self, prepared: &Prepared) {
        let mut all = self.write();
        let names = all.entry(prepared.app.clone()).or_default();
        let most = |now: usize| now + LEFT;
        names.take(prepared);
        if names.components.len() > most(prepared.components.len()) || names.links.len() > most(prepared.links.len()) {
            *names = Names::default();
            names.take(prepared);
        }
    }

    /// The app is gone.
    pub(crate) fn forget(&self, app: &AppName) {
        self.write().remove(app);
    }

    /// The largest answer of a host that says what it was told, bytes.
    pub(crate) fn most(&self) -> usize {
        let entries: usize = self.read().values().map(|names| 1 + names.components.len() + names.links.len()).sum();
        ITSELF.saturating_add(entries.saturating_mul(ENTRY)).min(MOST)
    }

    /// What a host counted of what it was told.
    pub(crate) fn counted(&self, host: HostMetrics) -> HostMetrics {
        let all = self.read();
        let HostMetrics { mut components, mut links, .. } = host;
        components.retain(|one| all.get(&one.app).is_some_and(|names| names.components.contains(&one.component)));
        links.retain(|one| all.get(&one.link.app).is_some_and(|names| names.links.contains(&one.link)));
        links.iter_mut().for_each(|one| one.counts.took.truncate(BUCKETS));
        HostMetrics { components, links, ..host }
    }

    /// How a host is, as far as it was told of what it speaks of; as text that people may be shown.
    pub(crate) fn seen(&self, host: HostStatus) -> HostStatus {
        let all = self.read();
        let known = |app: AppOnHost| {
            let names = all.get(&app.app)?;
            let AppOnHost { mut components, mut troubles, .. } = app;
            components.retain(|name, _| names.components.contains(name));
            for component in components.values_mut() {
                component.last_fault = component.last_fault.take().map(|fault| escape::text(&fault, REASON));
            }
            troubles.retain(|trouble| names.links.contains(&trouble.link));
            troubles.truncate(names.links.len());
            for trouble in &mut troubles {
                trouble.kind = escape::text(&trouble.kind, REASON);
                trouble.reason = escape::text(&trouble.reason, REASON);
            }
            Some(AppOnHost { components, troubles, ..app })
        };
        HostStatus { apps: host.apps.into_iter().filter_map(known).collect(), ..host }
    }
}

#[cfg(test)]
mod tests {
    use api::agent::{ComponentStatus, LinkTrouble};
    use api::metrics::{ComponentCounts, ComponentMetrics, LinkCounts, LinkMetrics};
    use model::{LockedApp, Revision};

    use super::*;

    fn named(revision: u64, component: &str) -> Prepared {
        let text = serde_json::json!({
            "name": "a",
            "components": {component: {"digest": model::Digest::of(b"x"), "size": 1, "world": "p2", "imports": [],
                "exports": []}},
            "links": [{"component": component, "contract": "wasi:keyvalue", "label": "default", "provider": "memory"}],
        });
        Prepared::of(Revision(revision), &serde_json::from_value::<LockedApp>(text).unwrap()).unwrap()
    }

    fn link(app: &str, component: &str) -> LinkKey {
        LinkKey {
            app: app.parse().unwrap(),
            component: component.parse().unwrap(),
            contract: "wasi:keyvalue".parse().unwrap(),
            label: "default".parse().unwrap(),
            provider: "memory".parse().unwrap(),
        }
    }

    /// What a host says it counted of these, each with a thousand classes of duration.
    fn counted(named: &Named, of: &[(&str, &str)]) -> Vec<(String, String, usize)> {
        let components = of.iter().map(|(app, component)| ComponentMetrics {
            app: app.parse().unwrap(),
            component: component.parse().unwrap(),
            counts: ComponentCounts::default(),
        });
        let counts = LinkCounts { took: vec![1; 1000], ..LinkCounts::default() };
        let links =
            of.iter().map(|(app, component)| LinkMetrics { link: link(app, component), counts: counts.clone() });
        let host = HostMetrics { components: components.collect(), links: links.collect(), ..HostMetrics::default() };
        let heard = named.counted(host);
        assert_eq!(heard.components.len(), heard.links.len());
        let links = heard.links.into_iter();
        links.map(|l| (l.link.app.to_string(), l.link.component.to_string(), l.counts.took.len())).collect()
    }

    #[test]
    fn of_names_that_nobody_gave_to_a_host_nothing_is_heard() {
        let named_here = Named::default();
        named_here.add(&named(1, "main"));
        let said = [("a", "main"), ("a", "other"), ("b", "main")];
        let main = ("a".to_owned(), "main".to_owned(), BUCKETS);
        assert_eq!(counted(&named_here, &said), std::slice::from_ref(&main));
        // What it had before is known for as long as the app is there.
        named_here.add(&named(2, "other"));
        assert_eq!(counted(&named_here, &said), [main, ("a".to_owned(), "other".to_owned(), BUCKETS)]);
        let few = named_here.most();
        assert!(few < 128 << 10, "{few}");
        for n in 3..10 * LEFT {
            named_here.add(&named(n as u64, &format!("c{n}")));
        }
        assert!(named_here.most() <= ITSELF + (2 * LEFT + 3) * ENTRY, "{}", named_here.most());
        named_here.forget(&"a".parse().unwrap());
        assert!(counted(&named_here, &said).is_empty());
        assert_eq!(named_here.most(), ITSELF);
    }

    #[test]
    fn what_a_host_says_of_its_faults_is_text_and_of_its_own_apps() {
        let here = Named::default();
        here.add(&named(1, "main"));
        let fault = || Some(format!("\u{1b}[2J{}", "x".repeat(1 << 20)));
        let component = || ComponentStatus { last_fault: fault(), ..ComponentStatus::default() };
        let app = |name: &str| AppOnHost {
            app: name.parse().unwrap(),
            revision: Revision(1),
            draining: false,
            components: ["main", "other"].map(|name| (name.parse().unwrap(), component())).into(),
            troubles: vec![
                LinkTrouble {
                    link: link(name, "main"),
                    kind: "denied".into(),
                    reason: fault().unwrap(),
                    since_ms: 0
                };
                100
            ],
        };
        let seen = here.seen(HostStatus { in_flight: 0, rss: 0, apps: vec![app("a"), app("b")] });
        assert_eq!(seen.apps.len(), 1);
        let app = &seen.apps[0];
        assert_eq!((app.components.len(), app.troubles.len()), (1, 1));
        let text = app.components.values().next().unwrap().last_fault.as_deref().unwrap();
        assert!(text.starts_with("\\u{1b}[2J") && text.len() < REASON + 16, "{}", text.len());
        assert!(!app.troubles[0].reason.contains('\u{1b}') && app.troubles[0].reason.len() < REASON + 16);
    }
}
