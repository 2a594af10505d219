//! The messages of a queue that can be handed out, in order. Those that hosts may have ended of stand in a row of their own:
//! while one of them is out the next of the others is at hand, however many of them stand before it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::queue::Held;

/// The rows. A message has a number; lower ones come first.
#[derive(Debug, Default)]
pub(super) struct Ready {
    plain: VecDeque<(i64, Held)>,
    suspects: VecDeque<(i64, Held)>,
    /// Numbers that were given at the front, from 0 down, and at the back, from 0 up.
    first: i64,
    last: i64,
}

impl Ready {
    fn row(&mut self, suspect: bool) -> &mut VecDeque<(i64, Held)> {
        if suspect { &mut self.suspects } else { &mut self.plain }
    }

    pub(super) fn push_back(&mut self, held: Held, suspect: bool) {
        self.last += 1;
        let number = self.last;
        self.row(suspect).push_back((number, held));
    }

    pub(super) fn push_front(&mut self, held: Held, suspect: bool) {
        self.first -= 1;
        let number = self.first;
        self.row(suspect).push_front((number, held));
    }

    pub(super) fn len(&self) -> usize {
        self.plain.len() + self.suspects.len()
    }

    /// Whether the next one is a suspect; `None` where there is none, or only suspects and these are to wait.
    fn next(&self, suspects_wait: bool) -> Option<bool> {
        match (self.plain.front(), self.suspects.front().filter(|_| !suspects_wait)) {
            (None, None) => None,
            (Some((plain, _)), Some((suspect, _))) => Some(suspect < plain),
            (_, suspect) => Some(suspect.is_some()),
        }
    }

    /// Whether there is a next one.
    pub(super) fn has_next(&self, suspects_wait: bool) -> bool {
        self.next(suspects_wait).is_some()
    }

    /// Takes the next one, and says whether it is a suspect.
    pub(super) fn pop(&mut self, suspects_wait: bool) -> Option<(Held, bool)> {
        let suspect = self.next(suspects_wait)?;
        let (_, held) = self.row(suspect).pop_front()?;
        Some((held, suspect))
    }

    /// All of them, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Held> {
        self.plain.iter().chain(&self.suspects).map(|(_, held)| held)
    }

    /// Puts these before the first one that is not older than they are.
    pub(super) fn insert(&mut self, found: Vec<Held>) {
        let Some(first) = found.first().map(|held| held.id.clone()) else { return };
        let mut all: Vec<(i64, bool, Held)> = Vec::with_capacity(self.len() + found.len());
        all.extend(self.plain.drain(..).map(|(number, held)| (number, false, held)));
        all.extend(self.suspects.drain(..).map(|(number, held)| (number, true, held)));
        all.sort_by_key(|(number, ..)| *number);
        let at = all.iter().position(|(.., held)| held.id > first).unwrap_or(all.len());
        let behind = all.split_off(at);
        (self.first, self.last) = (0, 0);
        let found = found.into_iter().map(|held| (0, false, held));
        for (_, suspect, held) in all.into_iter().chain(found).chain(behind) {
            self.push_back(held, suspect);
        }
    }

    /// The names of all of them.
    pub(super) fn ids(&self) -> HashSet<Arc<str>> {
        self.iter().map(|held| held.id.clone()).collect()
    }
}
