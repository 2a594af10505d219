//! What the API calls an etag. In the store each object has the number of the write that made it, of all writes there were:
//! whoever compares two of those learns how much everybody else writes. So they go out enciphered, one number for another,
//! and come back the same way; nothing else knows of it.

use api::client::Require;
use sha2::{Digest as _, Sha256};

/// Bits of a half: two of them are a number that JSON carries whole everywhere.
const HALF: u32 = 26;
const MASK: u64 = (1 << HALF) - 1;
/// Rounds of the cipher.
const ROUNDS: u8 = 6;

/// Enciphers revisions of the store: a Feistel network, so that each has one etag and each etag one revision.
#[derive(Clone)]
pub(crate) struct Etags([u8; 32]);

impl Etags {
    /// With a key that comes from the operator's token: it is kept where this process starts again, and known to nobody else
    /// who could not see the store anyway.
    pub(crate) fn new(token: &str) -> Self {
        let key = Sha256::new().chain_update(b"sidereal etags\0").chain_update(token);
        Self(key.finalize().into())
    }

    fn round(&self, number: u8, half: u64) -> u64 {
        let mixed =
            Sha256::new().chain_update(self.0).chain_update([number]).chain_update(half.to_le_bytes()).finalize();
        mixed.iter().take(4).fold(0, |sum, byte| sum << 8 | u64::from(*byte)) & MASK
    }

    /// The etag of what was written at a revision; 0, which is none, stays none.
    pub(crate) fn of(&self, revision: u64) -> u64 {
        if revision == 0 {
            return 0;
        }
        let start = (revision >> HALF & MASK, revision & MASK);
        let (left, right) = (0..ROUNDS).fold(start, |(left, right), n| (right, left ^ self.round(n, right)));
        left << HALF | right
    }

    /// The revision that has this etag; some other number for what is no etag.
    fn revision(&self, etag: u64) -> u64 {
        if etag == 0 || etag >> (2 * HALF) != 0 {
            return u64::MAX;
        }
        let start = (etag >> HALF & MASK, etag & MASK);
        let (left, right) = (0..ROUNDS).rev().fold(start, |(left, right), n| (right ^ self.round(n, left), left));
        left << HALF | right
    }

    /// A condition that names an etag, as the store knows it.
    pub(crate) fn require(&self, require: Require) -> Require {
        match require {
            Require::At(etag) => Require::At(self.revision(etag)),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_revision_has_an_etag_of_its_own_that_says_nothing_of_it() {
        let etags = Etags::new("a token of the operator");
        let revisions = [1, 2, 3, 1000, 1 << 26, (1 << 26) + 1, 1 << 40, (1 << 52) - 1];
        let made: Vec<u64> = revisions.iter().map(|revision| etags.of(*revision)).collect();
        for (revision, etag) in revisions.iter().zip(&made) {
            assert_eq!(etags.revision(*etag), *revision);
            assert!(*etag < 1 << 52, "{etag} is a whole number everywhere");
            assert_eq!(made.iter().filter(|other| *other == etag).count(), 1);
        }
        // Neighbours are nowhere near each other, in either half.
        let near = |a: u64, b: u64| a.abs_diff(b) < 1 << 20;
        let apart = (1..1000).filter(|n| near(etags.of(*n), etags.of(n + 1))).count();
        assert!(apart < 3, "{apart}");
        let same = (1..1000).filter(|n| etags.of(*n) & MASK == etags.of(n + 1) & MASK).count();
        assert!(same < 3, "{same}");
        // Another platform's are others, and what is no etag is no revision.
        assert_ne!(Etags::new("the token of another one").of(1), etags.of(1));
        assert_eq!(etags.of(0), 0);
        for none in [0, 1 << 52, u64::MAX] {
            assert_eq!(etags.revision(none), u64::MAX);
        }
    }
}
