//! What hostile components do to a node, and what must become of each: run against the real binary, with a tenant on the
//! same node that notices nothing.
//!
//! `guests/hostile` holds the corpus, [`cases`] says what is expected of each, [`arena`] runs them, [`soak`] does so for long.

pub mod arena;
pub mod cases;
pub mod raw;
pub mod soak;
