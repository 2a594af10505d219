//! Threads for the system's resolver, shared so that no tenant takes them all. A lookup of a slow name holds its thread
//! for as long as the system likes, also when nobody waits for it any more; so it holds its place as long.
//!
//! A tenant gets another place while it holds fewer than are free, and at most an eighth of all. So a few greedy ones
//! leave most of them, and many leave the same to each as to the next one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::TenantName;
use tokio::sync::Notify;

/// A tenant holds at most one in so many places.
const SHARE: usize = 8;

/// The places, all tenants together.
#[derive(Debug)]
pub(crate) struct Lookups {
    held: Mutex<Held>,
    most: usize,
    changed: Notify,
}

#[derive(Debug)]
struct Held {
    free: usize,
    by: HashMap<TenantName, usize>,
}

/// One place; free again when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    lookups: Arc<Lookups>,
    tenant: TenantName,
}

impl Lookups {
    pub(crate) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self {
            held: Mutex::new(Held { free: places, by: HashMap::new() }),
            most: places / SHARE,
            changed: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place.
    pub(crate) async fn enter(self: &Arc<Self>, tenant: &TenantName) -> Place {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // A place that becomes free between the look and the wait is not missed.
            changed.as_mut().enable();
            {
                let mut held = self.lock();
                let own = held.by.get(tenant).copied().unwrap_or_default();
                if own < held.free.min(self.most) {
                    held.free -= 1;
                    held.by.insert(tenant.clone(), own + 1);
                    return Place { lookups: self.clone(), tenant: tenant.clone() };
                }
            }
            changed.await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.lookups.lock();
        held.free += 1;
        if let Some(own) = held.by.get_mut(&self.tenant) {
            *own -= 1;
            if *own == 0 {
                held.by.remove(&self.tenant);
            }
        }
        drop(held);
        self.lookups.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn whatever_tenants_hold_the_next_one_finds_a_place() {
        let lookups = Lookups::new(256);
        let mut held = Vec::new();
        let mut counts = Vec::new();
        for n in 0..100 {
            let tenant: TenantName = format!("t{n}").parse().unwrap();
            let before = held.len();
            while let Some(place) = lookups.enter(&tenant).now_or_never() {
                held.push(place);
            }
            counts.push(held.len() - before);
        }
        assert_eq!(counts[..10], [32, 32, 32, 32, 32, 32, 32, 16, 8, 4]);
        // All free again.
        drop(held);
        let place = lookups.enter(&"t99".parse().unwrap()).now_or_never();
        assert!(place.is_some());
    }
}
