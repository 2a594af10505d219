//! How the kernel schedules the threads a request passes through.
//!
//! Ingress and hosts wake each other once per request. Under the default policy every wake-up preempts the waker, so at
//! load each request costs several context switches and nothing is done in batches. `SCHED_BATCH` wakes without
//! preempting: measured with 32 connections on two cores, 24.6 k requests/s became 45.4 k, and 66 µs of CPU per request 35.
//! An idle core is woken as fast as before.
//!
//! The price: who computes keeps its core until the kernel's tick, 4 ms and more. So the thread of a host whose guest
//! computes is moved to `SCHED_IDLE` meanwhile ([`Seat`]): the kernel takes the core from such a thread for any other.

use std::sync::{Arc, Mutex, PoisonError};

use thread_priority::{
    Error, NormalThreadSchedulePolicy, ThreadId, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

/// A place in the order of processes that want the same core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Niceness 0: the ingress, which everybody waits for.
    Platform,
    /// Niceness 5: a host, whose guests may compute as long as their limits let them.
    Host,
}

impl Share {
    /// The library maps 0 to 99 onto niceness 19 to -20; its own numbers for ours.
    fn value(self) -> u8 {
        match self {
            Self::Platform => 47,
            Self::Host => 34,
        }
    }
}

/// Schedules the calling thread, and those it starts from now on, without wake-up preemption. Where the system refuses,
/// everything works as before, only slower.
pub fn batch(share: Share) {
    if let Err(cause) = schedule(thread_native_id(), NormalThreadSchedulePolicy::Batch, share) {
        tracing::debug!(?cause, ?share, "the scheduling policy stays as it is");
    }
}

/// Schedules the calling thread before all that computes: it takes the core as soon as it wakes.
pub fn prompt() {
    if let Err(cause) = schedule(thread_native_id(), NormalThreadSchedulePolicy::Other, Share::Platform) {
        tracing::debug!(?cause, "a thread that should be prompt is not");
    }
}

/// The policy is that of `thread`; the niceness, by the library's design, that of the calling thread.
fn schedule(thread: ThreadId, policy: NormalThreadSchedulePolicy, share: Share) -> Result<(), Error> {
    let value = ThreadPriorityValue::try_from(share.value()).map_err(|_| Error::Priority("no such priority"))?;
    set_thread_priority_and_policy(thread, ThreadPriority::Crossplatform(value), ThreadSchedulePolicy::Normal(policy))
}

/// A thread that can be moved behind all others in the queue for the cores, and back, by another thread. What is moved is
/// its policy: its niceness stays. That of the thread which moves it becomes 0.
#[derive(Debug, Clone)]
pub struct Seat(Arc<Mutex<Option<ThreadId>>>);

/// The thread is there to be moved while this lives: it must be kept by the thread itself.
#[derive(Debug)]
pub struct Sitting(Seat);

impl Seat {
    /// The calling thread's. `None` where the system would let it go behind the others and not come back: that takes
    /// `CAP_SYS_NICE`, or an `RLIMIT_NICE` that allows niceness 0.
    pub fn take() -> Option<(Self, Sitting)> {
        // Tried by a thread that is not needed any more.
        let tried = std::thread::spawn(|| {
            let me = thread_native_id();
            schedule(me, NormalThreadSchedulePolicy::Idle, Share::Platform)?;
            schedule(me, NormalThreadSchedulePolicy::Batch, Share::Platform)
        });
        match tried.join() {
            Ok(Ok(())) => {
                let seat = Self(Arc::new(Mutex::new(Some(thread_native_id()))));
                Some((seat.clone(), Sitting(seat)))
            }
            Ok(Err(cause)) => {
                tracing::debug!(?cause, "a thread that computes cannot be put behind the others");
                None
            }
            Err(_) => None,
        }
    }

    /// Behind all others: it runs when nobody else wants to.
    pub fn last(&self) {
        self.to(NormalThreadSchedulePolicy::Idle);
    }

    /// Where [`batch`] had put it.
    pub fn usual(&self) {
        self.to(NormalThreadSchedulePolicy::Batch);
    }

    fn to(&self, policy: NormalThreadSchedulePolicy) {
        // Held while it is moved, so that it is there.
        let thread = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = *thread
            && let Err(cause) = schedule(thread, policy, Share::Platform)
        {
            tracing::warn!(?cause, ?policy, "a thread cannot be moved in the queue for the cores");
        }
    }
}

impl Drop for Sitting {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields 19 (nice) and 41 (policy) of the calling thread's stat.
    fn nice_and_policy() -> (i32, i32) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[16].parse().unwrap(), fields[38].parse().unwrap())
    }

    #[test]
    fn a_host_is_nicer_than_the_platform_and_neither_preempts() {
        const SCHED_BATCH: i32 = 3;
        for (share, nice) in [(Share::Platform, 0), (Share::Host, 5)] {
            let found = std::thread::spawn(move || {
                batch(share);
                nice_and_policy()
            });
            assert_eq!(found.join().unwrap(), (nice, SCHED_BATCH), "{share:?}");
        }
    }

    #[test]
    fn a_thread_is_moved_by_another_one_and_keeps_its_niceness() {
        const SCHED_BATCH: i32 = 3;
        const SCHED_IDLE: i32 = 5;
        let moved = std::thread::spawn(|| {
            batch(Share::Host);
            let Some((seat, sitting)) = Seat::take() else { return false };
            let other = |act: fn(&Seat)| {
                let seat = seat.clone();
                std::thread::spawn(move || act(&seat)).join().unwrap();
                nice_and_policy()
            };
            assert_eq!(other(Seat::last), (5, SCHED_IDLE));
            assert_eq!(other(Seat::usual), (5, SCHED_BATCH));
            drop(sitting);
            assert_eq!(other(Seat::last), (5, SCHED_BATCH), "a thread that may be gone is not moved");
            true
        });
        if !moved.join().unwrap() {
            eprintln!("not run: this user may not raise a priority (CAP_SYS_NICE, or `ulimit -e 20`)");
        }
    }
}
