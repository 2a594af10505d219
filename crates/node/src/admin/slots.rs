//! Who has a series of its own. Monitoring systems keep every series they ever saw, so there are only so many: first
//! come, first served, for as long as it is there; the rest is told as one.

use std::collections::HashSet;
use std::hash::Hash;

/// The name in place of those without a series of their own. No tenant or app can be called that.
pub(super) const OTHER: &str = "_other";
/// Components, and links, with series of their own.
pub(super) const COMPONENTS: usize = 1000;
pub(super) const LINKS: usize = 500;
/// Tenants with series of their own.
pub(super) const TENANTS: usize = 200;

/// Places taken.
#[derive(Debug, Default)]
pub(super) struct Slots {
    pub(super) tenants: Taken<String>,
    pub(super) components: Taken<[String; 3]>,
    pub(super) links: Taken<[String; 6]>,
}

/// Places of one kind.
#[derive(Debug)]
pub(super) struct Taken<K>(HashSet<K>);

impl<K> Default for Taken<K> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<K: Eq + Hash + Clone> Taken<K> {
    /// Gives places back that nobody in `there` has, and gives them to others, up to `most`.
    pub(super) fn assign<'a>(&mut self, there: impl Iterator<Item = &'a K> + Clone, most: usize)
    where
        K: 'a,
    {
        let present: HashSet<&K> = there.clone().collect();
        self.0.retain(|key| present.contains(key));
        for key in there {
            if self.0.len() >= most {
                return;
            }
            if !self.0.contains(key) {
                self.0.insert(key.clone());
            }
        }
    }

    /// Whether this one has a place.
    pub(super) fn has(&self, key: &K) -> bool {
        self.0.contains(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_kept_and_given_on_when_it_is_free() {
        let mut taken = Taken::default();
        let keys = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        taken.assign(keys(&["m", "n"]).iter(), 2);
        // An earlier name takes nobody's place.
        taken.assign(keys(&["a", "m", "n"]).iter(), 2);
        assert!(!taken.has(&"a".to_owned()) && taken.has(&"m".to_owned()) && taken.has(&"n".to_owned()));
        taken.assign(keys(&["a", "n"]).iter(), 2);
        assert!(taken.has(&"a".to_owned()) && !taken.has(&"m".to_owned()));
    }
}
