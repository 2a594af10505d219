//! Places that a provider has only so many of, and one link's share of them: what the calls of one component take leaves
//! some for those of another. A link that nobody shares its provider with has all of them. Where several do, all but one
//! of them together have three quarters, so that whichever comes last finds a quarter free.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Who has a provider beside a link to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// No other link of the app.
    Alone,
    /// So many others.
    With(usize),
}

impl Sharing {
    /// Of a provider that so many links of an app name.
    pub fn among(links: usize) -> Self {
        match links.saturating_sub(1) {
            0 => Self::Alone,
            others => Self::With(others),
        }
    }

    /// How many of so many places one link may have: all, or as many as let all the others together leave a quarter, and at
    /// least one. Where there are more links than places, that one is not sure.
    fn of(self, places: usize) -> usize {
        let share = match self {
            Self::Alone => places,
            Self::With(others) => (places - places / 4) / others.max(1),
        };
        share.max(1)
    }
}

/// What one link may have at once of its provider's places.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    room: Option<Arc<Semaphore>>,
    most: usize,
}

impl Share {
    /// Of a provider with so many; unbounded where it does not count them.
    pub(crate) fn new(places: Option<usize>, sharing: Sharing) -> Self {
        let most = sharing.of(places.unwrap_or_default());
        Self { room: places.map(|_| Arc::new(Semaphore::new(most))), most }
    }

    /// How many that are.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// A place, as soon as the link has one free; `None` where it has none within `wait`.
    pub(crate) async fn within(&self, wait: Duration) -> Option<Taken> {
        let Some(room) = &self.room else { return Some(Taken(None)) };
        let permit = tokio::time::timeout(wait, room.clone().acquire_owned()).await.ok()?.ok()?;
        Some(Taken(Some(permit)))
    }

    /// A place to be taken later.
    pub(crate) fn later(&self) -> Option<Later> {
        self.room.clone().map(Later::new)
    }
}

/// A place that is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Taken(#[expect(dead_code, reason = "held until it is dropped")] Option<OwnedSemaphorePermit>);

/// A place that is taken when something first needs it, and then kept.
#[derive(Debug)]
pub(crate) struct Later {
    room: Arc<Semaphore>,
    taken: Option<OwnedSemaphorePermit>,
}

impl Later {
    pub(crate) fn new(room: Arc<Semaphore>) -> Self {
        Self { room, taken: None }
    }

    /// Whether there is one.
    pub(crate) fn take(&mut self) -> bool {
        if self.taken.is_none() {
            self.taken = self.room.clone().try_acquire_owned().ok();
        }
        self.taken.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_link_leaves_a_quarter_of_the_places() {
        let of = |places| Sharing::among(2).of(places);
        assert_eq!([of(32), of(8), of(3), of(1), of(0)], [24, 6, 3, 1, 1]);
        let share = Share::new(Some(8), Sharing::among(2));
        let mut held = Vec::new();
        for _ in 0..6 {
            held.push(share.within(Duration::ZERO).await.unwrap());
        }
        assert!(share.within(Duration::from_millis(1)).await.is_none());
        let mut later = share.later().unwrap();
        assert!(!later.take());
        held.pop();
        assert!(later.take() && later.take(), "once");
        assert!(share.within(Duration::from_millis(1)).await.is_none());
        drop(later);
        assert!(share.within(Duration::from_millis(1)).await.is_some());
        assert!(Share::new(None, Sharing::among(2)).within(Duration::ZERO).await.is_some());
    }

    #[test]
    fn however_many_share_a_provider_the_last_one_finds_places() {
        for places in [8, 32] {
            for links in 2..=places {
                let share = Sharing::among(links).of(places);
                let others = share * (links - 1);
                assert!(share >= 1 && others < places, "{links} links of {places}: {share} each");
                assert!(share == 1 || others <= places - places / 4, "{links} links of {places}: {share} each");
            }
            assert_eq!(Sharing::among(10 * places).of(places), 1);
        }
    }

    /// The page says in numbers what each link may have.
    #[test]
    fn the_page_about_faults_has_the_shares_as_they_are() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/providers/faults.md");
        let page = std::fs::read_to_string(page).unwrap();
        let row = |begins: &str| -> Vec<usize> {
            let line = page.lines().find(|line| line.starts_with(begins)).unwrap_or_else(|| panic!("no `{begins}`"));
            line.trim_start_matches(begins).split('|').filter_map(|cell| cell.trim().parse().ok()).collect()
        };
        let links = row("| Links that name the provider |");
        assert!(links.starts_with(&[1, 2, 3]), "{links:?}");
        for (begins, places) in [("| of 32 uploads each may have |", 32), ("| of 8 connections each may have |", 8)] {
            let shares: Vec<usize> = links.iter().map(|&links| Sharing::among(links).of(places)).collect();
            assert_eq!(row(begins), shares, "{begins}");
        }
    }

    #[tokio::test]
    async fn a_link_that_nobody_shares_with_has_all_places() {
        let share = Share::new(Some(8), Sharing::among(1));
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(share.within(Duration::ZERO).await.unwrap());
        }
        assert!(share.within(Duration::from_millis(1)).await.is_none());
        assert_eq!(share.most(), 8);
    }
}
