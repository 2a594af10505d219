//! Every outgoing connection of every tenant: resolve once, decide on all addresses, connect to one of those that were
//! checked, hand the socket over. Guests' HTTP and providers' clients come through the same door.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::services::{Caller, Dial, FileFault};
use futures::future::BoxFuture;
use model::egress::Destination;
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use crate::lookups::Lookups;
use crate::tenant::Tenant;

/// Resolution and connection together take no longer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// An attempt on one of several addresses takes no longer, so that one dead address does not cost the whole time.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// A name with more addresses is refused: no service has so many, and each costs a check.
const MAX_ADDRESSES: usize = 64;
/// Addresses tried before giving up.
const MAX_ATTEMPTS: usize = 4;
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

/// Makes connections for hosts.
pub struct Dialer {
    resolver: Arc<dyn Resolve>,
    lookups: Arc<Lookups>,
    timeout: Duration,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Dialer {
    /// A dialer that resolves with `resolver`.
    pub fn new(resolver: Arc<dyn Resolve>) -> Self {
        Self { resolver, lookups: Lookups::new(LOOKUPS), timeout: TIMEOUT }
    }

    /// Connects on behalf of `tenant`, whose socket the request came from. Logs the flow and counts it, whatever comes
    /// of it.
    ///
    /// # Errors
    /// Why there is no connection; nothing was sent to a denied address.
    pub async fn dial(&self, tenant: &Tenant, dial: &Dial) -> Result<(TcpStream, SocketAddr), FileFault> {
        let result = self.attempt(tenant, dial).await;
        let (verdict, counter) = match &result {
            Ok(_) => ("connected", &tenant.flows.connected),
            Err(FileFault::Denied { what, .. }) if what == RATE => ("limited", &tenant.flows.limited),
            Err(FileFault::Denied { .. }) => ("denied", &tenant.flows.denied),
            Err(_) => ("failed", &tenant.flows.failed),
        };
        Tenant::count(counter);
        let (kind, caller) = match &dial.caller {
            Caller::Component(name) => ("component", name.as_str()),
            Caller::Provider(name) => ("provider", name.as_str()),
        };
        // `{:?}`: the host is somebody else's text, and a log line must stay one line.
        let (tenant, app, host, port) = (&tenant.name, &dial.app, &dial.host, dial.port);
        match &result {
            Ok((_, address)) => {
                tracing::info!(target: "flow", %tenant, %app, kind, caller, ?host, port, %address, verdict);
            }
            Err(cause) => {
                tracing::info!(target: "flow", %tenant, %app, kind, caller, ?host, port, verdict, %cause);
            }
        }
        result
    }

    async fn attempt(&self, tenant: &Tenant, dial: &Dial) -> Result<(TcpStream, SocketAddr), FileFault> {
        let denied = |what: &str| FileFault::Denied { address: place(&dial.host, dial.port), what: what.to_owned() };
        if !tenant.may_dial(Instant::now()) {
            return Err(denied(RATE));
        }
        if !tenant.knows(&dial.app) {
            return Err(denied("asked for by an app that does not run here"));
        }
        // The host process checked it too; what runs in there may have taken it over.
        if let Caller::Component(component) = &dial.caller
            && !tenant.may_reach(&dial.app, component, &dial.host, dial.port)
        {
            return Err(denied("a host that the component's `allow-hosts` does not name"));
        }
        let destination = Destination::parse(&dial.host).map_err(|cause| denied(&cause.to_string()))?;
        if dial.port == 0 {
            return Err(denied("port 0 is no port"));
        }
        let late = || FileFault::TimedOut { address: place(&dial.host, dial.port), ms: millis(self.timeout) };
        let deadline = tokio::time::Instant::now() + self.timeout;
        // A tenant's own: who waits for it takes nothing from anybody else.
        let Ok(Ok(_permit)) = timeout_at(deadline, tenant.dialing.acquire()).await else { return Err(late()) };
        let addresses = match &destination {
            Destination::Address(address) => vec![*address],
            Destination::Name(name) => {
                let dns = |cause: String| FileFault::Dns { host: name.clone(), cause };
                let found = timeout_at(deadline, self.resolve(tenant, name)).await.map_err(|_| late())?;
                let found = found.map_err(|cause| dns(cause.to_string()))?;
                if found.is_empty() || found.len() > MAX_ADDRESSES {
                    return Err(dns(format!("it has {} addresses; 1 to {MAX_ADDRESSES} are accepted", found.len())));
                }
                found
            }
        };
        let provider = match &dial.caller {
            Caller::Provider(name) => Some(name),
            Caller::Component(_) => None,
        };
        let verdict = tenant.policy().decide(provider, &destination, dial.port, &addresses);
        verdict.map_err(|denied| FileFault::Denied {
            address: SocketAddr::new(denied.address, dial.port).to_string(),
            what: denied.class.to_string(),
        })?;
        connect(&addresses, dial.port, deadline).await.unwrap_or_else(|| Err(late()))
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

/// What a refusal by the rate limit says.
const RATE: &str = "the tenant opens too many connections";

/// Tries the checked addresses in the resolver's order; `None` where the time is up.
async fn connect(
    addresses: &[IpAddr],
    port: u16,
    deadline: tokio::time::Instant,
) -> Option<Result<(TcpStream, SocketAddr), FileFault>> {
    let mut last = None;
    let tried = addresses.len().min(MAX_ATTEMPTS);
    for (at, ip) in addresses.iter().take(MAX_ATTEMPTS).enumerate() {
        let address = SocketAddr::new(*ip, port);
        let until = if at + 1 == tried { deadline } else { deadline.min(tokio::time::Instant::now() + ATTEMPT) };
        match timeout_at(until, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                if let Err(cause) = stream.set_nodelay(true) {
                    tracing::debug!(%address, %cause, "cannot switch off delayed sending");
                }
                return Some(Ok((stream, address)));
            }
            Ok(Err(cause)) => {
                last = Some(FileFault::Connect { address: address.to_string(), cause: cause.to_string() });
            }
            Err(_) if tokio::time::Instant::now() >= deadline => return None,
            Err(_) => {}
        }
    }
    last.map(Err)
}

fn place(host: &str, port: u16) -> String {
    let host: String = host.chars().take(260).flat_map(char::escape_default).collect();
    format!("{host}:{port}")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
