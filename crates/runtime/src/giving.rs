//! When the thread that runs guests gives way to everybody who waits for a core, and how it is kept from starving. A
//! pure machine, asked at every tick.
//!
//! A host whose guest computes would keep its core until the kernel's own tick, 4 ms and more at a time, on each hop of
//! every neighbour's request. So a thread that was seen computing stands last in the queue: whoever wakes takes the core
//! from it at once, and it gets all that nobody else wants. Where others want everything, it is owed a turn of one tick
//! after [`PATIENCE`] ticks in which it did not run at all.

use std::time::Duration;

/// Time between two ticks while no guest computes for long.
pub(crate) const COARSE: Duration = Duration::from_millis(5);
/// The same while one does: what a turn lasts, and the latest that a guest looks up.
pub(crate) const FINE: Duration = Duration::from_micros(500);
/// A guest that runs for so long without a pause computes.
pub(crate) const LONG: Duration = Duration::from_millis(1);
/// The same while the thread stands last, where it gets the core in small pieces.
pub(crate) const PIECE: Duration = Duration::from_micros(100);
/// Polls begun within a tick, where one guest had all of it: each ends when the tick comes.
const ONE_GUEST: u32 = 2;
/// Ticks without a guest after which the ticks stop. Not at once: to start them again costs more than a tick.
const LINGER: u32 = 20;
/// Fine ticks in which nothing computed, before the thread stands with the others again.
const CALM: u32 = 40;
/// Ticks in which a guest wanted to run and did not, before it is owed a turn.
const PATIENCE: u32 = 5;

/// What happened since the tick before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Polls of guests that began.
    pub(crate) begun: u32,
    /// Whether one is under way.
    pub(crate) running: bool,
    /// Polls that ended after more than [`LONG`], or [`PIECE`] while the thread stands last.
    pub(crate) long: u32,
}

/// Where the thread stands in the queue for a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Where it was put when it started.
    Usual,
    /// Behind everybody: it runs when nobody else wants to.
    Last,
    /// Where it was put when it started, until it has run: it stood behind everybody and got nothing.
    Owed,
}

/// What is to be done until the next tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Tick(Duration),
    /// No guest has run for a while.
    Park,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Usual {
        quiet: u32,
    },
    /// It stands last.
    GivesWay {
        calm: u32,
        starved: u32,
    },
    /// It stands with the others until it has run.
    Owed,
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Giving(State);

impl Giving {
    pub(crate) fn new() -> Self {
        Self(State::Usual { quiet: 0 })
    }

    /// Where the thread is to stand now.
    pub(crate) fn place(&self) -> Place {
        match self.0 {
            State::Usual { .. } => Place::Usual,
            State::Owed => Place::Owed,
            State::GivesWay { .. } => Place::Last,
        }
    }

    pub(crate) fn tick(&mut self, seen: Seen) -> Next {
        let idle = seen.begun == 0 && !seen.running;
        let computes = seen.long > 0 || (seen.running && seen.begun <= ONE_GUEST);
        self.0 = match self.0 {
            State::Usual { .. } if seen.long > 0 => State::GivesWay { calm: 0, starved: 0 },
            State::Usual { quiet } => State::Usual { quiet: if idle { quiet + 1 } else { 0 } },
            State::GivesWay { calm, .. } if !computes && calm >= CALM => State::Usual { quiet: 0 },
            State::GivesWay { calm, .. } if !computes => State::GivesWay { calm: calm + 1, starved: 0 },
            State::GivesWay { starved, .. } if seen.begun == 0 && starved >= PATIENCE => State::Owed,
            State::GivesWay { starved, .. } if seen.begun == 0 => State::GivesWay { calm: 0, starved: starved + 1 },
            State::GivesWay { .. } => State::GivesWay { calm: 0, starved: 0 },
            State::Owed if seen.running && seen.begun == 0 => State::Owed,
            State::Owed => State::GivesWay { calm: 0, starved: 0 },
        };
        match self.0 {
            State::Usual { quiet } if quiet >= LINGER => Next::Park,
            State::Usual { .. } => Next::Tick(COARSE),
            State::GivesWay { .. } | State::Owed => Next::Tick(FINE),
        }
    }

    /// The ticks were stopped and go on.
    pub(crate) fn woken(&mut self) {
        self.0 = State::Usual { quiet: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPINS: Seen = Seen { begun: 1, running: true, long: 1 };
    const STARVES: Seen = Seen { begun: 0, running: true, long: 0 };
    const SERVES: Seen = Seen { begun: 40, running: true, long: 0 };
    const RESTS: Seen = Seen { begun: 0, running: false, long: 0 };

    fn after(seen: &[Seen]) -> Giving {
        let mut giving = Giving::new();
        for seen in seen {
            giving.tick(*seen);
        }
        giving
    }

    #[test]
    fn who_computes_stands_last_and_who_serves_does_not() {
        assert_eq!(after(&[SERVES; 100]).place(), Place::Usual);
        assert_eq!(after(&[SERVES, SPINS]).place(), Place::Last);
        assert_eq!(after(&[SPINS; 1000]).place(), Place::Last);
        assert_eq!(after(&[SPINS]).tick(SPINS), Next::Tick(FINE));
    }

    #[test]
    fn who_stops_computing_stands_with_the_others_again() {
        for calm in [SERVES, RESTS] {
            let mut giving = after(&[SPINS]);
            let ticks = (0..1000).take_while(|_| giving.tick(calm) == Next::Tick(FINE)).count();
            assert_eq!((ticks, giving.place()), (CALM as usize, Place::Usual), "{calm:?}");
        }
    }

    #[test]
    fn nobody_starves() {
        let mut giving = after(&[SPINS]);
        let starves = |giving: &mut Giving| {
            giving.tick(STARVES);
            giving.place() == Place::Last
        };
        let starved = (0..1000).take_while(|_| starves(&mut giving)).count();
        assert_eq!((starved, giving.place()), (PATIENCE as usize, Place::Owed));
        // The turn lasts until it ran, and one tick then.
        giving.tick(STARVES);
        assert_eq!(giving.place(), Place::Owed);
        giving.tick(SPINS);
        assert_eq!(giving.place(), Place::Last);
    }

    #[test]
    fn ticks_stop_when_nothing_runs() {
        let mut giving = Giving::new();
        let ticks = (0..1000).take_while(|_| giving.tick(RESTS) != Next::Park).count();
        assert_eq!(ticks, LINGER as usize - 1);
        giving.woken();
        assert_eq!(giving.tick(RESTS), Next::Tick(COARSE));
    }
}
