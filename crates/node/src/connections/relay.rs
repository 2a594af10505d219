//! The relay of datagrams between a host and the one address its UDP socket is connected to. All that a tenant has relayed
//! shares one rate: it is the threads of everybody that carry it. What is above it waits where it is, in the buffers of the
//! kernel, and what finds no room there is lost, as datagrams are.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use api::services::datagram::{self, DatagramEnd, Packet};
use model::tenant::Rate;
use tokio::net::UdpSocket;
use tokio::sync::Mutex;

use crate::ingress::nanos;

/// Bytes a second over time, in both directions together, and at once.
const RATE: u64 = 40 << 20;
const BURST: u64 = RATE / 10;
/// What a datagram counts for at least, bytes: so it is at most 20,000 a second.
const LEAST: usize = 2 << 10;

/// What one tenant has relayed.
#[derive(Debug)]
pub(super) struct Relayed {
    rate: Rate,
    /// See [`Rate`].
    paid: AtomicU64,
    /// Of those that wait one has a timer.
    turn: Mutex<()>,
}

impl Default for Relayed {
    fn default() -> Self {
        Self { rate: Rate::new(RATE, BURST), paid: AtomicU64::new(0), turn: Mutex::default() }
    }
}

impl Relayed {
    /// Pays for a datagram, or says how long to wait before that is tried again.
    fn take(&self, bytes: usize) -> Result<(), Duration> {
        let (now, units) = (nanos(Instant::now()), bytes.max(LEAST) as u64);
        let mut paid = self.paid.load(Relaxed);
        loop {
            let next = self.rate.take(paid, now, units).map_err(Duration::from_nanos)?;
            match self.paid.compare_exchange_weak(paid, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(seen) => paid = seen,
            }
        }
    }

    /// Pays for a datagram of so many bytes, at once or later.
    async fn pay(&self, bytes: usize) {
        if self.take(bytes).is_ok() {
            return;
        }
        let _turn = self.turn.lock().await;
        while let Err(wait) = self.take(bytes) {
            tokio::time::sleep(wait).await;
        }
    }
}

/// From the host to the address. Ends with the host's end.
pub(super) async fn outward(socket: &UdpSocket, host: &DatagramEnd, relayed: &Relayed) {
    let mut buffer = Vec::new();
    while host.readable().await.is_ok() {
        loop {
            match host.try_recv(&mut buffer) {
                Ok(Some(Packet::Data(datagram))) => {
                    relayed.pay(datagram.len()).await;
                    if let Err(cause) = socket.send(datagram).await {
                        failed(host, &cause);
                    }
                }
                // Hosts have nothing else to say: one that does is not to be listened to.
                Ok(Some(Packet::Refused) | None) => return,
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return,
            }
            // A host that always has one more must not keep the thread from everybody else.
            tokio::task::coop::consume_budget().await;
        }
    }
}

/// From the address to the host. What a host does not read in time is lost, as datagrams are.
pub(super) async fn inward(socket: &UdpSocket, host: &DatagramEnd, relayed: &Relayed) {
    let mut buffer = vec![0; datagram::MAX_DATAGRAM];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(size) => {
                relayed.pay(size).await;
                match host.try_send(buffer.get(..size).unwrap_or_default()) {
                    Err(cause) if cause.kind() != io::ErrorKind::WouldBlock => return,
                    _ => {}
                }
            }
            Err(cause) => failed(host, &cause),
        }
    }
}

fn failed(host: &DatagramEnd, cause: &io::Error) {
    let told = match cause.kind() {
        io::ErrorKind::ConnectionRefused => host.try_refused(),
        _ => Ok(()),
    };
    tracing::trace!(%cause, ?told, "a datagram was not sent or not received");
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A socket of a tenant that sends as fast as it is let; and where to.
    async fn flooding(relayed: &Arc<Relayed>) -> (UdpSocket, tokio::task::JoinSet<()>) {
        let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(far.local_addr().unwrap()).await.unwrap();
        let (ours, theirs) = datagram::pair().unwrap();
        let (host, relayed) = (DatagramEnd::new(theirs).unwrap(), relayed.clone());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { outward(&socket, &ours, &relayed).await });
        tasks.spawn(async move {
            loop {
                match host.try_send(b"x") {
                    Ok(()) => tokio::task::coop::consume_budget().await,
                    Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => host.writable().await.unwrap(),
                    Err(_) => return,
                }
            }
        });
        (far, tasks)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_tenant_has_relayed_has_one_rate_however_many_sockets_there_are() {
        let (relayed, began) = (Arc::<Relayed>::default(), Instant::now());
        let (one, _tasks) = flooding(&relayed).await;
        let (two, _others) = flooding(&relayed).await;
        let (mut buffer, mut buffers, mut came) = ([0; 16], [0; 16], 0_u64);
        let second = RATE / LEAST as u64;
        // Two seconds, and longer on a machine that has other things to do.
        let goes_on = |came: u64| match came {
            few if few < second / 20 => Duration::from_secs(60),
            _ => Duration::from_secs(2),
        };
        while began.elapsed() < goes_on(came) {
            let next = async {
                tokio::select! {
                    size = one.recv(&mut buffer) => size,
                    size = two.recv(&mut buffers) => size,
                }
            };
            if let Ok(size) = tokio::time::timeout(Duration::from_millis(100), next).await {
                assert_eq!(size.unwrap(), 1);
                came += 1;
            }
        }
        // Those of two seconds, and a tenth of a second's at once. Some may be lost on a busy machine.
        let most = (began.elapsed().as_secs_f64() * second as f64) as u64 + second / 10;
        assert!((second / 20..=most + 10).contains(&came), "{came} datagrams; at most {most}");
    }

    #[tokio::test]
    async fn what_comes_back_is_paid_for_as_well() {
        let relayed = Relayed::default();
        let (far, socket) =
            (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
        far.connect(socket.local_addr().unwrap()).await.unwrap();
        socket.connect(far.local_addr().unwrap()).await.unwrap();
        let (ours, theirs) = datagram::pair().unwrap();
        let host = DatagramEnd::new(theirs).unwrap();
        let before = relayed.paid.load(Relaxed);
        far.send(b"x").await.unwrap();
        tokio::select! {
            () = inward(&socket, &ours, &relayed) => panic!("it ended"),
            read = host.readable() => read.unwrap(),
        }
        assert!(relayed.paid.load(Relaxed) > before);
    }
}
