//! How many programs of one tenant run at once. Each provider of an app counts twice, whether one program runs for it or two: a
//! revision that changes a provider has its program beside that of the one before, which leaves only when the new one serves.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{AppName, ProviderName};
use tokio::sync::Notify;

/// Providers of one tenant whose programs run at once.
pub(super) const PROGRAMS: usize = 32;
/// Programs of one provider that always find room: the one that is to be replaced, and the one that replaces it.
const EACH: usize = 2;

/// A provider of an app.
type Named = (AppName, ProviderName);

/// The places of one tenant.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: Mutex<HashMap<Named, usize>>,
    changed: Notify,
}

/// One of them; the next one's when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    of: Named,
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut taken = self.places.lock();
            if let Some(count) = taken.get_mut(&self.of) {
                *count -= 1;
                if *count == 0 {
                    taken.remove(&self.of);
                }
            }
        }
        self.places.changed.notify_waiters();
    }
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, HashMap<Named, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, where there is one now.
    pub(super) fn try_take(self: &Arc<Self>, of: &Named) -> Option<Place> {
        let mut taken = self.lock();
        let has = taken.get(of).copied().unwrap_or_default();
        // What more than the two of a provider take, others do not miss.
        let all: usize = taken.values().map(|count| (*count).max(EACH)).sum();
        let more = match has {
            0 => EACH,
            has if has < EACH => 0,
            _ => 1,
        };
        if all + more > EACH * PROGRAMS {
            return None;
        }
        taken.insert(of.clone(), has + 1);
        Some(Place { places: self.clone(), of: of.clone() })
    }

    /// Waits for one.
    pub(super) async fn take(self: &Arc<Self>, of: &Named) -> Place {
        loop {
            let mut changed = pin!(self.changed.notified());
            // One that goes between the look and the wait is not missed.
            changed.as_mut().enable();
            if let Some(place) = self.try_take(of) {
                return place;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Named {
        ("a".parse().unwrap(), name.parse().unwrap())
    }

    #[test]
    fn whoever_replaces_a_program_finds_a_place_whatever_else_runs() {
        let places = Arc::<Places>::default();
        let first = named("p0");
        // More revisions of one provider than two, while there is room.
        let more: Vec<_> = (0..EACH + 4).map(|_| places.try_take(&first).unwrap()).collect();
        let mut held: Vec<_> = (1..).map_while(|n| places.try_take(&named(&format!("p{n}")))).collect();
        assert_eq!(held.len(), PROGRAMS - 3);
        assert!(places.try_take(&first).is_none());
        drop(more);
        held.extend((0..3).map(|n| places.try_take(&named(&format!("q{n}"))).unwrap()));
        assert!(places.try_take(&first).is_none(), "{PROGRAMS} providers have theirs");
        for n in 1..PROGRAMS - 2 {
            held.push(places.try_take(&named(&format!("p{n}"))).expect("each has one beside"));
        }
        assert!(places.try_take(&named("p1")).is_none());
        drop(held);
        assert!(places.lock().is_empty());
    }
}
