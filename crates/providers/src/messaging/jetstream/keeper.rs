//! Tells the server of every message that is still being handled, so that it is not given to somebody else meanwhile.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::lock;
use crate::nats::{Client, Outgoing};

/// Between two words about a message: a third of the time the server waits.
const EVERY: Duration = Duration::from_secs(10);

/// What is handled now, by the subject on which the server hears of it.
pub(super) struct Keeper {
    client: Client,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    handled: HashSet<Arc<str>>,
    /// A task speaks for them.
    speaking: bool,
}

/// A message that is being handled, until this is dropped.
pub(super) struct Kept {
    keeper: Arc<Keeper>,
    pub(super) subject: Arc<str>,
}

impl Keeper {
    pub(super) fn new(client: Client) -> Arc<Self> {
        Arc::new(Self { client, state: Mutex::default() })
    }

    pub(super) fn keep(self: &Arc<Self>, subject: &str) -> Kept {
        let subject: Arc<str> = subject.into();
        let mut state = lock(&self.state);
        state.handled.insert(subject.clone());
        if !std::mem::replace(&mut state.speaking, true) {
            tokio::spawn(self.clone().speak());
        }
        Kept { keeper: self.clone(), subject }
    }

    /// Until nothing is handled any more.
    async fn speak(self: Arc<Self>) {
        loop {
            tokio::time::sleep(EVERY).await;
            let now: Vec<Arc<str>> = {
                let mut state = lock(&self.state);
                state.speaking = !state.handled.is_empty();
                if !state.speaking {
                    return;
                }
                state.handled.iter().cloned().collect()
            };
            for subject in now {
                // Where it does not arrive the message may come twice.
                self.client.publish(Outgoing::new(&*subject, "+WPI")).await.ok();
            }
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        lock(&self.keeper.state).handled.remove(&self.subject);
    }
}
