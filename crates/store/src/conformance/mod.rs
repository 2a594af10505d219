//! What every backend of [`Store`](crate::Store) must do, as a suite that runs over any of them.
//!
//! Each case works under a prefix of its own, so that one store serves the whole suite, filled or not.

mod leases;
mod watches;
mod writes;

use std::fmt::Display;
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::{Store, StoreError};

/// What a backend did that it must not.
#[derive(Debug, thiserror::Error)]
#[error("{case}: {what}")]
pub struct Violation {
    /// The case of the suite.
    pub case: &'static str,
    /// What was seen.
    pub what: String,
}

/// A case's end: what was seen where it must not be.
type Outcome = Result<(), String>;
type Case = for<'a> fn(&'a Arc<dyn Store>, &'a str) -> BoxFuture<'a, Outcome>;

macro_rules! cases {
    ($($module:ident::$case:ident),+ $(,)?) => {
        const CASES: &[(&str, Case)] = &[$((stringify!($case), |store, prefix| Box::pin($module::$case(store, prefix)))),+];
    };
}

cases![
    writes::a_key_is_what_was_last_written,
    writes::compare_and_set_lets_exactly_the_expected_through,
    writes::revisions_grow_and_name_the_last_write,
    writes::a_list_is_whole_ordered_and_of_its_prefix_only,
    writes::a_list_shows_one_moment,
    writes::sizes_are_those_of_the_list,
    writes::concurrent_compare_and_set_is_linear,
    writes::one_of_many_creators_wins,
    watches::a_watch_first_gives_what_happened_then_what_happens,
    watches::a_watch_sees_its_prefix_in_order_without_gaps,
    watches::list_then_watch_rebuilds_the_same_state,
    watches::a_key_read_after_its_change_is_at_least_as_new,
    watches::a_watch_from_too_long_ago_says_so,
    leases::leased_keys_are_seen_like_others_and_end_with_their_lease,
    leases::a_lease_that_is_not_kept_alive_ends,
    leases::a_lease_that_is_kept_alive_stays,
    leases::an_ended_lease_takes_no_more_keys,
    leases::a_key_belongs_to_its_last_writer,
];

/// Runs all cases, one after the other, and returns the first violation. Takes some seconds.
pub async fn run(store: Arc<dyn Store>) -> Result<(), Violation> {
    for (case, act) in CASES {
        let prefix = format!("conformance/{case}/");
        act(&store, &prefix).await.map_err(|what| Violation { case, what })?;
    }
    Ok(())
}

fn ok<T>(what: impl Display, result: Result<T, StoreError>) -> Result<T, String> {
    result.map_err(|error| format!("{what} failed: {error}"))
}

fn same<T: PartialEq + std::fmt::Debug>(what: impl Display, seen: &T, expected: &T) -> Outcome {
    if seen == expected { Ok(()) } else { Err(format!("{what}: saw {seen:?}, expected {expected:?}")) }
}

fn holds(holds: bool, what: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(what()) }
}

/// The conflict's current revision; anything else is a violation.
fn conflict<T: std::fmt::Debug>(what: impl Display, result: Result<T, StoreError>) -> Result<Option<u64>, String> {
    match result {
        Err(StoreError::Conflict { current, .. }) => Ok(current),
        other => Err(format!("{what} should have been a conflict, was {other:?}")),
    }
}

async fn joined<T>(tasks: Vec<tokio::task::JoinHandle<Result<T, String>>>) -> Result<Vec<T>, String> {
    let mut all = Vec::with_capacity(tasks.len());
    for task in tasks {
        all.push(task.await.map_err(|error| error.to_string())??);
    }
    Ok(all)
}
