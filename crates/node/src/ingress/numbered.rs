//! Maps whose keys are numbers that we give out ourselves, one after the other: whoever cannot choose a key cannot choose keys
//! that collide, so such a map needs no hash that is safe against it, and is asked several times for each request.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by numbers of our own.
pub(super) type Numbered<T> = HashMap<u64, T, BuildHasherDefault<Spread>>;

/// Spreads a number over all bits; numbers in a row differ in the lowest ones, which stay apart.
#[derive(Debug, Default)]
pub(super) struct Spread(u64);

/// Odd, so that no two numbers have the same hash.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(FACTOR);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher as _;

    use super::*;

    #[test]
    fn numbers_in_a_row_are_spread() {
        let map = Numbered::<()>::default();
        let hashes: Vec<u64> = (0..1024_u64).map(|number| map.hasher().hash_one(number)).collect();
        // The map takes the place from the lowest bits, and tells keys in one place apart by the highest seven.
        let places: HashSet<u64> = hashes.iter().map(|hash| hash % 1024).collect();
        let marks: HashSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
        assert_eq!((places.len(), marks.len()), (1024, 128));
    }
}
