//! What all hosts of one tenant together may have of the node's memory, threads and descriptors at once. A host that was
//! taken over opens as many connections as it can and reads none of its answers: it holds up its own tenant with that,
//! and nobody else.

use std::sync::Arc;

use api::services::codec::{FrameWriter, WireError};
use serde::Serialize;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls that were read and are not answered, KiB.
const CALLS: usize = 64 << 10;
/// Answers that were made and are not written, KiB.
const ANSWERS: usize = 64 << 10;
/// Threads of the node that use the disk.
const DISK: usize = 16;
/// Databases at work or waited for: the answer of each may have 8 MiB.
const SQL: usize = 32;
/// Objects that are read or written.
const OBJECTS: usize = 512;
/// Compiled code that is checked, or made first.
const LOADS: usize = 64;
/// Answers are written when there are so many bytes of them.
const FLUSH: usize = 1 << 20;

/// Room that is given back when it is dropped.
pub(crate) type Room = OwnedSemaphorePermit;

/// The rooms of one tenant.
#[derive(Debug)]
pub(crate) struct Share {
    calls: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    pub(super) disk: Arc<Semaphore>,
    pub(super) sql: Arc<Semaphore>,
    pub(super) objects: Arc<Semaphore>,
    pub(super) loads: Arc<Semaphore>,
}

impl Default for Share {
    fn default() -> Self {
        let room = |places| Arc::new(Semaphore::new(places));
        Self {
            calls: room(CALLS),
            answers: room(ANSWERS),
            disk: room(DISK),
            sql: room(SQL),
            objects: room(OBJECTS),
            loads: room(LOADS),
        }
    }
}

/// Room for so many bytes; each has at least one KiB, for what is around it.
fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX)
}

/// Waits for room.
pub(super) async fn take(room: &Arc<Semaphore>, places: u32) -> Result<Room, WireError> {
    room.clone().acquire_many_owned(places).await.map_err(|_| WireError::Closed)
}

impl Share {
    /// Waits for room for a call of so many bytes.
    pub(super) async fn call(&self, bytes: usize) -> Result<Room, WireError> {
        take(&self.calls, kib(bytes)).await
    }

    /// The same, where there is room now.
    pub(super) fn try_call(&self, bytes: usize) -> Option<Room> {
        self.calls.clone().try_acquire_many_owned(kib(bytes)).ok()
    }

    /// Waits for room for an answer of at most so many bytes.
    pub(super) async fn answer(&self, bytes: usize) -> Result<Room, WireError> {
        take(&self.answers, kib(bytes)).await
    }
}

/// Leaves room for so many bytes, and gives back the rest.
pub(super) fn shrink(room: &mut Room, bytes: usize) {
    let spare = room.num_permits().saturating_sub(kib(bytes) as usize);
    drop(room.split(spare));
}

/// The answers of one connection on their way out, with the room they take.
pub(super) struct Answers<'a> {
    writer: FrameWriter<OwnedWriteHalf>,
    share: &'a Share,
    room: Option<Room>,
}

impl<'a> Answers<'a> {
    pub(super) fn new(writer: FrameWriter<OwnedWriteHalf>, share: &'a Share) -> Self {
        Self { writer, share, room: None }
    }

    /// Adds an answer, and writes what there is where that is much. `room` is what was taken for it; where none was, there
    /// is room for `bytes` of it before it is added.
    ///
    /// # Errors
    /// As [`FrameWriter::push`] and [`FrameWriter::flush`]; after [`WireError::TooLarge`] another answer may be added.
    pub(super) async fn push<T: Serialize>(
        &mut self,
        reply: &T,
        room: Option<Room>,
        bytes: usize,
    ) -> Result<(), WireError> {
        let room = match room {
            Some(room) => room,
            None => match self.share.answers.clone().try_acquire_many_owned(kib(bytes)) {
                Ok(room) => room,
                Err(_) => {
                    // What waits here holds some of it.
                    self.flush().await?;
                    self.share.answer(bytes).await?
                }
            },
        };
        match &mut self.room {
            Some(held) => held.merge(room),
            none => *none = Some(room),
        }
        self.writer.push(reply)?;
        if self.writer.waiting() >= FLUSH { self.flush().await } else { Ok(()) }
    }

    /// Writes what there is.
    ///
    /// # Errors
    /// [`WireError::Io`].
    pub(super) async fn flush(&mut self) -> Result<(), WireError> {
        self.writer.flush().await?;
        self.room = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_an_answer_does_not_need_is_free_again() {
        let share = Share::default();
        let mut room = share.answer(8 << 20).await.unwrap();
        assert_eq!(share.answers.available_permits(), ANSWERS - 8193);
        shrink(&mut room, 3000);
        assert_eq!(share.answers.available_permits(), ANSWERS - 3);
        shrink(&mut room, 30_000);
        assert_eq!(share.answers.available_permits(), ANSWERS - 3);
        drop(room);
        assert_eq!(share.answers.available_permits(), ANSWERS);
    }

    #[test]
    fn calls_of_a_tenant_have_so_much_room_and_no_more() {
        let share = Share::default();
        let held: Vec<_> = std::iter::from_fn(|| share.try_call((1 << 20) - 1)).collect();
        assert_eq!(held.len(), 64);
        assert!(share.try_call(0).is_none());
        drop(held);
        assert!(share.try_call(20 << 20).is_some());
    }
}
