//! How soon, and how fast, a change of a key is told: by our providers, which record what they told and give it to one
//! handler, and by a bare subscription of the same server, which forgets what nobody hears.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use model::messaging::{Group, Subscription};
use providers::keyvalue::Backend;
use providers::messaging::{self, Deliveries, Outcome};
use providers::nats::{Buffer, Client, Outgoing};
use redis::aio::MultiplexedConnection;
use redis::cmd;
use serde::Serialize;
use sidereal_benches::load::percentile;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Keys of one burst.
const BURST: usize = 2000;
/// Writes at once in a burst.
const WRITERS: usize = 32;
/// A change that is not told for so long is lost.
const LOST: Duration = Duration::from_secs(60);
/// The bucket, and its hash or subject.
const BUCKET: &str = "w";
pub(crate) const HASH: &str = "acme/shop/w";
pub(crate) const SUBJECTS: &str = "$KV.acme_shop_w.>";

/// One way to be told.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    p50_us: f64,
    p99_us: f64,
    per_second: f64,
}

/// Writes, and hears of it.
pub(crate) trait Watch {
    /// Writes a key.
    fn write(&self, key: String) -> impl Future<Output = anyhow::Result<()>>;
    /// Waits for the next change that is told; its key, where that is said.
    fn told(&mut self) -> impl Future<Output = anyhow::Result<Option<String>>>;
    /// Another handle to write by, while changes are heard.
    fn writer(&self) -> impl Fn(String) -> futures::future::LocalBoxFuture<'static, anyhow::Result<()>> + 'static;
}

/// Measures one way.
pub(crate) async fn measure(watch: &mut impl Watch, time: Duration) -> anyhow::Result<Figure> {
    let mut took = Vec::new();
    let began = Instant::now();
    let mut n = 0_u64;
    while began.elapsed() < time {
        let (key, wrote) = (format!("one-{n}"), Instant::now());
        n += 1;
        watch.write(key).await?;
        tokio::time::timeout(LOST, watch.told()).await.context("a change is not told")??;
        took.push(u32::try_from(wrote.elapsed().as_nanos()).unwrap_or(u32::MAX));
    }
    took.sort_unstable();
    let write = watch.writer();
    let began = Instant::now();
    let writes = stream::iter(0..BURST).map(|n| write(format!("many-{n}"))).buffer_unordered(WRITERS);
    let writing = writes.for_each(|done| async { drop(done) });
    let telling = async {
        // A notification that says no key counts for itself; one that does counts once for each key.
        let (mut keys, mut unnamed) = (BTreeSet::new(), 0);
        while keys.len() + unnamed < BURST {
            match tokio::time::timeout(LOST, watch.told()).await.context("a change of a burst is not told")?? {
                Some(key) => drop(keys.insert(key)),
                None => unnamed += 1,
            }
        }
        anyhow::Ok(())
    };
    let ((), told) = tokio::join!(writing, telling);
    told?;
    let per_second = BURST as f64 / began.elapsed().as_secs_f64();
    Ok(Figure { p50_us: percentile(&took, 50), p99_us: percentile(&took, 99), per_second })
}

/// A provider of ours.
pub(crate) struct Ours {
    store: Arc<dyn Backend>,
    deliveries: Box<dyn Deliveries>,
}

impl Ours {
    pub(crate) async fn new(store: Arc<dyn Backend>, changes: &dyn messaging::Backend) -> anyhow::Result<Self> {
        store.set(BUCKET, "before", Vec::new()).await?;
        let subscription = Subscription {
            component: "index".parse()?,
            label: "default".parse()?,
            group: Group { app: "shop".parse()?, name: "watch.index.default".to_owned() },
            patterns: Vec::new(),
            tries: 5,
            in_flight: 1,
        };
        let deliveries = changes.subscribe(Arc::new(subscription)).await?;
        let mut ours = Self { store, deliveries };
        // What is there when it begins is not told, and it begins soon.
        for n in 0.. {
            ours.write(format!("begins-{n}")).await?;
            if tokio::time::timeout(Duration::from_millis(200), ours.told()).await.is_ok() {
                break;
            }
            anyhow::ensure!(n < 100, "the watch does not begin");
        }
        while tokio::time::timeout(Duration::from_millis(500), ours.told()).await.is_ok() {}
        Ok(ours)
    }
}

impl Watch for Ours {
    async fn write(&self, key: String) -> anyhow::Result<()> {
        Ok(self.store.set(BUCKET, &key, b"value".to_vec()).await?)
    }

    async fn told(&mut self) -> anyhow::Result<Option<String>> {
        let delivery = self.deliveries.next().await.context("the watch has ended")??;
        let key = String::from_utf8(delivery.message.body)?;
        delivery.settle.settle(Outcome::Done).await?;
        Ok(Some(key))
    }

    fn writer(&self) -> impl Fn(String) -> futures::future::LocalBoxFuture<'static, anyhow::Result<()>> + 'static {
        let store = self.store.clone();
        move |key| {
            let store = store.clone();
            Box::pin(async move { Ok(store.set(BUCKET, &key, b"value".to_vec()).await?) })
        }
    }
}

/// Core NATS on the subjects of the bucket.
pub(crate) struct BareNats {
    client: Client,
    told: providers::nats::Subscription,
}

impl BareNats {
    pub(crate) async fn new(client: Client) -> anyhow::Result<Self> {
        let told = client.subscribe(SUBJECTS, None, Buffer { messages: BURST * 2, bytes: 16 << 20 }).await?;
        Ok(Self { client, told })
    }
}

impl Watch for BareNats {
    async fn write(&self, key: String) -> anyhow::Result<()> {
        (self.writer())(key).await
    }

    async fn told(&mut self) -> anyhow::Result<Option<String>> {
        self.told.next().await.context("the subscription has ended")?;
        Ok(None)
    }

    fn writer(&self) -> impl Fn(String) -> futures::future::LocalBoxFuture<'static, anyhow::Result<()>> + 'static {
        let client = self.client.clone();
        move |key| {
            let client = client.clone();
            Box::pin(async move {
                let put =
                    Outgoing::new(format!("{}{key}", SUBJECTS.trim_end_matches('>')), Bytes::from_static(b"value"));
                client.request(put, Duration::from_secs(5)).await?;
                Ok(())
            })
        }
    }
}

/// Keyspace notifications of the hash, which do not say which field changed.
pub(crate) struct BareRedis {
    connection: MultiplexedConnection,
    told: TcpStream,
    here: Vec<u8>,
}

/// How a notification ends.
const HSET: &[u8] = b"\r\n$4\r\nhset\r\n";

impl BareRedis {
    pub(crate) async fn new(connection: MultiplexedConnection, address: SocketAddr) -> anyhow::Result<Self> {
        let mut told = TcpStream::connect(address).await?;
        told.set_nodelay(true)?;
        told.write_all(format!("SUBSCRIBE __keyspace@0__:{HASH}\r\n").as_bytes()).await?;
        let mut answer = [0; 256];
        anyhow::ensure!(told.read(&mut answer).await? > 0, "redis does not let us subscribe");
        Ok(Self { connection, told, here: Vec::new() })
    }
}

impl Watch for BareRedis {
    async fn write(&self, key: String) -> anyhow::Result<()> {
        (self.writer())(key).await
    }

    async fn told(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(at) = self.here.windows(HSET.len()).position(|window| window == HSET) {
                self.here.drain(..at + HSET.len());
                return Ok(None);
            }
            anyhow::ensure!(self.told.read_buf(&mut self.here).await? > 0, "redis hung up");
        }
    }

    fn writer(&self) -> impl Fn(String) -> futures::future::LocalBoxFuture<'static, anyhow::Result<()>> + 'static {
        let connection = self.connection.clone();
        move |key| {
            let mut connection = connection.clone();
            Box::pin(async move {
                let put = cmd("HSET").arg(HASH).arg(key).arg("value").to_owned();
                put.query_async::<redis::Value>(&mut connection).await?;
                Ok(())
            })
        }
    }
}
