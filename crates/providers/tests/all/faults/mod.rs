//! What every provider of a remote server does when that server, or the way to it, fails. One suite for all of them: a
//! new provider is one [`Remote`] in `remotes.rs` and one line in the list below.
//!
//! The suite asks for nothing but what a component would notice: every call ends in time and with an error of the right
//! kind, a server that is away costs nothing per call and is not stormed, one that is back is found again, and nobody
//! waits for a server that is not theirs, nor for what another component met.

mod cases;
mod proxy;
mod remotes;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use providers::meter::{ErrorKind, Kind, LinkMeter};

use crate::support::Direct;
use proxy::{Mode, Proxy};

/// A server and how its provider is opened and called.
pub(crate) trait Remote: Send + Sync + Sized + 'static {
    /// The longest that one call takes, whatever happens.
    const BOUND: Duration;

    /// Whether calls that were under way when the server went are made again until it is back, for longer than a second.
    const BRIDGES: bool = false;

    /// A server of the test's own, ready for what `open` gives. `None`, said loudly, where none can be had.
    fn start() -> impl Future<Output = Option<Self>> + Send;

    /// Where it listens.
    fn address(&self) -> SocketAddr;

    /// The provider, opened as if its server were at `at`.
    fn open(&self, at: SocketAddr, dialer: Arc<Direct>) -> Call;

    /// Makes what the provider logs in with worthless, also where it has logged in already. `false` where the provider
    /// has nothing to log in with.
    fn revoke(&self) -> impl Future<Output = bool> + Send {
        async { false }
    }
}

/// One cheap call that asks the server something, ready to be made again and again.
pub(crate) type Call = Arc<dyn Fn() -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

/// How a call failed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) said: String,
}

impl Kind for Failure {
    fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.said)
    }
}

/// A [`Call`] of what a provider offers.
pub(crate) fn call<P, F, E>(provider: P, ask: impl Fn(Arc<P>) -> F + Send + Sync + 'static) -> Call
where
    P: Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Kind,
{
    let provider = Arc::new(provider);
    Arc::new(move || {
        let asked = ask(provider.clone());
        Box::pin(async move { asked.await.map_err(|cause| Failure { kind: cause.kind(), said: cause.to_string() }) })
    })
}

/// The server, the way to it, and the provider at the other end.
struct Rig<R> {
    remote: R,
    proxy: Proxy,
    dialer: Arc<Direct>,
    /// In the name of the link.
    call: Call,
    /// In the name of whichever link calls.
    any: Call,
    /// Of the link: `sidereal status` shows what it holds.
    meter: LinkMeter,
}

impl<R: Remote> Rig<R> {
    async fn start(mode: Mode) -> Option<Self> {
        let remote = R::start().await?;
        let proxy = Proxy::start(remote.address(), mode).await;
        let dialer = Direct::to(proxy.address);
        let any = remote.open(proxy.address, dialer.clone());
        let meter = LinkMeter::default();
        let (asked, link) = (any.clone(), meter.id());
        let call: Call = Arc::new(move || Box::pin(link.clone().calls(asked())));
        Some(Self { remote, proxy, dialer, call, any, meter })
    }

    /// One that has made calls side by side already, and holds the connections for them.
    async fn warm() -> Option<Self> {
        let rig = Self::start(Mode::Pass).await?;
        rig.answers().await;
        for answer in futures::future::join_all((0..16).map(|_| (rig.call)())).await {
            answer.unwrap();
        }
        Some(rig)
    }

    /// One call, which ends in time. Why it failed is the reason on the status until one is answered.
    async fn once(&self) -> Result<(), Failure> {
        let answer = self.meter.observe(async { timed::<R>(&self.call).await.0 }).await;
        let trouble = self.meter.trouble();
        match (&answer, &trouble) {
            (Ok(()), None) => {}
            (Err(failure), Some(trouble)) => {
                assert_eq!(trouble.kind, failure.kind, "{trouble:?}");
                assert!(trouble.reason.len() > 10, "it is a sentence: {trouble:?}");
                assert!(!trouble.reason.contains(remotes::SECRET), "{trouble:?}");
            }
            _ => panic!("{answer:?} leaves {trouble:?}"),
        }
        answer
    }

    /// Until a call is answered. A call that was under way when the server came back may have its time first.
    async fn answers(&self) {
        let start = Instant::now();
        while let Err(cause) = self.once().await {
            assert!(start.elapsed() < R::BOUND + 30 * SECOND, "not found again: {cause:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// How long it took; never longer than it may.
async fn timed<R: Remote>(call: &Call) -> (Result<(), Failure>, Duration) {
    let start = Instant::now();
    let answer = call().await;
    let took = start.elapsed();
    assert!(took < R::BOUND + SLACK, "a call took {took:?}: {answer:?}");
    (answer, took)
}

const SECOND: Duration = Duration::from_secs(1);
/// For a machine that does other things as well.
const SLACK: Duration = Duration::from_secs(30);
/// A caller that waits no longer gives up before a call does.
const FAST: Duration = Duration::from_millis(750);

macro_rules! suite {
    ($($name:ident: $remote:ty,)*) => {$(
        mod $name {
            use super::{cases, remotes};
            suite!(@cases $remote: down_at_start dies_under_load hangs hangs_and_callers_give_up partition_is_healed answers_garbage is_slow
                restarts credentials_are_revoked neighbours_do_not_wait other_links_are_not_held_back);
        }
    )*};
    (@cases $remote:ty: $($case:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            cases::$case::<$remote>().await;
        }
    )*};
}

suite! {
    keyvalue_redis: remotes::Redis,
    keyvalue_nats: remotes::NatsKeys,
    keyvalue_vault: remotes::Vault,
    keyvalue_openbao: remotes::OpenBao,
    keyvalue_consul: remotes::Consul,
    blobstore_s3: remotes::S3,
    messaging_nats: remotes::NatsMessages,
    messaging_jetstream: remotes::JetstreamMessages,
    blobstore_nats: remotes::NatsObjects,
    secrets_vault: remotes::VaultSecrets,
    secrets_openbao: remotes::OpenBaoSecrets,
    sql_postgres: remotes::Postgres,
}
