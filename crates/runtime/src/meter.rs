//! Counters of one workload, written on the request path and read by status reports.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::fault::Fault;

/// Counters of one workload.
#[derive(Debug, Default)]
pub struct Meter {
    calls: AtomicU64,
    failed: AtomicU64,
    cpu_ns: AtomicU64,
    in_flight: AtomicU32,
    instances: AtomicU64,
    last_fault: Mutex<Option<Fault>>,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MeterSnapshot {
    /// Calls ended.
    pub calls: u64,
    /// Calls that ended in a fault; those the caller cancelled are not counted.
    pub failed: u64,
    /// CPU time of all calls, microseconds.
    pub cpu_us: u64,
    /// Calls whose guest runs now.
    pub in_flight: u32,
    /// Instances made.
    pub instances: u64,
}

impl Meter {
    /// Calls ended.
    pub fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }
    /// Calls that ended in a fault.
    pub fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }
    /// CPU time of all calls, microseconds.
    pub fn cpu_us(&self) -> u64 {
        self.cpu_ns.load(Relaxed) / 1000
    }
    /// Calls whose guest runs now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }
    /// Why the last failed call failed.
    pub fn last_fault(&self) -> Option<Fault> {
        self.last_fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// Everything at once.
    pub fn snapshot(&self) -> MeterSnapshot {
        MeterSnapshot {
            calls: self.calls(),
            failed: self.failed(),
            cpu_us: self.cpu_us(),
            in_flight: self.in_flight(),
            instances: self.instances.load(Relaxed),
        }
    }

    pub(crate) fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }
    pub(crate) fn end(&self, cpu_ns: u64, fault: Option<Fault>) {
        self.in_flight.fetch_sub(1, Relaxed);
        self.calls.fetch_add(1, Relaxed);
        self.cpu_ns.fetch_add(cpu_ns, Relaxed);
        if let Some(fault) = fault {
            self.fail(fault);
        }
    }
    pub(crate) fn fail(&self, fault: Fault) {
        self.failed.fetch_add(1, Relaxed);
        *self.last_fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }
    pub(crate) fn instantiated(&self) {
        self.instances.fetch_add(1, Relaxed);
    }
}
