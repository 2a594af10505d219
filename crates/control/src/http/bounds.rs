//! How much of the API one tenant may have: changes and reads a second, changes under way, streams without an end, and bodies
//! that are held in memory. What is over is refused, and holds up nobody else; a read that is a little over waits for its turn first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::control::MAX_JSON;
use api::problem::Code;
use axum::body::Body;
use http_body::Body as _;
use model::TenantName;
use model::access::TokenId;
use model::tenant::Rate;
use tokio::time::timeout;

use super::Shares;
use super::refusal::{Answer, Refusal};
use super::shares::Held;
use crate::tokens::Caller;

/// Changes of a tenant's tokens together: so many a second over time, and at once. Each is two lines of the audit log, which
/// waits for the disk and is never emptied.
const CHANGES: (u64, u64) = (20, 400);
/// Changes of a tenant's tokens together that are under way, and those of one token among them: each may wait for its body and for
/// its turn, and one of a config makes revisions of all apps that name it. A token that has all of its own leaves some to the
/// tokens that may end it.
const UNDER_WAY: (usize, usize) = (32, 16);
/// Requests of a tenant's tokens together that change nothing: so many a second over time, and at once.
const READS: (u64, u64) = (50, 1000);
/// Of those that are more, so many wait for their turn, which is a second and a third for the last one; and so many of one token,
/// so that whoever asks without a pause leaves turns to the other tokens of its tenant.
const ROW: usize = 64;
const ROW_OF_ONE: usize = ROW / 2;
/// Streams that a tenant's tokens have open together.
const STREAMS: usize = 64;
/// Bytes of JSON bodies that are received or worked on, those of all tenants together.
const BODIES: usize = 32 * MAX_JSON;
/// How long a body waits for its room.
const WAIT: Duration = Duration::from_secs(10);
/// Routes whose bodies have room elsewhere: it is taken for what has arrived.
const ELSEWHERE: [&str; 2] = ["/blobs/{digest}", "/call"];

/// The bounds of all tenants.
pub(crate) struct Bounds {
    since: Instant,
    changes: Mutex<HashMap<TenantName, u64>>,
    under_way: Mutex<HashMap<TenantName, HashMap<TokenId, usize>>>,
    reads: Mutex<HashMap<TenantName, Row>>,
    streams: Mutex<HashMap<TenantName, usize>>,
    bodies: Arc<Shares>,
}

/// Those of a tenant that read.
#[derive(Default)]
struct Row {
    /// Up to when turns are given.
    paid: u64,
    /// Who waits for one.
    waiting: HashMap<TokenId, usize>,
}

/// A place in the row of a tenant; free again when dropped, and its turn with it where that had not come.
struct Turn<'a> {
    bounds: &'a Bounds,
    tenant: &'a TenantName,
    token: &'a TokenId,
    came: bool,
}

/// A place among the changes of a tenant that are under way; free again when dropped.
pub(super) struct UnderWay {
    bounds: Arc<Bounds>,
    tenant: TenantName,
    token: TokenId,
}

/// A place among the streams of a tenant; free again when dropped.
pub(crate) struct Place(Option<(Arc<Bounds>, TenantName)>);

impl Bounds {
    pub(crate) fn new() -> Arc<Self> {
        let bodies = Shares::new(BODIES);
        Arc::new(Self {
            since: Instant::now(),
            changes: Mutex::default(),
            under_way: Mutex::default(),
            reads: Mutex::default(),
            streams: Mutex::default(),
            bodies,
        })
    }

    /// One more change.
    pub(super) fn change(self: &Arc<Self>, tenant: &TenantName, token: &TokenId) -> Answer<UnderWay> {
        let place = self.place(tenant, token)?;
        let (rate, _) = CHANGES;
        self.pay(&self.changes, tenant, CHANGES, || {
            format!("the tokens of this tenant change more than {rate} things a second")
        })?;
        Ok(place)
    }

    fn place(self: &Arc<Self>, tenant: &TenantName, token: &TokenId) -> Answer<UnderWay> {
        let (most, of_one) = UNDER_WAY;
        let mut all = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = all.entry(tenant.clone()).or_default();
        let (together, own) = (tokens.values().sum::<usize>(), tokens.get(token).copied().unwrap_or_default());
        if together >= most || own >= of_one {
            let text = format!("{most} changes of this tenant are under way, or {of_one} of this token");
            return Err(Refusal::new(Code::RateLimited, text).help("try again in a moment"));
        }
        tokens.insert(token.clone(), own + 1);
        Ok(UnderWay { bounds: self.clone(), tenant: tenant.clone(), token: token.clone() })
    }

    /// One more request that changes nothing, and whether it had to wait for its turn. Turns are in the order they are asked for.
    pub(super) async fn read(&self, tenant: &TenantName, token: &TokenId) -> Answer<bool> {
        let Some((wait, mut turn)) = self.turn(tenant, token, self.now())? else { return Ok(false) };
        tokio::time::sleep(wait).await;
        turn.came = true;
        Ok(true)
    }

    /// How long a read waits, and its place meanwhile; none where it need not.
    fn turn<'a>(
        &'a self,
        tenant: &'a TenantName,
        token: &'a TokenId,
        now: u64,
    ) -> Answer<Option<(Duration, Turn<'a>)>> {
        let (per_second, burst) = READS;
        let rate = Rate::new(per_second, burst);
        let mut all = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let row = all.entry(tenant.clone()).or_default();
        let wait = match rate.take(row.paid, now, 1) {
            Ok(next) => {
                row.paid = next;
                return Ok(None);
            }
            Err(wait) => wait,
        };
        let (waiting, own) = (row.waiting.values().sum::<usize>(), row.waiting.get(token).copied().unwrap_or_default());
        match rate.take(row.paid, now.saturating_add(wait), 1) {
            Ok(next) if waiting < ROW && own < ROW_OF_ONE => {
                row.paid = next;
                row.waiting.insert(token.clone(), own + 1);
                Ok(Some((Duration::from_nanos(wait), Turn { bounds: self, tenant, token, came: false })))
            }
            _ => {
                let text = format!("the tokens of this tenant ask for more than {per_second} things a second");
                Err(Refusal::new(Code::RateLimited, text).help("try again in a moment"))
            }
        }
    }

    /// Since this began, nanoseconds.
    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn pay(
        &self,
        all: &Mutex<HashMap<TenantName, u64>>,
        tenant: &TenantName,
        (rate, burst): (u64, u64),
        text: impl Fn() -> String,
    ) -> Answer<()> {
        let now = self.now();
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        let paid = all.entry(tenant.clone()).or_default();
        let next = Rate::new(rate, burst).take(*paid, now, 1);
        *paid = next.map_err(|_| Refusal::new(Code::RateLimited, text()).help("try again in a moment"))?;
        Ok(())
    }

    /// A tenant that is gone asks for nothing.
    pub(super) fn forget(&self, tenant: &TenantName) {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
    }

    /// One more stream. The operator's are not counted.
    pub(super) fn stream(self: &Arc<Self>, caller: &Caller) -> Answer<Place> {
        let Caller::Member { tenant, .. } = caller else { return Ok(Place(None)) };
        let mut all = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let open = all.entry(tenant.clone()).or_default();
        if *open >= STREAMS {
            let text = format!("the tokens of this tenant have {STREAMS} streams open");
            return Err(Refusal::new(Code::Busy, text).help("end some of those that follow events, logs or flows"));
        }
        *open += 1;
        Ok(Place(Some((self.clone(), tenant.clone()))))
    }

    /// Room for a body of so many bytes that is read whole; waits for it a while.
    pub(super) async fn body(&self, tenant: &TenantName, size: usize) -> Answer<Option<Held>> {
        if size == 0 {
            return Ok(None);
        }
        let mut held = self.bodies.hold(tenant);
        let room = timeout(WAIT, held.more(size)).await;
        room.map_err(|_| Refusal::new(Code::Busy, "too much is being sent at once").help("try again in a moment"))?;
        Ok(Some(held))
    }
}

/// How much room a body takes. What does not say its size may have as much as any; what says more than that is refused unread.
pub(super) fn size(route: &str, body: &Body) -> usize {
    if ELSEWHERE.iter().any(|end| route.ends_with(end)) {
        return 0;
    }
    body.size_hint().upper().and_then(|size| usize::try_from(size).ok()).map_or(MAX_JSON, |size| size.min(MAX_JSON))
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Self { bounds, tenant, token, came } = self;
        let mut all = bounds.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(row) = all.get_mut(*tenant) else { return };
        if !*came {
            row.paid = row.paid.saturating_sub(1_000_000_000 / READS.0);
        }
        if let Some(own) = row.waiting.get_mut(*token) {
            *own -= 1;
            if *own == 0 {
                row.waiting.remove(*token);
            }
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut all = self.bounds.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tokens) = all.get_mut(&self.tenant) else { return };
        if let Some(own) = tokens.get_mut(&self.token) {
            *own -= 1;
            if *own == 0 {
                tokens.remove(&self.token);
            }
        }
        if tokens.is_empty() {
            all.remove(&self.tenant);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((bounds, tenant)) = &self.0 else { return };
        let mut all = bounds.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = all.get_mut(tenant) {
            *open -= 1;
            if *open == 0 {
                all.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(n: u8) -> TokenId {
        model::access::Token::from_entropy("t".parse().unwrap(), [n; 10], [n; 32]).id
    }

    #[test]
    fn tenants_that_are_gone_leave_nothing_behind() {
        let (bounds, token) = (Bounds::new(), token(1));
        for n in 0..1000 {
            let tenant = format!("t{n}").parse().unwrap();
            assert!(bounds.change(&tenant, &token).is_ok() && matches!(bounds.turn(&tenant, &token, 0), Ok(None)));
            bounds.forget(&tenant);
        }
        assert!(bounds.changes.lock().unwrap().is_empty() && bounds.reads.lock().unwrap().is_empty());
        assert!(bounds.under_way.lock().unwrap().is_empty());
    }

    #[test]
    fn changes_under_way_are_so_many_of_a_token_and_so_many_of_a_tenant() {
        let (bounds, tenant) = (Bounds::new(), "t".parse().unwrap());
        let all_of = |n: u8| (0..100).map_while(|_| bounds.change(&tenant, &token(n)).ok()).collect::<Vec<_>>();
        let (mut one, two) = (all_of(1), all_of(2));
        assert_eq!((one.len(), two.len(), all_of(3).len()), (16, 16, 0));
        let refused = bounds.change(&tenant, &token(3)).err().unwrap();
        assert_eq!(refused.problem.code, Code::RateLimited);
        // Another tenant has its own, and whatever ends gives its place back.
        assert!(bounds.change(&"other".parse().unwrap(), &token(3)).is_ok());
        one.truncate(14);
        assert_eq!(all_of(3).len(), 2);
    }

    #[test]
    fn reads_that_are_too_many_wait_in_a_row_that_one_token_does_not_fill() {
        let (bounds, tenant, now) = (Bounds::new(), "t".parse().unwrap(), 5_000_000_000);
        let tokens = [token(1), token(2), token(3)];
        let at_once = (0..2000).take_while(|_| matches!(bounds.turn(&tenant, &tokens[0], now), Ok(None))).count();
        assert_eq!(at_once, 1000);
        // The one that was told to wait has gone since, and its turn with it.
        let waiting_of = |n: usize| {
            (0..2000).map_while(|_| bounds.turn(&tenant, &tokens[n], now).ok().flatten()).collect::<Vec<_>>()
        };
        let first = waiting_of(0);
        assert_eq!(first.len(), ROW_OF_ONE);
        let second = waiting_of(1);
        assert_eq!(second.len(), ROW - ROW_OF_ONE);
        let refused = bounds.turn(&tenant, &tokens[2], now).err().unwrap();
        assert_eq!(refused.problem.code, Code::RateLimited);
        let waits: Vec<Duration> = first.iter().chain(&second).map(|(wait, _)| *wait).collect();
        assert!(waits.is_sorted(), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= Duration::from_millis(1320)), "{waits:?}");
        // Another tenant has its own, and whoever goes gives its place back.
        assert!(matches!(bounds.turn(&"other".parse().unwrap(), &tokens[2], now), Ok(None)));
        drop((first, second));
        assert!(bounds.reads.lock().unwrap()[&tenant].waiting.is_empty());
    }

    #[test]
    fn whoever_asks_and_hangs_up_makes_nobody_wait_longer() {
        let (bounds, tenant, now) = (Bounds::new(), "t".parse().unwrap(), 5_000_000_000);
        let tokens = [token(1), token(2)];
        while matches!(bounds.turn(&tenant, &tokens[0], now), Ok(None)) {}
        let wait = |n: usize| bounds.turn(&tenant, &tokens[n], now).ok().flatten().unwrap().0;
        let first = wait(1);
        for _ in 0..10_000 {
            wait(0);
        }
        assert_eq!(wait(1), first);
    }
}
