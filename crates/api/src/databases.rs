//! What a node and the process of a tenant's databases say to each other, over the socket that is the process's stdin: the
//! frames of [`crate::services::codec`]. The node sends calls and counts what the databases take of the tenant's room; it
//! is asked before a database grows.

use model::sql::{Answer, Call, SqlError};
use model::{AppName, ProviderName};
use serde::{Deserialize, Serialize};

/// The largest frame of the process, bytes: an answer. Numbers count for 9 bytes in its limit and have up to 11 in a frame.
pub const MAX_FRAME: usize = model::sql::MAX_ANSWER / 2 * 3;

/// From the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// One call to the database of one provider of an app.
    Call {
        /// Comes back with what belongs to it.
        id: u64,
        /// Whose.
        app: AppName,
        /// Which.
        provider: ProviderName,
        /// What the database takes is counted: the process asks before it grows.
        counted: bool,
        /// What.
        call: Call,
    },
    /// What the call of this number asked of the node.
    Counted {
        /// The call.
        id: u64,
        /// The answer.
        answer: Counted,
    },
    /// The files of an app are about to be removed: they are closed.
    Close {
        /// Whose.
        app: AppName,
    },
}

/// From the process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Word {
    /// The answer to a call.
    Answer {
        /// The call.
        id: u64,
        /// What became of it.
        result: Result<Answer, SqlError>,
    },
    /// A call asks the node, and waits, but for [`Count::Is`].
    Count {
        /// The call.
        id: u64,
        /// What.
        count: Count,
    },
}

/// What is asked of whoever counts what a database takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Count {
    /// So many bytes it has. How many may it add?
    Begin(u64),
    /// So many bytes it is to have.
    Grow(u64),
    /// So many bytes it has after all.
    Is(u64),
    /// What to say where so many bytes find no room?
    Full(u64),
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Counted {
    /// Begin: it may add so many bytes.
    Left(u64),
    /// Grow: it had so many bytes, and may.
    Before(u64),
    /// Grow, Full: there is no room, for people.
    Full(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::codec;

    #[test]
    fn the_largest_answer_is_a_frame() {
        let mut gathered = model::sql::Gathered::new(vec!["c".to_owned(); 500]);
        let row = vec![model::sql::Value::Int64(i64::MIN); 500];
        while gathered.push(row.clone()).is_ok() {}
        let answer = Word::Answer { id: u64::MAX, result: Ok(Answer::Rows(gathered.done())) };
        let mut wire = bytes::BytesMut::new();
        codec::encode(&answer, &mut wire).unwrap();
        assert!(wire.len() < MAX_FRAME, "{}", wire.len());
    }
}
