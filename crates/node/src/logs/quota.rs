//! What a tenant may write to the log of a node: by its quota, and how fast it is read at all.

use std::time::{Duration, Instant};

use model::tenant::{Quotas, Rate};

use crate::ingress::nanos;

/// What a tenant may write, and what it wrote.
#[derive(Debug)]
pub(super) struct Quota {
    pub(super) rate: Rate,
    /// See [`Rate`].
    pub(super) paid: u64,
    /// How fast what its hosts write is read at all: what is above the quota is read to be left out, and that costs too.
    pub(super) reading: Rate,
    pub(super) read: u64,
    /// Lines left out since the last one that was taken.
    pub(super) left_out: u64,
    /// Lines left out since the start.
    pub(super) dropped: u64,
}

impl Default for Quota {
    fn default() -> Self {
        let quotas = Quotas::default();
        Self { rate: rate_of(&quotas, 1), paid: 0, reading: rate_of(&quotas, 2), read: 0, left_out: 0, dropped: 0 }
    }
}

impl Quota {
    /// How long to wait before so many bytes are read; where that is not long, they are read.
    pub(super) fn pause(&mut self, now: Instant, bytes: usize) -> Option<Duration> {
        match self.reading.take(self.read, nanos(now), bytes as u64) {
            Ok(read) => {
                self.read = read;
                None
            }
            Err(wait) => Some(Duration::from_nanos(wait)),
        }
    }

    /// Whether a line of so many bytes is taken; then, how many before it were not.
    pub(super) fn take(&mut self, now: Instant, bytes: usize) -> Option<u64> {
        match self.rate.take(self.paid, nanos(now), bytes as u64) {
            Ok(paid) => {
                self.paid = paid;
                Some(std::mem::take(&mut self.left_out))
            }
            Err(_) => {
                self.left_out = self.left_out.saturating_add(1);
                self.dropped = self.dropped.saturating_add(1);
                None
            }
        }
    }
}

/// The quota, so many times over.
pub(super) fn rate_of(quotas: &Quotas, times: u64) -> Rate {
    let rate = quotas.log_rate.0.saturating_mul(times);
    Rate::new(rate, rate.saturating_mul(10))
}
