//! Whose turn is next at work that takes a while and of which only so much is done at once: reading artifacts, reading the
//! audit log. No tenant has all of it, and of those that wait the next is one of the tenant that has the fewest, or whose last
//! turn is longest ago, so nobody waits behind a long row of somebody else's.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::TenantName;
use tokio::sync::oneshot;

/// Whose turn it is: a tenant's, or the operator's, who is held to nothing but what there is.
type Whose = Option<TenantName>;

/// The turns at one kind of work.
#[derive(Debug)]
pub(crate) struct Turns {
    at_once: usize,
    of_tenant: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: HashMap<Whose, usize>,
    /// Which turn was the last of each since nobody had or waited for one, and how many there were.
    last: HashMap<Whose, u64>,
    begun: u64,
    waiting: VecDeque<(Whose, oneshot::Sender<Turn>)>,
}

/// One turn; the next one's when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    of: Option<(Arc<Turns>, Whose)>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some((turns, whose)) = self.of.take() {
            turns.end(&whose);
        }
    }
}

impl Turns {
    /// So many at once, and so many of one tenant among those.
    pub(crate) fn new(at_once: usize, of_tenant: usize) -> Arc<Self> {
        Arc::new(Self { at_once, of_tenant, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn of a tenant, or of the operator; `None` where there are none any more.
    pub(crate) async fn take(self: &Arc<Self>, whose: Option<&TenantName>) -> Option<Turn> {
        let (tell, told) = oneshot::channel();
        self.lock().waiting.push_back((whose.cloned(), tell));
        self.begin();
        told.await.ok()
    }

    /// Begins what may begin. Who does not wait any more is passed over.
    fn begin(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            let Some((whose, tell)) = self.next(&mut state) else { return };
            *state.running.entry(whose.clone()).or_default() += 1;
            state.begun = state.begun.saturating_add(1);
            let begun = state.begun;
            state.last.insert(whose.clone(), begun);
            drop(state);
            // One that is not taken ends as it is dropped, and that begins the next.
            drop(tell.send(Turn { of: Some((self.clone(), whose)) }));
        }
    }

    fn end(self: &Arc<Self>, whose: &Whose) {
        {
            let state = &mut *self.lock();
            if let Some(count) = state.running.get_mut(whose) {
                *count -= 1;
                if *count == 0 {
                    state.running.remove(whose);
                }
            }
            // Remembered as long as anybody waits: who comes back is not before who has waited since.
            state.waiting.retain(|(_, tell)| !tell.is_closed());
            if state.waiting.is_empty() && state.running.is_empty() {
                state.last.clear();
            }
        }
        self.begin();
    }

    /// Takes out who is next: of those that may have one more whoever has the fewest and waits longest since its last one,
    /// in the order they came.
    fn next(&self, state: &mut State) -> Option<(Whose, oneshot::Sender<Turn>)> {
        if state.running.values().sum::<usize>() >= self.at_once {
            return None;
        }
        state.waiting.retain(|(_, tell)| !tell.is_closed());
        let has = |whose: &Whose| state.running.get(whose).copied().unwrap_or_default();
        let may = |whose: &Whose| whose.is_none() || has(whose) < self.of_tenant;
        let may = state.waiting.iter().enumerate().filter(|(_, (whose, _))| may(whose));
        let last = |whose: &Whose| state.last.get(whose).copied().unwrap_or_default();
        let at = may.min_by_key(|(_, (whose, _))| (has(whose), last(whose))).map(|(at, _)| at)?;
        state.waiting.remove(at)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    use super::*;

    fn ask(turns: &Arc<Turns>, tenant: &str) -> BoxFuture<'static, Option<Turn>> {
        let (turns, tenant) = (turns.clone(), tenant.parse::<TenantName>().unwrap());
        async move { turns.take(Some(&tenant)).await }.boxed()
    }

    #[test]
    fn nobody_waits_behind_the_row_of_another_tenant() {
        let turns = Turns::new(2, 1);
        let mut greedy: Vec<_> = (0..100).map(|_| ask(&turns, "greedy")).collect();
        let begun: Vec<_> = greedy.iter_mut().filter_map(|one| one.now_or_never()).flatten().collect();
        assert_eq!(begun.len(), 1, "one place stays free for others");
        drop(greedy.remove(0));
        let first = ask(&turns, "one").now_or_never().flatten().expect("there is a place");
        let mut second = ask(&turns, "two");
        let mut operator = turns.take(None).boxed();
        assert!((&mut second).now_or_never().is_none() && (&mut operator).now_or_never().is_none());
        drop(begun);
        let second = (&mut second).now_or_never().flatten().expect("before the row that came earlier");
        drop(first);
        let operator = (&mut operator).now_or_never().flatten().expect("and so is the operator");
        drop((second, operator));
        let more = greedy.iter_mut().filter_map(|one| one.now_or_never()).flatten().count();
        assert_eq!(more, 99, "each begins as the one before it ends");
        let state = turns.lock();
        assert!(state.running.is_empty() && state.waiting.is_empty() && state.last.is_empty());
    }

    #[test]
    fn whoever_comes_again_and_again_has_one_turn_between_those_of_others() {
        let turns = Turns::new(1, 1);
        // Three that bring many apps something, and wait anew for each.
        let mut held = ask(&turns, "greedy").now_or_never().flatten();
        let mut row: Vec<_> = ["greedy", "greedy", "one", "one", "two"].map(|whose| (whose, ask(&turns, whose))).into();
        let (mut order, mut first) = (Vec::new(), Some("greedy"));
        while row.iter().any(|(whose, _)| *whose != "greedy") {
            let mut next = None;
            for (at, (_, waits)) in row.iter_mut().enumerate() {
                assert!(waits.now_or_never().is_none(), "{at} has its turn beside another");
            }
            drop(held.take());
            for (at, (_, waits)) in row.iter_mut().enumerate() {
                if let Some(turn) = waits.now_or_never() {
                    next = Some(at);
                    held = turn;
                    break;
                }
            }
            // Who had the turn before comes back when the next one has it.
            row.extend(first.take().map(|whose| (whose, ask(&turns, whose))));
            let (whose, _) = row.remove(next.unwrap());
            order.push(whose);
            first = (whose == "greedy").then_some(whose);
        }
        assert_eq!(order, ["one", "two", "greedy", "one"]);
    }

    /// Who has one turn at a time and comes back at once has forgotten nothing meanwhile.
    #[test]
    fn two_that_come_again_and_again_leave_a_third_its_turns() {
        let turns = Turns::new(1, 1);
        let mut held = ask(&turns, "one").now_or_never().flatten();
        let mut row: Vec<_> = ["one", "greedy", "eager"].map(|whose| (whose, ask(&turns, whose))).into();
        let (mut order, mut before) = (Vec::new(), None);
        for _ in 0..5 {
            for (at, (_, waits)) in row.iter_mut().enumerate() {
                assert!(waits.now_or_never().is_none(), "{at} has its turn beside another");
            }
            drop(held.take());
            let begun = row.iter_mut().enumerate().find_map(|(at, (_, waits))| Some((at, waits.now_or_never()?)));
            let (at, turn) = begun.expect("somebody is next");
            let (whose, _) = row.remove(at);
            held = turn;
            order.push(whose);
            // Who had the turn before comes back when the next one has it.
            row.extend(before.replace(whose).filter(|whose| *whose != "one").map(|whose| (whose, ask(&turns, whose))));
        }
        assert!(order.contains(&"one"), "{order:?}");
    }
}
