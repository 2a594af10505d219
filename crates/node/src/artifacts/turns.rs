//! Whose compilation is next. One takes a core for seconds, so there are few at once; a tenant has not all of them, and of
//! those that wait the next is one of the tenant that has the fewest, so nobody waits behind a long row of somebody else's.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::TenantName;
use tokio::sync::oneshot;

/// Compilations at once.
pub(super) const AT_ONCE: usize = 3;
/// Compilations of one tenant among those.
pub(super) const OF_TENANT: usize = 2;

/// The turns of a machine.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    running: HashMap<TenantName, usize>,
    waiting: VecDeque<(TenantName, oneshot::Sender<Turn>)>,
}

/// One turn; the next one's when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    /// `None` where it was never begun.
    of: Option<(Arc<Turns>, TenantName)>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some((turns, tenant)) = self.of.take() {
            turns.end(&tenant);
        }
    }
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn of the tenant; `None` where there are none any more.
    pub(super) async fn take(self: &Arc<Self>, tenant: &TenantName) -> Option<Turn> {
        let (tell, told) = oneshot::channel();
        self.lock().waiting.push_back((tenant.clone(), tell));
        self.begin();
        told.await.ok()
    }

    /// Begins what may begin. Who does not wait any more is passed over.
    fn begin(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            let Some((tenant, tell)) = state.next() else { return };
            *state.running.entry(tenant.clone()).or_default() += 1;
            drop(state);
            // One that is not taken ends as it is dropped, and that begins the next.
            drop(tell.send(Turn { of: Some((self.clone(), tenant)) }));
        }
    }

    fn end(self: &Arc<Self>, tenant: &TenantName) {
        {
            let running = &mut self.lock().running;
            if let Some(count) = running.get_mut(tenant) {
                *count -= 1;
                if *count == 0 {
                    running.remove(tenant);
                }
            }
        }
        self.begin();
    }
}

impl State {
    /// Takes out who is next: of the tenants that may have one more the one that has the fewest, in the order they came.
    fn next(&mut self) -> Option<(TenantName, oneshot::Sender<Turn>)> {
        if self.running.values().sum::<usize>() >= AT_ONCE {
            return None;
        }
        self.waiting.retain(|(_, tell)| !tell.is_closed());
        let has = |(tenant, _): &(TenantName, _)| self.running.get(tenant).copied().unwrap_or_default();
        let may = self.waiting.iter().enumerate().filter(|(_, one)| has(one) < OF_TENANT);
        let at = may.min_by_key(|(_, one)| has(one)).map(|(at, _)| at)?;
        self.waiting.remove(at)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    use super::*;

    fn ask(turns: &Arc<Turns>, tenant: &str) -> BoxFuture<'static, Option<Turn>> {
        let (turns, tenant) = (turns.clone(), tenant.parse().unwrap());
        async move { turns.take(&tenant).await }.boxed()
    }

    #[test]
    fn nobody_waits_behind_the_row_of_another_tenant() {
        let turns = Arc::new(Turns::default());
        let mut greedy: VecDeque<_> = (0..10).map(|_| ask(&turns, "greedy")).collect();
        let mut begun: VecDeque<_> = greedy.iter_mut().filter_map(|one| one.now_or_never()).flatten().collect();
        assert_eq!(begun.len(), OF_TENANT, "one place stays free for others");
        greedy.drain(..OF_TENANT);
        // Another one begins at once, and two more wait behind the whole row.
        let first = ask(&turns, "one").now_or_never().flatten().expect("there is a place");
        let (mut second, mut third) = (ask(&turns, "two"), ask(&turns, "one"));
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        begun.pop_front();
        let second = (&mut second).now_or_never().flatten().expect("the one that has none is next");
        assert!((&mut third).now_or_never().is_none());
        drop(first);
        let third = (&mut third).now_or_never().flatten().expect("and then the one that came before the row");
        // A place that is given up while it is waited for is nobody's.
        greedy.pop_front();
        drop((second, third));
        let more = greedy.iter_mut().filter_map(|one| one.now_or_never()).flatten().count();
        assert_eq!(more, 7, "each begins as the one before it ends");
        drop(begun);
        assert!(turns.lock().running.is_empty() && turns.lock().waiting.is_empty());
    }
}
