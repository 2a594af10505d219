//! What waits for the writer. The tenants take turns, so one that has much to write waits for itself, and nobody else does.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use model::TenantName;

#[derive(Debug)]
pub(super) struct Line<T> {
    waiting: Mutex<Waiting<T>>,
    came: Condvar,
}

#[derive(Debug)]
struct Waiting<T> {
    /// Never empty for a tenant that is among the turns, and absent for all others.
    of: HashMap<TenantName, VecDeque<T>>,
    turns: VecDeque<TenantName>,
    closed: bool,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        let waiting = Waiting { of: HashMap::new(), turns: VecDeque::new(), closed: false };
        Self { waiting: Mutex::new(waiting), came: Condvar::new() }
    }
}

impl<T> Waiting<T> {
    /// The first of the tenant whose turn it is.
    fn next(&mut self) -> Option<T> {
        let tenant = self.turns.pop_front()?;
        let own = self.of.get_mut(&tenant)?;
        let next = own.pop_front();
        if own.is_empty() {
            self.of.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        next
    }
}

impl<T> Line<T> {
    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts one behind the others of its tenant; false where nobody takes any more.
    pub(super) fn push(&self, tenant: &TenantName, one: T) -> bool {
        let mut waiting = self.lock();
        if waiting.closed {
            return false;
        }
        match waiting.of.get_mut(tenant) {
            Some(own) => own.push_back(one),
            None => {
                waiting.of.insert(tenant.clone(), VecDeque::from([one]));
                waiting.turns.push_back(tenant.clone());
            }
        }
        drop(waiting);
        self.came.notify_one();
        true
    }

    /// The next one, if there is one.
    pub(super) fn next(&self) -> Option<T> {
        self.lock().next()
    }

    /// Waits for the next one; `None` where it is closed and nothing is left.
    pub(super) fn wait(&self) -> Option<T> {
        let mut waiting = self.lock();
        loop {
            if let Some(next) = waiting.next() {
                return Some(next);
            }
            if waiting.closed {
                return None;
            }
            waiting = self.came.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes nothing more.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.came.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_take_turns_and_each_has_its_own_order() {
        let line = Line::default();
        let (a, b): (TenantName, TenantName) = ("a".parse().unwrap(), "b".parse().unwrap());
        for n in 0..3 {
            assert!(line.push(&a, format!("a{n}")));
        }
        assert!(line.push(&b, "b0".to_owned()));
        assert_eq!(line.next().unwrap(), "a0");
        assert!(line.push(&b, "b1".to_owned()));
        line.close();
        assert!(!line.push(&b, "b2".to_owned()));
        let rest: Vec<_> = std::iter::from_fn(|| line.wait()).collect();
        assert_eq!(rest, ["b0", "a1", "b1", "a2"]);
        assert_eq!(line.next(), None);
    }

    #[test]
    fn who_waits_is_woken() {
        let line = Line::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| (line.wait(), line.wait()));
            line.push(&"a".parse().unwrap(), 1);
            line.close();
            assert_eq!(waiting.join().unwrap(), (Some(1), None));
        });
    }
}
