//! Every outgoing connection of every tenant: resolve once, decide on all addresses, connect to one of those that were
//! checked, hand the socket over. Guests' HTTP and sockets and providers' clients come through the same door.

mod connect;
mod journal;
mod nameserver;
pub(crate) mod own;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::services::{Caller, Dial, FileFault};
use futures::future::BoxFuture;
use model::egress::{Destination, Grant, Transport};
use tokio::time::timeout_at;

pub use crate::connections::Dialled;
use crate::connections::Open;
use crate::lookups::Lookups;
use crate::tenant::Tenant;
use journal::{Journal, Outcome};
pub use nameserver::{Nameserver, Nameservers};
pub use own::is_own;

/// Resolution and connection together take no longer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A name with more addresses is refused: no service has so many, and each costs a check.
const MAX_ADDRESSES: usize = 64;
/// Names being resolved at once, all tenants together: each holds a thread of the system's resolver.
const LOOKUPS: usize = 256;

/// Turns a name into addresses.
pub trait Resolve: Send + Sync + 'static {
    /// All addresses of `name`.
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The system's resolver: `/etc/hosts`, then DNS, as the machine is set up.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect()) })
    }
}

/// Why there is no connection, as who asked is told, and what the node's own log says in its place where it may say more.
struct Failed {
    fault: FileFault,
    own: Option<String>,
}

impl From<FileFault> for Failed {
    fn from(fault: FileFault) -> Self {
        Self { fault, own: None }
    }
}

/// Makes connections for hosts.
pub struct Dialer {
    resolver: Arc<dyn Resolve>,
    lookups: Arc<Lookups>,
    timeout: Duration,
    journal: Journal,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Dialer {
    /// A dialer that resolves with `resolver`.
    pub fn new(resolver: Arc<dyn Resolve>) -> Self {
        Self { resolver, lookups: Lookups::new(LOOKUPS), timeout: TIMEOUT, journal: Journal::default() }
    }

    /// Connects on behalf of `tenant`, whose socket the request came from, for its host `shard`. Records the flow and
    /// counts it, whatever comes of it.
    ///
    /// # Errors
    /// Why there is no connection; nothing was sent to a denied address.
    pub async fn dial(&self, tenant: &Arc<Tenant>, shard: u32, dial: &Dial) -> Result<Dialled, FileFault> {
        let result = self.attempt(tenant, shard, dial).await;
        let outcome = match &result {
            Ok((dialled, grant)) => Outcome::connected(dialled.address, *grant),
            Err(failed) => Outcome::of(failed),
        };
        self.journal.write(tenant, dial, outcome);
        result.map(|(dialled, _)| dialled).map_err(|failed| failed.fault)
    }

    async fn attempt(&self, tenant: &Arc<Tenant>, shard: u32, dial: &Dial) -> Result<(Dialled, Grant), Failed> {
        let limited = |what: &str| FileFault::Limited { address: place(&dial.host, dial.port), what: what.to_owned() };
        if !tenant.may_dial(Instant::now()) {
            return Err(limited("the tenant opens too many connections a second").into());
        }
        let room = tenant.room.clone().try_acquire_owned();
        let room = room.map_err(|_| limited("the tenant has as many connections open as it may"))?;
        let destination = asked(tenant, dial)?;
        let late = || FileFault::TimedOut { address: place(&dial.host, dial.port), ms: millis(self.timeout) };
        let deadline = tokio::time::Instant::now() + self.timeout;
        // A tenant's own: who waits for it takes nothing from anybody else.
        let Ok(Ok(_permit)) = timeout_at(deadline, tenant.dialing.acquire()).await else { return Err(late().into()) };
        let addresses = match &destination {
            Destination::Address(address) => vec![*address],
            Destination::Name(name) => {
                let dns = |cause: String| FileFault::Dns { host: name.clone(), cause };
                let found = timeout_at(deadline, self.resolve(tenant, name)).await.map_err(|_| late())?;
                let found = found.map_err(|cause| Failed {
                    fault: dns(nameserver::told(&cause)),
                    own: Some(dns(cause.to_string()).to_string()),
                })?;
                if found.is_empty() || found.len() > MAX_ADDRESSES {
                    let many = format!("it has {} addresses; 1 to {MAX_ADDRESSES} are accepted", found.len());
                    return Err(dns(many).into());
                }
                found
            }
        };
        decide(tenant, dial, &destination, &addresses)?;
        let (socket, address) = match dial.transport {
            Transport::Tcp => connect::tcp(&addresses, dial.port, deadline).await.unwrap_or_else(|| Err(late()))?,
            Transport::Udp => connect::udp(&addresses, dial.port).await?,
        };
        let added = tenant.connections.add(socket, dial, destination, address, shard, room);
        let (dialled, open) = added.map_err(|cause| unconnected(address, &cause))?;
        // The policy may have changed since it was asked; from here on a change finds the connection itself.
        let grant =
            tenant.still_grants(&open).map_err(|what| FileFault::Denied { address: address.to_string(), what })?;
        Ok((dialled, grant))
    }

    /// Ends what the tenant's policy and apps do not grant any more, and records that.
    pub fn recheck(&self, tenant: &Tenant) {
        let check = |open: &Open| tenant.still_grants(open).map(drop);
        for (open, why) in tenant.connections.end_refused(check) {
            self.journal.write(tenant, &open.dial, Outcome::revoked(open.address, why));
        }
    }

    /// Goes on when nobody waits any more: the thread is held as long, and so is the tenant's place.
    async fn resolve(&self, tenant: &Tenant, name: &str) -> io::Result<Vec<IpAddr>> {
        let place = self.lookups.enter(&tenant.name).await;
        let resolving = self.resolver.resolve(name.to_owned());
        let lookup = tokio::spawn(async move {
            let found = resolving.await;
            drop(place);
            found
        });
        lookup.await.map_err(io::Error::other)?
    }
}

/// Whether what asks may have such a connection at all; where to.
///
/// # Errors
/// [`FileFault::Denied`].
fn asked(tenant: &Tenant, dial: &Dial) -> Result<Destination, FileFault> {
    let denied = |what: String| FileFault::Denied { address: place(&dial.host, dial.port), what };
    let destination = Destination::parse(&dial.host).map_err(|cause| denied(cause.to_string()))?;
    // The host process checked it too; what runs in there may have taken it over.
    tenant.may_ask(dial, &destination).map_err(|why| denied(why.to_owned()))?;
    if dial.port == 0 {
        return Err(denied("port 0 is no port".to_owned()));
    }
    Ok(destination)
}

/// The tenant's policy on all addresses of a destination.
///
/// # Errors
/// [`FileFault::Denied`] names the first that is denied.
fn decide(tenant: &Tenant, dial: &Dial, destination: &Destination, addresses: &[IpAddr]) -> Result<(), FileFault> {
    let provider = match &dial.caller {
        Caller::Provider(name) => Some(name),
        Caller::Component(_) => None,
    };
    let grant = tenant.policy().decide(provider, destination, dial.port, addresses, &own::among(addresses));
    grant.map(drop).map_err(|denied| FileFault::Denied {
        address: SocketAddr::new(denied.address, dial.port).to_string(),
        what: denied.class.to_string(),
    })
}

fn unconnected(address: SocketAddr, cause: &io::Error) -> FileFault {
    FileFault::Connect { address: address.to_string(), cause: cause.to_string() }
}

fn place(host: &str, port: u16) -> String {
    format!("{}:{port}", journal::shown(host))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
