//! The tasks a driver tracks, and the state that outlives the plugin. The state is versioned: a newer plugin takes over what an
//! older one wrote, or says that it cannot.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Failure;

/// Tasks by id.
#[derive(Debug)]
pub struct Tasks<T>(RwLock<BTreeMap<String, Arc<T>>>);

impl<T> Default for Tasks<T> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<T> Tasks<T> {
    /// A task.
    ///
    /// # Errors
    /// When it is unknown.
    pub fn get(&self, id: &str) -> Result<Arc<T>, Failure> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(id).cloned().ok_or_else(|| Failure::unknown_task(id))
    }

    /// Tracks a task; the one that is tracked already where there is one.
    pub fn add(&self, id: &str, task: Arc<T>) -> Result<(), Arc<T>> {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match all.get(id) {
            Some(known) => Err(known.clone()),
            None => {
                all.insert(id.to_owned(), task);
                Ok(())
            }
        }
    }

    /// Forgets a task.
    pub fn remove(&self, id: &str) -> Option<Arc<T>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What finds a task again, kept by the agent.
pub trait State: Serialize + DeserializeOwned {
    /// The version that is written. Another one for each change that a plugin of the version before would read wrongly.
    const VERSION: u32;

    /// Takes over what a plugin wrote whose state had the older `version`: at least of the one before, or an update of the plugin
    /// ends the tasks that run.
    ///
    /// # Errors
    /// Why it is not, in words.
    fn migrate(version: u32, state: serde_json::Value) -> Result<Self, String> {
        let _ = (version, state);
        Err("it does not know that one".to_owned())
    }
}

#[derive(Serialize, Deserialize)]
struct Versioned<S> {
    version: u32,
    state: S,
}

/// Writes a state.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn encode<S: State>(state: &S) -> Result<Vec<u8>, Failure> {
    let text = serde_json::to_vec(&Versioned { version: S::VERSION, state });
    text.map_err(|cause| Failure::unrecoverable(format!("the state of the task cannot be written: {cause}")))
}

/// Reads a state of this version, or takes over one that is older.
///
/// # Errors
/// When it is newer, not taken over, or none at all.
pub fn decode<S: State>(text: &[u8]) -> Result<S, Failure> {
    let unreadable = |cause| Failure::unrecoverable(format!("the state of the task cannot be read: {cause}"));
    let Versioned { version, state } =
        serde_json::from_slice::<Versioned<serde_json::Value>>(text).map_err(unreadable)?;
    let refused = |why: &str| {
        Failure::unrecoverable(format!(
            "the task was started by a plugin that writes version {version} of its state, and this one writes version {}: {why}",
            S::VERSION
        ))
    };
    match version.cmp(&S::VERSION) {
        Ordering::Equal => serde_json::from_value(state).map_err(unreadable),
        Ordering::Less => S::migrate(version, state).map_err(|why| refused(&why)),
        Ordering::Greater => Err(refused("it is older than that")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Second {
        name: String,
    }

    impl State for Second {
        const VERSION: u32 = 2;

        fn migrate(version: u32, state: serde_json::Value) -> Result<Self, String> {
            match (version, state) {
                (1, serde_json::Value::String(name)) => Ok(Self { name }),
                _ => Err("nobody has that one any more".to_owned()),
            }
        }
    }

    #[test]
    fn a_task_is_tracked_once() {
        let tasks = Tasks::default();
        tasks.add("a", Arc::new(1)).unwrap();
        assert_eq!(*tasks.add("a", Arc::new(2)).unwrap_err(), 1);
        assert_eq!((*tasks.get("a").unwrap(), tasks.len()), (1, 1));
        assert!(tasks.remove("a").is_some() && tasks.is_empty() && tasks.get("a").is_err());
    }

    #[test]
    fn a_state_is_read_by_its_version_and_an_older_one_is_taken_over() {
        let state = Second { name: "x".to_owned() };
        assert_eq!(decode::<Second>(&encode(&state).unwrap()).unwrap(), state);
        assert_eq!(decode::<Second>(br#"{"version":1,"state":"x"}"#).unwrap(), state);
        for (text, why) in [
            (&br#"{"version":0,"state":"x"}"#[..], "version 0 of its state, and this one writes version 2: nobody has"),
            (
                br#"{"version":3,"state":{"name":"x"}}"#,
                "version 3 of its state, and this one writes version 2: it is older",
            ),
            (br#"{"version":2,"state":"x"}"#, "cannot be read"),
            (b"", "cannot be read"),
        ] {
            let refused = decode::<Second>(text).unwrap_err();
            assert!(refused.message.contains(why), "{refused}");
        }
    }
}
