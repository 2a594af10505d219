//! The hosts of one tenant as the ingress sees them. The supervisors put shards in and take them out; every set that
//! shows a shard changes with it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::ingress::{Shard, ShardSet};

/// The shards of one tenant.
#[derive(Debug)]
pub(crate) struct Front {
    all: Arc<ShardSet>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    shards: BTreeMap<u32, Arc<Shard>>,
    /// For apps that run on one shard only.
    single: BTreeMap<u32, Arc<ShardSet>>,
}

impl Front {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { all: ShardSet::new(Vec::new()), state: Mutex::default() })
    }

    /// The set of all shards.
    pub(crate) fn all(&self) -> Arc<ShardSet> {
        self.all.clone()
    }

    /// The set with just this shard, whether it is up or not.
    pub(crate) fn only(&self, shard: u32) -> Arc<ShardSet> {
        let state = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let here = state.shards.get(&shard).cloned();
        state.single.entry(shard).or_insert_with(|| ShardSet::new(here.into_iter().collect())).clone()
    }

    /// A new process answers for the shard. It is another shard to the ingress: no connection to the old one is used.
    pub(crate) fn up(&self, shard: u32, data_socket: PathBuf) {
        self.change(shard, Some(Shard::new(shard, data_socket)));
    }

    /// The shard's process is gone and will be back: calls may wait for it.
    pub(crate) fn down(&self, shard: u32) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.all.set_healthy(shard, false);
        if let Some(single) = state.single.get(&shard) {
            single.set_healthy(shard, false);
        }
    }

    /// The shard is not coming back.
    pub(crate) fn gone(&self, shard: u32) {
        self.change(shard, None);
    }

    fn change(&self, number: u32, shard: Option<Arc<Shard>>) {
        let state = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match shard.clone() {
            Some(shard) => state.shards.insert(number, shard),
            None => state.shards.remove(&number),
        };
        if let Some(single) = state.single.get(&number) {
            single.replace(shard.into_iter().collect());
        }
        self.all.replace(state.shards.values().cloned().collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_follows_its_shards() {
        let front = Front::new();
        let (all, one) = (front.all(), front.only(1));
        front.up(0, "0".into());
        front.up(1, "1".into());
        assert_eq!((all.shards().len(), one.shards().len()), (2, 1));
        front.down(1);
        assert!(!one.shards()[0].is_healthy() && all.shards()[0].is_healthy());
        front.up(1, "1".into());
        assert!(one.shards()[0].is_healthy());
        front.gone(1);
        assert_eq!((all.shards().len(), one.shards().len()), (1, 0));
        assert_eq!(front.only(0).shards().len(), 1);
    }
}
