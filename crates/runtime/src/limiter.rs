//! Counts linear memory and table elements of one instance, all of them together, and remembers what it refused.

use model::Limits;
use wasmtime::ResourceLimiter;

use crate::config;

/// What was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hit {
    Memory,
    TableElements,
}

/// The account of one instance.
#[derive(Debug)]
pub(crate) struct Limiter {
    limits: Limits,
    memory: u64,
    elements: u64,
    hit: Option<Hit>,
}

impl Limiter {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, memory: 0, elements: 0, hit: None }
    }
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }
    /// The last refusal since [`Self::begin`].
    pub(crate) fn hit(&self) -> Option<Hit> {
        self.hit
    }
    /// A new call on the same instance: its memory stays counted.
    pub(crate) fn begin(&mut self) {
        self.hit = None;
    }
}

/// What `used` becomes, where it stays within `limit`.
fn grow(used: u64, current: usize, desired: usize, limit: u64) -> Option<u64> {
    let total = used.saturating_add(desired.saturating_sub(current) as u64);
    (total <= limit).then_some(total)
}

/// Growth beyond the type's own maximum fails whatever we say. It is refused before it is counted, because the engine
/// also reports failures it never asked about, so nothing counted can safely be given back.
fn hopeless(desired: usize, maximum: Option<usize>) -> bool {
    maximum.is_some_and(|maximum| desired > maximum)
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if hopeless(desired, maximum) {
            return Ok(false);
        }
        let Some(total) = grow(self.memory, current, desired, self.limits.memory.0) else {
            self.hit = Some(Hit::Memory);
            return Ok(false);
        };
        self.memory = total;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if hopeless(desired, maximum) {
            return Ok(false);
        }
        let Some(total) = grow(self.elements, current, desired, u64::from(self.limits.table_elements)) else {
            self.hit = Some(Hit::TableElements);
            return Ok(false);
        };
        self.elements = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        config::CORE_INSTANCES
    }
    fn tables(&self) -> usize {
        config::TABLES
    }
    fn memories(&self) -> usize {
        config::MEMORIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::unit::ByteSize;

    #[test]
    fn memories_count_together() {
        let mut limiter = Limiter::new(Limits { memory: ByteSize(100), ..Limits::default() });
        assert!(limiter.memory_growing(0, 60, None).unwrap());
        assert!(limiter.memory_growing(0, 40, None).unwrap());
        assert!(!limiter.memory_growing(40, 41, None).unwrap());
        assert_eq!(limiter.hit(), Some(Hit::Memory));
        limiter.begin();
        assert_eq!(limiter.hit(), None);
    }

    #[test]
    fn growth_beyond_the_maximum_is_refused_and_not_counted() {
        let mut limiter = Limiter::new(Limits { table_elements: 10, ..Limits::default() });
        assert!(!limiter.table_growing(0, 9, Some(8)).unwrap());
        assert_eq!(limiter.hit(), None);
        assert!(limiter.table_growing(0, 10, None).unwrap());
        limiter.table_grow_failed(wasmtime::format_err!("never asked about")).unwrap();
        assert!(!limiter.table_growing(10, 11, None).unwrap());
        assert_eq!(limiter.hit(), Some(Hit::TableElements));
    }
}
