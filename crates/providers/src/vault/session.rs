//! What a client knows of its login: the token, which refusals are not for the token, what a token is good for that may not
//! ask about itself, and which logins did not help.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use super::login::Token;
use crate::breaker::pause;

/// A token that was refused a path and is good is not looked up again for that one for this long.
const TRUSTED: Duration = Duration::from_secs(5);
/// Paths of which this is remembered.
const MOST_SEEN: usize = 256;
/// Between logins that are made for a refusal and do not help.
const IN_VAIN_LEAST: Duration = TRUSTED;
const IN_VAIN_MOST: Duration = Duration::from_secs(300);

/// Where Vault says what is mounted at a path, to every token that may do anything there, and to no other.
pub(super) const MOUNTS: &str = "/v1/sys/internal/ui/mounts/";

/// A path as it is asked about there.
pub(super) fn below(path: &str) -> &str {
    let path = path.strip_prefix("/v1/").unwrap_or(path);
    path.split('?').next().unwrap_or_default().trim_end_matches('/')
}

/// The login of one client.
#[derive(Default)]
pub(super) struct Session {
    pub(super) token: Option<Token>,
    /// The task that keeps the token alive.
    pub(super) keeper: Option<AbortHandle>,
    pub(super) logins: u64,
    /// By path: when the token was last refused it and turned out to be good.
    seen_good: HashMap<String, Instant>,
    /// A path that was answered.
    answered: Option<String>,
    /// One whose mount Vault showed to a token of ours: a token that is not shown it is none any more.
    shown: Option<String>,
    in_vain: InVain,
}

/// Logins in a row that were made because a path was refused, and to whose tokens it was refused as well.
#[derive(Default)]
struct InVain {
    times: u32,
    /// The last of them.
    generation: u64,
    /// No other is made for a refusal before.
    until: Option<Instant>,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
    }
}

impl Session {
    /// The token, unless it came to its end.
    pub(super) fn usable(&self, now: Instant) -> Option<Token> {
        self.token.clone().filter(|token| token.life.is_none_or(|life| now < life.end()))
    }

    /// The token of this login, where it is still the one in use.
    pub(super) fn of(&mut self, generation: u64) -> Option<&mut Token> {
        self.token.as_mut().filter(|token| token.generation == generation)
    }

    /// Another token is in use from here on. The keeper of the one before.
    pub(super) fn install(&mut self, token: Token, keeper: Option<AbortHandle>) -> Option<AbortHandle> {
        self.seen_good.clear();
        self.token = Some(token);
        std::mem::replace(&mut self.keeper, keeper)
    }

    /// Whether the token ended in its own time.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.token.as_ref().is_some_and(|token| token.is_over(now))
    }

    /// Vault does not take the token of this login, and that it came to its end is no reason.
    pub(super) fn doubt(&mut self, generation: u64, now: Instant) {
        if let Some(token) = self.of(generation) {
            token.doubted = !token.is_over(now);
        }
    }

    /// Whether the token was good a short while ago though it is refused `path`.
    pub(super) fn is_seen_good(&self, path: &str, now: Instant) -> bool {
        self.seen_good.get(path).is_some_and(|at| now < *at + TRUSTED)
    }

    /// The token is refused `path` and good.
    pub(super) fn saw_good(&mut self, path: &str, now: Instant) {
        if self.seen_good.len() >= MOST_SEEN {
            self.seen_good.clear();
        }
        self.seen_good.insert(path.to_owned(), now);
    }

    /// A path was answered, to whichever token.
    pub(super) fn was_answered(&mut self, path: &str) {
        match path.strip_prefix(MOUNTS) {
            Some(mount) => self.shows(mount),
            None => drop(self.answered.get_or_insert_with(|| below(path).to_owned())),
        }
    }

    /// Vault showed the mount of this path.
    pub(super) fn shows(&mut self, path: &str) {
        if self.shown.as_deref() != Some(path) {
            self.shown = Some(path.to_owned());
        }
    }

    /// What a token of ours was shown, if anything, and a path that was answered.
    pub(super) fn witnesses(&self) -> (Option<String>, Option<String>) {
        (self.shown.clone(), self.answered.clone())
    }

    /// Logins that are made for a refusal help, or are not needed.
    pub(super) fn can_tell(&mut self) {
        self.in_vain = InVain::default();
    }

    /// The token of a login that was made because `path` was refused is refused it, too: it is not for the token.
    pub(super) fn was_in_vain(&mut self, generation: u64, path: &str, now: Instant, random: u64) {
        self.saw_good(path, now);
        // Policies may have changed: what a former token was shown says nothing of the next ones.
        self.shown = None;
        // Many calls may have waited for one login.
        if self.in_vain.generation == generation {
            return;
        }
        let times = self.in_vain.times.saturating_add(1);
        let until = now + pause(times - 1, IN_VAIN_LEAST, IN_VAIN_MOST, random);
        self.in_vain = InVain { times, generation, until: Some(until) };
    }

    /// Whether a login for a refusal has not helped a short while ago, and would not now.
    pub(super) fn is_in_vain(&self, now: Instant) -> bool {
        self.in_vain.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_that_do_not_help_become_rare_and_are_counted_once_each() {
        let (mut session, start) = (Session::default(), Instant::now());
        assert!(!session.is_in_vain(start), "the first refusal is found out about");
        let mut now = start;
        let mut waits = Vec::new();
        for generation in 2..40 {
            for _ in 0..100 {
                session.was_in_vain(generation, "/v1/secret/a", now, u64::MAX);
            }
            assert!(session.is_in_vain(now) && session.is_seen_good("/v1/secret/a", now));
            let began = now;
            while session.is_in_vain(now) {
                now += Duration::from_millis(100);
            }
            waits.push(now - began);
        }
        assert!(waits[0] <= IN_VAIN_LEAST + Duration::from_millis(100), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait >= IN_VAIN_LEAST / 2 && *wait <= IN_VAIN_MOST * 2), "{waits:?}");
        assert!(waits.last().unwrap() >= &(IN_VAIN_MOST / 2), "{waits:?}");
        session.can_tell();
        session.was_in_vain(50, "/v1/secret/a", now, u64::MAX);
        assert!(!session.is_in_vain(now + IN_VAIN_LEAST), "from the beginning");
    }

    #[test]
    fn what_a_token_was_shown_counts_until_a_login_does_not_help() {
        let (mut session, now) = (Session::default(), Instant::now());
        assert_eq!(session.witnesses(), (None, None));
        session.was_answered("/v1/kv/data/a?version=2");
        session.was_answered("/v1/kv/data/b");
        session.was_answered("/v1/sys/internal/ui/mounts/kv");
        let (kv, a) = (Some("kv".to_owned()), Some("kv/data/a".to_owned()));
        assert_eq!(session.witnesses(), (kv, a.clone()));
        session.was_in_vain(2, "/v1/kv/data/c", now, 0);
        assert_eq!(session.witnesses(), (None, a));
    }

    #[test]
    fn a_path_is_trusted_for_a_moment_and_no_other_with_it() {
        let (mut session, now) = (Session::default(), Instant::now());
        session.saw_good("/v1/secret/a", now);
        assert!(session.is_seen_good("/v1/secret/a", now) && !session.is_seen_good("/v1/secret/b", now));
        assert!(!session.is_seen_good("/v1/secret/a", now + TRUSTED));
        for n in 0..MOST_SEEN * 2 {
            session.saw_good(&n.to_string(), now);
        }
        assert!(session.seen_good.len() <= MOST_SEEN);
    }
}
