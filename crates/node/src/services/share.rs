//! What all hosts of one tenant together may have of the node's memory, threads and descriptors at once. A host that was
//! taken over opens as many connections as it can and reads none of its answers: it holds up its own tenant with that,
//! and nobody else.

use std::sync::Arc;

use api::services::MAX_TOLD;
use api::services::codec::{FrameWriter, WireError};
use serde::Serialize;
use store::data::Reads;
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
/// Compiled code that is checked.
const LOADS: usize = 64;
/// Keys that watchers are being told of: what is written down for one takes about a KiB until it is in its queue.
const TOLD: usize = 2 * MAX_TOLD;
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
    pub(super) told: Arc<Semaphore>,
    /// Where its keys are read.
    pub(super) reads: Reads,
    /// Taken while many calls of one connection are answered on the threads that serve everybody.
    pub(super) turns: Semaphore,
}

impl Default for Share {
    fn default() -> Self {
        let room = |places| Arc::new(Semaphore::new(places));
        let disk = room(DISK);
        Self {
            calls: room(CALLS),
            answers: room(ANSWERS),
            reads: Reads::new(disk.clone()),
            disk,
            sql: room(SQL),
            objects: room(OBJECTS),
            loads: room(LOADS),
            told: room(TOLD),
            turns: Semaphore::new(turns()),
        }
    }
}

/// Threads of the node that all hosts of one tenant together keep busy with key-value calls, where they have many on the
/// way: never all of them.
fn turns() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// Room for so many bytes; each has at least one KiB, for what is around it.
fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX)
}

/// Waits for room.
pub(super) async fn take(room: &Arc<Semaphore>, places: u32) -> Result<Room, WireError> {
    room.clone().acquire_many_owned(places).await.map_err(|_| WireError::Closed)
}

/// How many times a frame's bytes its lists may be in memory, once it is read: an entry of one byte there is a `Value` here.
const WIDEST: usize = 48;

/// Room for a frame while it is read. Its lists may need more than it has bytes, but no more than `spread`.
fn while_read(bytes: usize, spread: usize) -> u32 {
    kib(bytes.saturating_add(bytes.saturating_mul(WIDEST).min(spread)))
}

impl Share {
    /// Waits for room for a call of so many bytes, and for what its lists may need beside; [`shrink`] it to what they do.
    pub(super) async fn call(&self, bytes: usize, spread: usize) -> Result<Room, WireError> {
        take(&self.calls, while_read(bytes, spread)).await
    }

    /// The same, where there is room now.
    pub(super) fn try_call(&self, bytes: usize, spread: usize) -> Option<Room> {
        self.calls.clone().try_acquire_many_owned(while_read(bytes, spread)).ok()
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
            Some(room) => Some(room),
            None => match self.share.answers.clone().try_acquire_many_owned(kib(bytes)) {
                Ok(room) => Some(room),
                Err(_) => {
                    // What waits here holds some of it.
                    self.flush().await?;
                    match bytes {
                        // A word goes without. Calls of this connection may have all the room there is, and nobody goes on
                        // with them as long as this waits.
                        0 => None,
                        bytes => Some(self.share.answer(bytes).await?),
                    }
                }
            },
        };
        match (&mut self.room, room) {
            (Some(held), Some(room)) => held.merge(room),
            (none, Some(room)) => *none = Some(room),
            (_, None) => {}
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

    #[tokio::test]
    async fn a_word_is_answered_while_calls_of_its_own_connection_have_all_the_room() {
        let share = Share::default();
        let (near, far) = tokio::net::UnixStream::pair().unwrap();
        let mut answers = Answers::new(FrameWriter::new(near.into_split().1), &share);
        let _held: Vec<_> = futures::future::join_all((0..64).map(|_| share.answer((1 << 20) - 1))).await;
        for word in 0..3_u8 {
            let pushed = answers.push(&word, None, 0);
            tokio::time::timeout(std::time::Duration::from_secs(60), pushed).await.unwrap().unwrap();
        }
        answers.flush().await.unwrap();
        let mut read = api::services::codec::FrameReader::new(far);
        for word in 0..3_u8 {
            assert_eq!(read.next::<u8>().await.unwrap(), Some(word));
        }
    }

    #[test]
    fn calls_of_a_tenant_have_so_much_room_and_no_more() {
        let share = Share::default();
        let held: Vec<_> = std::iter::from_fn(|| share.try_call((1 << 20) - 1, 0)).collect();
        assert_eq!(held.len(), 64);
        assert!(share.try_call(0, 0).is_none());
        drop(held);
        assert!(share.try_call(20 << 20, 1 << 20).is_some());
        // Small frames of lists have room for them, and give back what they do not need.
        let mut held: Vec<_> = std::iter::from_fn(|| share.try_call(100, 48 << 10)).collect();
        assert_eq!(held.len(), CALLS / 5);
        held.iter_mut().for_each(|room| shrink(room, 100));
        assert_eq!(share.calls.available_permits(), CALLS - CALLS / 5);
    }
}
