//! The connections of the API: accepted, served, and ended. HTTP/1.1 with a limit on how long a request's head may take,
//! which is also how long an idle connection is kept.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The longest time in which a request's head arrives.
const HEAD: Duration = Duration::from_secs(10);
/// The pause after the system had no room for a connection.
const NO_ROOM: Duration = Duration::from_millis(200);

/// Connections at once, and those from one place: what is over is closed unanswered. Whoever asks needs one.
const PLACES: (usize, usize) = (2048, 512);
/// Connections beside those, for the machine itself: whoever is at it gets through when all others are taken.
const OWN: usize = 64;

/// Open connections by where they come from.
type Open = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A connection among those from its place.
struct Place(Open, IpAddr);

/// What connections are counted by: an IPv4 address, or the /64 that one customer of IPv6 has. Loopback is one place.
fn whence(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        address if address.is_loopback() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

impl Place {
    /// `None` where there is none left.
    fn take(open: &Open, address: IpAddr) -> Option<Self> {
        let place = whence(address);
        let mut all = open.lock().unwrap_or_else(PoisonError::into_inner);
        let own = all.get(&place).copied().unwrap_or_default();
        let (most, of_one) = PLACES;
        let most = if place.is_loopback() { most + OWN } else { most };
        if own >= of_one || all.values().sum::<usize>() >= most {
            return None;
        }
        all.insert(place, own + 1);
        Some(Self(open.clone(), place))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(&self.1) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(all.remove(&self.1)),
        }
    }
}

/// Who is on the other side of the connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Serves until `stop`, then until the requests under way are answered. Dropping it ends all connections.
pub(crate) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let (mut open, places) = (JoinSet::new(), Open::default());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = open.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(place) = Place::take(&places, peer.ip()) else {
                    tracing::debug!(%peer, "a connection to the API finds no place");
                    continue;
                };
                let served = connection(stream, peer, router.clone(), stop.clone());
                open.spawn(async move {
                    let _place = place;
                    served.await;
                });
            }
            // The other side was gone before we came to it.
            Err(cause) if matches!(cause.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
            Err(cause) => {
                tracing::warn!(%cause, "the API cannot accept a connection");
                tokio::time::sleep(NO_ROOM).await;
            }
        }
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, stop: CancellationToken) {
    let router = router.layer(Extension(Peer(peer)));
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let mut served = pin!(server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let done = tokio::select! {
        done = served.as_mut() => done,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(cause) = done {
        tracing::debug!(%cause, "a connection to the API ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_customer_has_is_one_place_and_the_machine_gets_through() {
        let open = Open::default();
        let take = |address: String| Place::take(&open, address.parse().unwrap());
        // Four addresses of one /64 have together what one of another has.
        let (_, of_one) = PLACES;
        let one: Vec<_> = (0..2048).filter_map(|n| take(format!("2001:db8::{}", n % 4))).collect();
        assert_eq!(one.len(), of_one);
        assert!(take("::ffff:192.0.2.1".into()).is_some() && take("192.0.2.1".into()).is_some());
        assert_eq!(whence("::ffff:192.0.2.1".parse().unwrap()), whence("192.0.2.1".parse().unwrap()));
        let others: Vec<_> = (0..2000).map_while(|n| take(format!("2001:db8:0:{n:x}::1"))).collect();
        drop((take("127.0.0.1".into()), others, one));
        assert!(open.lock().unwrap().is_empty(), "places are given back");
    }

    #[test]
    fn when_all_places_are_taken_the_machine_has_its_own() {
        let open = Open::default();
        let take = |address: String| Place::take(&open, address.parse().unwrap());
        let (most, _) = PLACES;
        let taken: Vec<_> = (0..3000).map_while(|n| take(format!("2001:db8:0:{n:x}::1"))).collect();
        assert_eq!(taken.len(), most);
        assert!(take("192.0.2.1".into()).is_none());
        let own: Vec<_> = (0..1000).map_while(|n| take(format!("127.0.0.{}", n % 4))).collect();
        assert_eq!(own.len(), OWN);
    }
}
