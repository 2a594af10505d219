//! Our providers against the bare client of the same server, in one process on one thread: what the contract, the
//! breaker and the limits cost beside the server. `kv redis|nats ADDRESS SECONDS`, `kv watch redis|nats ADDRESS SECONDS` and
//! `kv meter CALLS`; prints one line of JSON, calls per second and p50 in microseconds by operation.
//!
//! Every caller has a key of its own, so that no increment waits for another one's.
#![forbid(unsafe_code)]

mod watching;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, try_join_all};
use model::watch::Keys;
use model::{AppName, ProviderName, SecretRef, TenantName};
use providers::dial::{DialError, Dialer, Dialled, Target};
use providers::http_out::{Tls, public_roots};
use providers::keyvalue::redis::Login as RedisLogin;
use providers::keyvalue::{Backend, BackendError, MAX_VALUE, Nats, Redis, nats};
use providers::meter::LinkMeter;
use providers::nats::{Client, Login, Options, Outgoing};
use providers::secrets::{Credentials, Resolver, Revealed, SecretError};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, IntoConnectionInfo as _, Script, cmd};
use serde::Serialize;
use sidereal_benches::load::percentile;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Callers at once.
const CALLERS: usize = 32;
/// Rounds, ours and the bare one in turn; the medians count.
const ROUNDS: usize = 3;
/// What is asked, in order.
const OPERATIONS: [Operation; 3] = [Operation::Set, Operation::Get, Operation::Increment];

#[derive(Debug, Clone, Copy)]
enum Operation {
    Set,
    Get,
    Increment,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Get => "get",
            Self::Increment => "increment",
        }
    }
}

/// Connects to where it is told.
struct Direct(SocketAddr);

impl Dialer for Direct {
    fn dial(&self, _: Target) -> BoxFuture<'_, Result<Dialled, DialError>> {
        async move {
            let stream = TcpStream::connect(self.0).await.map_err(|cause| DialError::Connect(cause.to_string()))?;
            stream.set_nodelay(true).map_err(|cause| DialError::Connect(cause.to_string()))?;
            Ok(Dialled { stream: stream.into(), address: Some(self.0) })
        }
        .boxed()
    }
}

/// There are none.
struct NoSecrets;

impl Resolver for NoSecrets {
    fn reveal<'a>(&'a self, _: &'a AppName, secret: &'a SecretRef) -> BoxFuture<'a, Result<Revealed, SecretError>> {
        let missing = SecretError::Missing(secret.secret.to_string());
        async move { Err(missing) }.boxed()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

/// Whoever does the operations.
trait Store: Sync {
    fn ask(&self, operation: Operation, key: String) -> BoxFuture<'_, anyhow::Result<()>>;
}

struct Ours<B>(B);

impl<B: Backend> Store for Ours<B> {
    fn ask(&self, operation: Operation, key: String) -> BoxFuture<'_, anyhow::Result<()>> {
        async move {
            match operation {
                Operation::Set => self.0.set("b", &key, b"value".to_vec()).await?,
                Operation::Get => drop(self.0.get("b", &key).await?),
                Operation::Increment => drop(self.0.increment("b", &format!("n{key}"), 1).await?),
            }
            Ok(())
        }
        .boxed()
    }
}

/// The `redis` crate, and nothing else.
struct BareRedis {
    connection: MultiplexedConnection,
    promises: Promises,
}

/// What a caller has of the server.
#[derive(Debug, Clone, Copy)]
enum Promises {
    /// What our provider's callers have: no value is sent that is too long, no sum stays below 0. It takes a script.
    Same,
    /// What the server's plain commands give.
    Plain,
}

/// The value, or its length where it is too long.
static BOUNDED: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local n=redis.call('HSTRLEN',KEYS[1],ARGV[1]) if n>tonumber(ARGV[2]) then return n end \
         return redis.call('HGET',KEYS[1],ARGV[1])",
    )
});
/// The sum, taken back where it is below 0.
static ADDED: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local n=redis.call('HINCRBY',KEYS[1],ARGV[1],ARGV[2]) if n>=0 then return n end \
         redis.call('HINCRBY',KEYS[1],ARGV[1],-ARGV[2]) return false",
    )
});

impl Store for BareRedis {
    fn ask(&self, operation: Operation, key: String) -> BoxFuture<'_, anyhow::Result<()>> {
        let mut connection = self.connection.clone();
        let number = format!("n{key}");
        async move {
            let command = match (operation, self.promises) {
                (Operation::Set, _) => cmd("HSET").arg("acme/shop/b").arg(key).arg("value").to_owned(),
                (Operation::Get, Promises::Plain) => cmd("HGET").arg("acme/shop/b").arg(key).to_owned(),
                (Operation::Increment, Promises::Plain) => {
                    cmd("HINCRBY").arg("acme/shop/b").arg(number).arg(1).to_owned()
                }
                (Operation::Get, Promises::Same) => {
                    let mut call = BOUNDED.key("acme/shop/b");
                    call.arg(key).arg(MAX_VALUE).invoke_async::<redis::Value>(&mut connection).await?;
                    return Ok(());
                }
                (Operation::Increment, Promises::Same) => {
                    let mut call = ADDED.key("acme/shop/b");
                    call.arg(number).arg(1).invoke_async::<redis::Value>(&mut connection).await?;
                    return Ok(());
                }
            };
            command.query_async::<redis::Value>(&mut connection).await?;
            Ok(())
        }
        .boxed()
    }
}

/// Our own client of NATS and the subjects of its key-value store: no client of others takes our connections. An
/// increment is a read and a write, without the comparison that makes it one.
struct BareNats(Client);

impl BareNats {
    async fn request(&self, subject: String, payload: Bytes) -> anyhow::Result<()> {
        self.0.request(Outgoing::new(subject, payload), Duration::from_secs(5)).await?;
        Ok(())
    }
}

impl Store for BareNats {
    fn ask(&self, operation: Operation, key: String) -> BoxFuture<'_, anyhow::Result<()>> {
        let put = |key: &str| format!("$KV.acme_shop_b.{key}");
        let get = move |key: &str| format!("$JS.API.DIRECT.GET.KV_acme_shop_b.{}", put(key));
        async move {
            match operation {
                Operation::Set => self.request(put(&key), Bytes::from_static(b"value")).await,
                Operation::Get => self.request(get(&key), Bytes::new()).await,
                Operation::Increment => {
                    let key = format!("n{key}");
                    self.request(get(&key), Bytes::new()).await?;
                    self.request(put(&key), Bytes::from_static(b"1")).await
                }
            }
        }
        .boxed()
    }
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Figure {
    per_second: f64,
    p50_us: f64,
}

async fn measure(store: &dyn Store, operation: Operation, time: Duration) -> anyhow::Result<Figure> {
    let began = Instant::now();
    let callers = (0..CALLERS).map(|caller| async move {
        let mut took = Vec::new();
        while began.elapsed() < time {
            let asked = Instant::now();
            store.ask(operation, format!("k{caller}")).await?;
            took.push(u32::try_from(asked.elapsed().as_nanos()).unwrap_or(u32::MAX));
        }
        anyhow::Ok(took)
    });
    let mut took: Vec<u32> = try_join_all(callers).await?.into_iter().flatten().collect();
    let seconds = began.elapsed().as_secs_f64();
    took.sort_unstable();
    Ok(Figure { per_second: took.len() as f64 / seconds, p50_us: percentile(&took, 50) })
}

/// Medians by operation: ours and those it is beside.
type Report = BTreeMap<&'static str, BTreeMap<&'static str, Figure>>;

/// All of `stores` in turns.
async fn turns(stores: &[(&'static str, &dyn Store)], time: Duration) -> anyhow::Result<Report> {
    let mut report = Report::new();
    for operation in OPERATIONS {
        let mut figures: BTreeMap<&str, Vec<Figure>> = BTreeMap::new();
        // Once unmeasured: connections, buckets, scripts.
        for (_, store) in stores {
            measure(*store, operation, time / 10).await?;
        }
        for _ in 0..ROUNDS {
            for (name, store) in stores {
                figures.entry(name).or_default().push(measure(*store, operation, time).await?);
            }
        }
        let medians = figures.into_iter().map(|(name, figures)| Ok((name, median(figures)?)));
        report.insert(operation.name(), medians.collect::<anyhow::Result<_>>()?);
    }
    Ok(report)
}

fn median(mut figures: Vec<Figure>) -> anyhow::Result<Figure> {
    figures.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    figures.get(figures.len() / 2).copied().context("no figures")
}

async fn redis_pair(address: SocketAddr) -> anyhow::Result<(Redis, MultiplexedConnection)> {
    let (tenant, app, provider) = names()?;
    let login = RedisLogin { username: None, secrets: no_credentials(&app) };
    let url = format!("redis://{address}");
    let ours = Redis::new(&tenant, &app, &provider, &url, None, login, Arc::new(Direct(address)))?;
    let info = url.as_str().into_connection_info()?;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(5)));
    let connected = MultiplexedConnection::new_with_config(info.redis_settings(), stream, config).await;
    let (connection, driver) = connected?;
    tokio::spawn(driver);
    Ok((ours, connection))
}

async fn redis_report(address: SocketAddr, time: Duration) -> anyhow::Result<Report> {
    let (ours, connection) = redis_pair(address).await?;
    let plain = BareRedis { connection: connection.clone(), promises: Promises::Plain };
    let bare = BareRedis { connection, promises: Promises::Same };
    turns(&[("ours", &Ours(ours)), ("bare", &bare), ("plain", &plain)], time).await
}

fn nats_pair(address: SocketAddr) -> anyhow::Result<(Nats, Client)> {
    let (tenant, app, provider) = names()?;
    let url = format!("nats://{address}");
    let settings = nats::Settings { url: &url, replicas: None, jetstream_domain: None, login: Login::Nobody };
    let tls = Tls::new(public_roots())?;
    let ours = Nats::new(&tenant, &app, &provider, settings, tls.clone(), Arc::new(Direct(address)))?;
    let options = Options { tenant, app, provider, endpoint: url.parse()?, login: Login::Nobody, tls };
    Ok((ours, Client::new(options, Arc::new(Direct(address)))))
}

async fn nats_report(address: SocketAddr, time: Duration) -> anyhow::Result<Report> {
    let (ours, bare) = nats_pair(address)?;
    // The bucket is made by whoever writes first, and that must be ours.
    ours.set("b", "first", Vec::new()).await?;
    turns(&[("ours", &Ours(ours)), ("bare", &BareNats(bare))], time).await
}

/// How changes are told: ours, then the bare way.
async fn watch_report(server: &str, address: SocketAddr, time: Duration) -> anyhow::Result<serde_json::Value> {
    let every = Keys::of("*");
    let (ours, bare) = if server == "redis" {
        let (redis, connection) = redis_pair(address).await?;
        let redis = Arc::new(redis);
        let follow = redis.follow("w", every);
        let ours = watching::measure(&mut watching::Ours::new(redis, &follow).await?, time).await?;
        (ours, watching::measure(&mut watching::BareRedis::new(connection, address).await?, time).await?)
    } else {
        let (nats, client) = nats_pair(address)?;
        let nats = Arc::new(nats);
        let follow = nats.follow("w", every);
        let ours = watching::measure(&mut watching::Ours::new(nats, &follow).await?, time).await?;
        (ours, watching::measure(&mut watching::BareNats::new(client).await?, time).await?)
    };
    Ok(serde_json::json!({ "ours": ours, "bare": bare }))
}

fn names() -> anyhow::Result<(TenantName, AppName, ProviderName)> {
    Ok(("acme".parse()?, "shop".parse()?, "store".parse()?))
}

fn no_credentials(app: &AppName) -> Credentials {
    Credentials::new(app.clone(), BTreeMap::new(), Arc::new(NoSecrets))
}

#[derive(Serialize)]
struct Metering {
    on_ns: f64,
    off_ns: f64,
}

/// A call that is there at once, counted and not.
async fn meter(calls: u32) -> Metering {
    let meter = LinkMeter::default();
    let answer = || std::hint::black_box(async { Ok::<u64, BackendError>(7) });
    let (mut on, mut off) = (f64::MAX, f64::MAX);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for _ in 0..calls {
            drop(std::hint::black_box(answer().await));
        }
        off = off.min(began.elapsed().as_nanos() as f64 / f64::from(calls));
        let began = Instant::now();
        for _ in 0..calls {
            drop(std::hint::black_box(meter.call("get", answer()).await));
        }
        on = on.min(began.elapsed().as_nanos() as f64 / f64::from(calls));
    }
    Metering { on_ns: on, off_ns: off }
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let text = match args.as_slice() {
        ["meter", calls] => serde_json::to_string(&runtime.block_on(meter(calls.parse()?)))?,
        [server @ ("redis" | "nats"), address, seconds] => {
            let (address, time) = (address.parse()?, Duration::from_secs_f64(seconds.parse()?));
            let report = match *server {
                "redis" => runtime.block_on(redis_report(address, time))?,
                _ => runtime.block_on(nats_report(address, time))?,
            };
            serde_json::to_string(&report)?
        }
        ["watch", server @ ("redis" | "nats"), address, seconds] => {
            let (address, time) = (address.parse()?, Duration::from_secs_f64(seconds.parse()?));
            serde_json::to_string(&runtime.block_on(watch_report(server, address, time))?)?
        }
        _ => anyhow::bail!("usage: kv [watch] redis|nats ADDRESS SECONDS, or kv meter CALLS"),
    };
    println!("{text}");
    Ok(())
}
