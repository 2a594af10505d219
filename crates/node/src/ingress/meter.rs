//! What one worker's requests came to: status classes, how long they took, how many are under way. Each worker counts
//! for itself, so that counting makes no two of them wait for each other; whoever asks adds them up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::StatusCode;
use tokio::time::Instant;

/// Buckets of the histogram: bucket `n` counts requests that took less than 2^n microseconds, the last one all others.
pub(crate) const BUCKETS: usize = 31;
/// What requests end with, in the order of the counters. The last is a client that left, or a host that broke off.
pub(crate) const CLASSES: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", "aborted"];
pub(super) const ABORTED: usize = CLASSES.len() - 1;

/// Counters of one worker.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    in_flight: AtomicU64,
    ended: [AtomicU64; CLASSES.len()],
    took: [AtomicU64; BUCKETS],
    took_us: AtomicU64,
}

/// The counters of all workers at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    pub(crate) in_flight: u64,
    pub(crate) ended: [u64; CLASSES.len()],
    pub(crate) took: [u64; BUCKETS],
    pub(crate) took_us: u64,
}

impl Meter {
    /// A request has begun; it ends when what is returned goes away.
    pub(super) fn begin(&self) -> Measured<'_> {
        self.enter();
        Measured { meter: self, began: Instant::now(), class: ABORTED }
    }

    /// The same for a request that outlives its borrow; [`Meter::leave`] must follow.
    pub(super) fn enter(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(super) fn leave(&self, began: Instant, class: usize) {
        self.in_flight.fetch_sub(1, Relaxed);
        let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.took_us.fetch_add(us, Relaxed);
        let bucket = ((u64::BITS - us.leading_zeros()) as usize).min(BUCKETS - 1);
        for counter in [self.took.get(bucket), self.ended.get(class)].into_iter().flatten() {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Adds what this worker counted.
    pub(crate) fn add_to(&self, all: &mut Requests) {
        all.in_flight += self.in_flight.load(Relaxed);
        all.took_us += self.took_us.load(Relaxed);
        all.ended.iter_mut().zip(&self.ended).for_each(|(sum, n)| *sum += n.load(Relaxed));
        all.took.iter_mut().zip(&self.took).for_each(|(sum, n)| *sum += n.load(Relaxed));
    }
}

/// The place of a status among [`CLASSES`]. Interim answers are no end, and are not asked about.
pub(super) fn class(status: StatusCode) -> usize {
    match status.as_u16() {
        0..=299 => 0,
        300..=399 => 1,
        400..=499 => 2,
        _ => 3,
    }
}

/// A request under way.
pub(super) struct Measured<'a> {
    meter: &'a Meter,
    began: Instant,
    class: usize,
}

impl Measured<'_> {
    /// When it began.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// The whole of its answer was sent.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.class = class(status);
    }
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        self.meter.leave(self.began, self.class);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_end_once_with_their_class() {
        let meter = Meter::default();
        let read = || {
            let mut all = Requests::default();
            meter.add_to(&mut all);
            all
        };
        let mut one = meter.begin();
        let two = meter.begin();
        assert_eq!((read().in_flight, read().ended), (2, [0; 5]));
        one.answered(StatusCode::NOT_FOUND);
        drop((one, two));
        let all = read();
        assert_eq!((all.in_flight, all.ended, all.took.iter().sum::<u64>()), (0, [0, 0, 1, 0, 1], 2));
        let classes = [200, 204, 302, 404, 500, 503].map(|code| class(StatusCode::from_u16(code).unwrap()));
        assert_eq!(classes, [0, 0, 1, 2, 3, 3]);
    }
}
