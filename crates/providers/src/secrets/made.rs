//! What a provider made of its secrets, such as the header it shows: kept until one of them is set anew.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// A value made of secrets, or none.
#[derive(Debug)]
pub(crate) struct Made<T>(Mutex<State<T>>);

#[derive(Debug)]
struct State<T> {
    value: Option<T>,
    changes: Option<watch::Receiver<u64>>,
    /// Grows with each change that was seen.
    round: u64,
}

impl<T> Default for Made<T> {
    fn default() -> Self {
        Self(Mutex::new(State { value: None, changes: None, round: 0 }))
    }
}

impl<T> State<T> {
    /// What was made before a change is not used after it.
    fn look(&mut self) {
        let Some(changes) = &mut self.changes else { return };
        if changes.has_changed().unwrap_or(false) {
            changes.mark_unchanged();
            self.value = None;
            self.round += 1;
        }
    }
}

impl<T: Clone> Made<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept.
    ///
    /// # Errors
    /// Nothing is: the secrets are to be asked for, and what is made of them kept under this number.
    pub(crate) fn known(&self, changes: impl FnOnce() -> watch::Receiver<u64>) -> Result<T, u64> {
        let mut state = self.lock();
        // Before they are asked for: a change from here on is not missed.
        state.changes.get_or_insert_with(changes);
        state.look();
        state.value.clone().ok_or(state.round)
    }

    /// Keeps what was made, unless a secret was set anew while it was.
    pub(crate) fn keep(&self, round: u64, value: T) {
        let mut state = self.lock();
        state.look();
        if state.round == round {
            state.value = Some(value);
        }
    }

    /// The server does not take it.
    pub(crate) fn forget(&self) {
        self.lock().value = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_before_a_change_does_not_replace_what_was_made_after_it() {
        let changes = watch::Sender::new(0_u64);
        let made = Made::default();
        let slow = made.known(|| changes.subscribe()).unwrap_err();
        changes.send_replace(1);
        let fast = made.known(|| changes.subscribe()).unwrap_err();
        made.keep(fast, "new");
        made.keep(slow, "old");
        assert_eq!(made.known(|| changes.subscribe()), Ok("new"));
        // Nor does it where nobody has asked since.
        made.forget();
        let slow = made.known(|| changes.subscribe()).unwrap_err();
        changes.send_replace(2);
        made.keep(slow, "old");
        assert!(made.known(|| changes.subscribe()).is_err());
    }
}
