//! How fast what others write is taken: lines a second where it is passed on, bytes a second where it is read at all.

use std::time::{Duration, Instant};

use model::tenant::Rate;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::ingress::nanos;

/// Bytes that are read of one output of a process, a second over time and at once.
pub(crate) const READ_PER_SECOND: u64 = 256 << 10;
pub(crate) const READ_BURST: u64 = 1 << 20;

/// Lines of the node's own log that hosts or components of one tenant bring about: a second over time, and at once.
const OF_TENANT: (f64, f64) = (5.0, 20.0);

/// A bucket of lines.
#[derive(Debug)]
pub(crate) struct LineRate {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
    lost: u64,
}

impl LineRate {
    /// So many lines a second over time, and so many at once.
    pub(crate) fn new(now: Instant, per_second: f64, burst: f64) -> Self {
        Self { per_second, burst, tokens: burst, at: now, lost: 0 }
    }

    /// Lines of the node's own log on account of one tenant.
    pub(crate) fn of_tenant(now: Instant) -> Self {
        Self::new(now, OF_TENANT.0, OF_TENANT.1)
    }

    /// Leave for one line, with the number of those that had none since the last one that had.
    pub(crate) fn take(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        self.at = now;
        if self.tokens < 1.0 {
            self.lost = self.lost.saturating_add(1);
            return None;
        }
        self.tokens -= 1.0;
        Some(std::mem::take(&mut self.lost))
    }
}

/// A reader that waits until it has paid for what it read.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Rate,
    paid: u64,
}

impl Pace {
    /// So many units a second over time, and so many at once.
    pub(crate) fn new(per_second: u64, burst: u64) -> Self {
        Self { rate: Rate::new(per_second, burst), paid: 0 }
    }

    /// Pays for so many units, or says how long to wait before that is tried again.
    pub(crate) fn take(&mut self, units: u64) -> Option<Duration> {
        match self.rate.take(self.paid, nanos(Instant::now()), units) {
            Ok(paid) => {
                self.paid = paid;
                None
            }
            Err(wait) => Some(Duration::from_nanos(wait)),
        }
    }

    /// Pays for so many units, at once or later.
    pub(crate) async fn pay(&mut self, units: u64) {
        while let Some(wait) = self.take(units) {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Reads an output of a process to its end, line by line; of a line no more than `longest` bytes are kept. One that writes
/// faster than that is read waits for us: the threads that read are those of everybody.
pub(crate) async fn lines(mut source: impl AsyncRead + Unpin, longest: usize, mut hear: impl FnMut(&[u8])) {
    let mut pace = Pace::new(READ_PER_SECOND, READ_BURST);
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = source.read(&mut chunk).await {
        for byte in chunk.iter().take(count) {
            if *byte != b'\n' {
                if line.len() < longest {
                    line.push(*byte);
                }
                continue;
            }
            hear(&line);
            line.clear();
        }
        pace.pay(count as u64).await;
    }
    hear(&line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_writes_too_fast_loses_lines_and_is_told_how_many() {
        let start = Instant::now();
        let mut rate = LineRate::new(start, 20.0, 100.0);
        let passed = (0..1000).filter(|_| rate.take(start).is_some()).count();
        assert_eq!(passed, 100);
        assert_eq!(rate.take(start + Duration::from_secs(1)), Some(900));
        assert_eq!(rate.take(start + Duration::from_secs(1)), Some(0));
    }
}
