//! The names of a container as a guest reads them: page by page from the backend, as many at a time as it asks for.

use std::collections::VecDeque;

use super::{BackendError, PAGE, Place};

/// What `stream-object-names` is.
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub struct Listing {
    place: Place,
    here: VecDeque<String>,
    next: Next,
}

enum Next {
    First,
    After(String),
    None,
}

impl Listing {
    pub(super) fn new(place: Place) -> Self {
        Self { place, here: VecDeque::new(), next: Next::First }
    }

    /// Up to `count` names, at most [`PAGE`], and whether they were the last.
    pub(super) async fn read(&mut self, count: u64) -> Result<(Vec<String>, bool), BackendError> {
        let count = usize::try_from(count).unwrap_or(PAGE).min(PAGE);
        self.fill(count).await?;
        let names = self.here.drain(..count.min(self.here.len())).collect();
        Ok((names, self.is_over()))
    }

    /// Passes over up to `count` names; how many, and whether they were the last.
    pub(super) async fn skip(&mut self, count: u64) -> Result<(u64, bool), BackendError> {
        let mut left = count;
        loop {
            let now = usize::try_from(left).unwrap_or(PAGE).min(PAGE);
            self.fill(now).await?;
            let now = now.min(self.here.len());
            self.here.drain(..now);
            left -= now as u64;
            if left == 0 || self.is_over() {
                return Ok((count - left, self.is_over()));
            }
        }
    }

    fn is_over(&self) -> bool {
        self.here.is_empty() && matches!(self.next, Next::None)
    }

    /// Fetches until more than `count` names are here, so that the last ones are known to be, or there are no more.
    async fn fill(&mut self, count: usize) -> Result<(), BackendError> {
        while self.here.len() <= count {
            let cursor = match &self.next {
                Next::First => None,
                Next::After(cursor) => Some(cursor.as_str()),
                Next::None => return Ok(()),
            };
            let Place { backend, container, meter, .. } = &self.place;
            let page = meter.call("list-objects", backend.list(container, cursor)).await?;
            self.here.extend(page.names);
            self.next = page.cursor.map_or(Next::None, Next::After);
        }
        Ok(())
    }
}
