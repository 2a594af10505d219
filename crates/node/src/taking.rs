//! Which revision takes messages: the one that serves, and no other. A host takes none for a revision before it is told
//! to; it is told here, and again after it was started anew. What a revision no longer takes, the next one gets.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::Code;

use crate::supervisor::{HostRef, HostState};
use crate::tenant::Prepared;

/// How long a host may take to end handlers that are under way: the longest wall time an app can have, and a little.
const ENDED: Duration = Duration::from_secs(15 * 60 + 30);

/// From now on the revision takes messages, or takes none; [`tell`] makes the hosts follow.
pub(crate) fn set(prepared: &Prepared, taking: bool) {
    prepared.taking.store(taking, Ordering::SeqCst);
}

/// Tells the hosts that are up; one that is started later asks [`Prepared::taking`] itself. Where the revision takes no
/// more, returns when no handler of it is under way.
pub(crate) async fn tell(prepared: Arc<Prepared>, hosts: Vec<HostRef>) {
    if !prepared.takes {
        return;
    }
    let up = hosts.iter().filter(|host| *host.state.borrow() == HostState::Ready);
    futures::future::join_all(up.map(|host| tell_one(&prepared, host))).await;
}

async fn tell_one(prepared: &Prepared, host: &HostRef) {
    let (app, revision) = (&prepared.app, prepared.revision);
    let taking = prepared.taking.load(Ordering::SeqCst);
    match tokio::time::timeout(ENDED, host.client.set_taking(app, revision, taking)).await {
        Ok(Ok(())) => {}
        // It runs on other shards only, or has left already.
        Ok(Err(problem)) if problem.code == Code::NotFound => {}
        Ok(Err(problem)) => {
            tracing::debug!(%app, %revision, shard = host.shard, cause = %problem.detail, "a host cannot be told whether to take messages");
        }
        Err(_) => tracing::warn!(%app, %revision, shard = host.shard, "a host does not end its message handlers"),
    }
    // It changed while the host was told: somebody else tells the new state, and may have been first.
    if prepared.taking.load(Ordering::SeqCst) != taking {
        Box::pin(tell_one(prepared, host)).await;
    }
}
