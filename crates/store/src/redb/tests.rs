//! The store on a disk that fails while a write is synced.

use super::*;
use crate::disk::tests::{Faults, faulty};

/// Whoever made the write is told that nothing is known of it, never that somebody else was faster.
#[tokio::test]
async fn a_write_that_may_be_kept_is_not_judged_by_what_is_there() {
    let (mut untold, mut kept) = (0, 0);
    for acts in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let faults = Arc::new(Faults::none());
        let store = RedbStore::start(faulty(&dir.path().join("s.redb"), KIND, &faults)).unwrap();
        let lease = store.grant(Duration::from_secs(600)).await.unwrap();
        faults.allow(acts);
        let put = store.put("a", Bytes::from_static(b"x"), Expect::Absent, None);
        let (put, alive) = tokio::join!(put, store.keep_alive(lease));
        faults.allow(-1);
        alive.unwrap_or_else(|cause| panic!("after {acts}: leases need no disk: {cause}"));
        match put {
            Ok(_) | Err(StoreError::CannotWrite { .. }) => {}
            Err(StoreError::Unreachable(_)) => {
                untold += 1;
                kept += u32::from(store.get("a").await.unwrap().is_some());
            }
            Err(other) => panic!("after {acts}: {other}"),
        }
    }
    assert!(untold > 0 && kept > 0, "{untold} untold, {kept} of them kept");
}
