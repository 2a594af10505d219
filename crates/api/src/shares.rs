//! Room in memory for what tenants have under way, shared so that no tenant takes it all: each gets more while it has less
//! than is free. One alone has half of it, and many leave the same to each as to the next one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::TenantName;
use tokio::sync::Notify;

/// The room, bytes, all tenants together.
#[derive(Debug)]
pub struct Shares {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    free: usize,
    by: HashMap<TenantName, usize>,
}

/// What one request holds of it; free again when dropped.
#[derive(Debug)]
pub struct Held {
    shares: Arc<Shares>,
    tenant: TenantName,
    bytes: usize,
}

impl Shares {
    /// So many bytes of room.
    pub fn new(bytes: usize) -> Arc<Self> {
        let state = Mutex::new(State { free: bytes, by: HashMap::new() });
        Arc::new(Self { state, changed: Notify::new() })
    }

    /// Nothing yet, for a tenant.
    pub fn hold(self: &Arc<Self>, tenant: &TenantName) -> Held {
        Held { shares: self.clone(), tenant: tenant.clone(), bytes: 0 }
    }

    /// What nobody holds of it, bytes.
    pub fn free(&self) -> usize {
        self.lock().free
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_more(&self, tenant: &TenantName, bytes: usize) -> bool {
        let state = &mut *self.lock();
        let own = state.by.get(tenant).copied().unwrap_or_default();
        let fits = own.saturating_add(bytes) <= state.free;
        if fits {
            state.free -= bytes;
            *state.by.entry(tenant.clone()).or_default() += bytes;
        }
        fits
    }
}

impl Shares {
    fn give(&self, tenant: &TenantName, bytes: usize) {
        {
            let state = &mut *self.lock();
            state.free += bytes;
            if let Some(own) = state.by.get_mut(tenant) {
                *own -= bytes;
                if *own == 0 {
                    state.by.remove(tenant);
                }
            }
        }
        self.changed.notify_waiters();
    }
}

impl Held {
    /// Waits for so much more.
    pub async fn more(&mut self, bytes: usize) {
        loop {
            let mut changed = std::pin::pin!(self.shares.changed.notified());
            // Room that becomes free between the look and the wait is not missed.
            changed.as_mut().enable();
            if self.shares.try_more(&self.tenant, bytes) {
                break;
            }
            changed.await;
        }
        self.bytes += bytes;
    }

    /// Gives back what is more than that.
    pub fn only(&mut self, bytes: usize) {
        let more = self.bytes.saturating_sub(bytes);
        self.bytes -= more;
        self.shares.give(&self.tenant, more);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shares.give(&self.tenant, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn no_tenant_takes_it_all_and_what_is_given_back_is_there_for_others() {
        let shares = Shares::new(80);
        let tenant = |name: &str| name.parse::<TenantName>().unwrap();
        let take = |name: &str, bytes| {
            let mut held = shares.hold(&tenant(name));
            held.more(bytes).now_or_never().map(|()| held)
        };
        // One alone, over as many requests as it likes.
        let greedy: Vec<_> = std::iter::from_fn(|| take("greedy", 10)).collect();
        assert_eq!(greedy.len(), 4);
        let others: Vec<_> = ["one", "two"].iter().filter_map(|name| take(name, 10)).collect();
        assert_eq!(others.len(), 2);
        // One that waits gets it when somebody is done.
        let mut waits = shares.hold(&tenant("one"));
        {
            let mut more = Box::pin(waits.more(20));
            assert!((&mut more).now_or_never().is_none());
            drop(greedy);
            assert!((&mut more).now_or_never().is_some());
        }
        waits.only(5);
        assert_eq!(shares.lock().by[&tenant("one")], 15);
        drop((waits, others));
        assert_eq!(shares.lock().free, 80);
        assert!(shares.lock().by.is_empty());
    }
}
