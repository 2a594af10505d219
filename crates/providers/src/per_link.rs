//! What a provider keeps for each link that calls it. The components of an app share their provider; what one link had no
//! answer to, or waits for, says nothing of the others.
//!
//! Who calls is known from the call: [`LinkMeter::call`](crate::meter::LinkMeter::call) says so for as long as its call runs.
//! Calls over no link, as checks at a deploy and copies of data are, share a state of their own.
//!
//! A link that first calls a provider is bound to its state there. From then on a call finds it without a lock, and
//! without a look at the states of others.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;

/// Which link: one component, contract and label. Each new one is another; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct LinkId(Arc<Bound>);

/// What a link is bound to: few, one for each thing that its provider keeps.
#[derive(Debug, Default)]
struct Bound(ArcSwap<Vec<Kept>>);

/// A state, held by the provider that keeps it: with the provider it goes.
#[derive(Debug, Clone)]
struct Kept {
    by: u64,
    state: Weak<dyn Any + Send + Sync>,
}

tokio::task_local! {
    static CALLING: LinkId;
}

impl LinkId {
    /// The link whose call runs here; `None` where none does.
    pub fn calling() -> Option<Self> {
        CALLING.try_with(Self::clone).ok()
    }

    /// Runs a call of this link.
    pub async fn calls<T>(self, call: impl Future<Output = T>) -> T {
        CALLING.scope(self, call).await
    }

    /// Runs `work` in the name of `link`: for what goes on in a task of its own.
    pub async fn carried<T>(link: Option<Self>, work: impl Future<Output = T>) -> T {
        match link {
            Some(link) => link.calls(work).await,
            None => work.await,
        }
    }

    /// Nobody else has it while a clone or a [`Weak`] of it is there.
    fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    fn bound<T: Send + Sync + 'static>(&self, by: u64) -> Option<Arc<T>> {
        let state = self.0.0.load().iter().find(|kept| kept.by == by)?.state.upgrade()?;
        state.downcast().ok()
    }

    fn bind<T: Send + Sync + 'static>(&self, by: u64, state: &Arc<T>) {
        let state: Arc<dyn Any + Send + Sync> = state.clone();
        let kept = Kept { by, state: Arc::downgrade(&state) };
        self.0.0.rcu(|bound| {
            let others = bound.iter().filter(|other| other.by != by && other.state.strong_count() > 0);
            others.chain([&kept]).cloned().collect::<Vec<_>>()
        });
    }
}

/// By its address, each link that is known to be there, and its state.
type Links<T> = BTreeMap<usize, (Weak<Bound>, Arc<T>)>;

/// A state for each link, and one for calls over none.
#[derive(Debug)]
pub(crate) struct PerLink<T> {
    /// No other one has it.
    id: u64,
    none: Arc<T>,
    links: Mutex<Links<T>>,
}

impl<T: Default> Default for PerLink<T> {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Relaxed), none: Arc::default(), links: Mutex::default() }
    }
}

impl<T: Default + Send + Sync + 'static> PerLink<T> {
    /// That of `link`, new where it has none.
    pub(crate) fn of(&self, link: Option<&LinkId>) -> Arc<T> {
        let Some(link) = link else { return self.none.clone() };
        link.bound(self.id).unwrap_or_else(|| self.bind(link))
    }

    fn bind(&self, link: &LinkId) -> Arc<T> {
        let address = link.address();
        let state = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            if !links.contains_key(&address) {
                // Connections may be among what they leave.
                links.retain(|_, (known, _)| known.strong_count() > 0);
            }
            let (_, state) = links.entry(address).or_insert_with(|| (Arc::downgrade(&link.0), Arc::default()));
            state.clone()
        };
        link.bind(self.id, &state);
        state
    }
}

impl<T> PerLink<T> {
    /// Changes all there are.
    pub(crate) fn each(&self, change: impl Fn(&T)) {
        change(&self.none);
        self.links.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(|(_, state)| change(state));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Number = AtomicU64;

    #[tokio::test]
    async fn every_link_has_its_own_and_those_that_are_gone_are_forgotten() {
        let states = PerLink::<Number>::default();
        let (one, two) = (LinkId::default(), LinkId::default());
        states.of(None).store(1, Relaxed);
        states.of(Some(&one)).store(2, Relaxed);
        states.of(Some(&two)).store(3, Relaxed);
        let now = |link: Option<&LinkId>| states.of(link).load(Relaxed);
        assert_eq!((now(None), now(Some(&one)), now(Some(&two.clone()))), (1, 2, 3));
        assert!(LinkId::calling().is_none());
        let calling = one.clone().calls(async { LinkId::calling() }).await;
        assert_eq!(now(calling.as_ref()), 2);
        let carried = LinkId::carried(calling, async { tokio::spawn(async { LinkId::calling() }).await }).await;
        assert!(carried.unwrap().is_none(), "a task of its own is told");
        drop(two);
        for _ in 0..10 {
            states.of(Some(&LinkId::default()));
        }
        assert_eq!(states.links.lock().unwrap().len(), 2, "the first one, and the last one that came");
        assert_eq!(now(Some(&one)), 2);
        states.each(|number| number.store(7, Relaxed));
        assert_eq!((now(None), now(Some(&one))), (7, 7));
    }

    #[test]
    fn a_link_is_bound_once_and_to_each_provider_for_as_long_as_that_is_there() {
        let link = LinkId::default();
        let (one, two) = (PerLink::<Number>::default(), PerLink::<Number>::default());
        let state = one.of(Some(&link));
        assert!(Arc::ptr_eq(&state, &one.of(Some(&link))));
        // What is found is found without the lock.
        let held = one.links.lock().unwrap();
        assert!(Arc::ptr_eq(&state, &one.of(Some(&link))));
        drop(held);
        assert!(!Arc::ptr_eq(&state, &two.of(Some(&link))));
        drop((state, one));
        let three = PerLink::<Number>::default();
        three.of(Some(&link));
        assert_eq!(link.0.0.load().len(), 2, "what the first one kept has gone with it");
    }
}
