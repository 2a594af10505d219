//! The node's end of a host's connections: compiles guests, keeps their data in memory, dials one address.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

use api::services::codec::{FrameReader, FrameWriter};
use api::services::messaging::{BrokerKind, Handed, MessagingAnswer, MessagingRequest, Settled};
use api::services::server::{Accepted, FilesConnection, accept};
use api::services::{
    Dial, FileFault, FileReply, FileRequest, KvAnswer, KvCall, KvFault, KvOp, KvReply, KvScope, KvWrite, MoreRequest,
    Reply, ServiceAnswer, ServiceCall, ServiceFault, ServiceRequest,
};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use model::{Digest, World};
use providers::keyvalue::{Backend, BackendError, Memory};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

type Compiled = HashMap<(String, World), Arc<Vec<u8>>>;
type Artifacts = HashMap<(Digest, World), Arc<Vec<u8>>>;

/// Deliveries of what hosts left have numbers from here on.
const UNTRIED: u64 = 1 << 32;

/// What the node knows and what it was asked.
#[derive(Default)]
pub(crate) struct Node {
    artifacts: Mutex<Artifacts>,
    pub(crate) compiled_asked: AtomicU32,
    /// So often it answers that code is still being made.
    pub(crate) unmade: AtomicU32,
    /// But not of these.
    pub(crate) made: Mutex<HashSet<Digest>>,
    pub(crate) dials: Mutex<Vec<Dial>>,
    /// Where every dial ends up; refused where absent.
    pub(crate) dial_to: Mutex<Option<SocketAddr>>,
    /// The queue of every group, and what became of what was taken from it.
    pub(crate) queue: Mutex<VecDeque<Handed>>,
    pub(crate) settled: Mutex<Vec<(u64, Settled)>>,
    /// What hosts left, and what they took of it.
    pub(crate) untried: Mutex<VecDeque<Handed>>,
    untried_out: Mutex<HashMap<u64, Handed>>,
    left: AtomicU64,
    /// How many were taken, and how many of them were out at once.
    pub(crate) taken: Mutex<(usize, usize)>,
    stores: Mutex<HashMap<String, Arc<Memory>>>,
    alive: Mutex<Vec<UnixStream>>,
}

impl Node {
    /// A node, and a host's first connection to it.
    pub(crate) fn start() -> (Arc<Self>, std::os::unix::net::UnixStream) {
        let node = Arc::new(Self::default());
        let (first, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(node.clone().serve(first));
        (node, theirs.into_std().unwrap())
    }

    fn serve(self: Arc<Self>, stream: UnixStream) -> BoxFuture<'static, ()> {
        async move {
            match accept(stream).await {
                Ok(Accepted::Alive(held) | Accepted::Standing(held)) => self.alive.lock().unwrap().push(held),
                Ok(Accepted::Files(files)) => self.serve_files(files).await,
                Ok(Accepted::KeyValue(reader, writer)) => self.serve_keyvalue(reader, writer).await,
                Ok(Accepted::Calls(reader, writer)) => self.serve_calls(reader, writer).await,
                Ok(Accepted::More(mut more)) => {
                    while let Ok(Some(MoreRequest::Connection)) = more.next().await {
                        tokio::spawn(self.clone().serve(more.connection().unwrap()));
                    }
                }
                // The host ended before it said anything.
                Err(_) => {}
            }
        }
        .boxed()
    }

    /// Compiles a guest and offers it. Compiled once for all tests.
    pub(crate) fn offer(&self, name: &str, world: World) -> Digest {
        static DONE: OnceLock<Mutex<Compiled>> = OnceLock::new();
        let wasm = crate::rig::guest(name);
        let digest = Digest::of(&wasm);
        let code = {
            let mut done = DONE.get_or_init(Mutex::default).lock().unwrap();
            let compile = || Arc::new(runtime::compile(&wasm, world).unwrap());
            done.entry((name.to_owned(), world)).or_insert_with(compile).clone()
        };
        self.artifacts.lock().unwrap().insert((digest, world), code);
        digest
    }

    /// Code of bytes that are no guest's.
    pub(crate) fn offer_bytes(&self, wasm: &[u8], world: World) -> Digest {
        let digest = Digest::of(wasm);
        let code = Arc::new(runtime::compile(wasm, world).unwrap());
        self.artifacts.lock().unwrap().insert((digest, world), code);
        digest
    }

    /// The same code under a digest of its own.
    pub(crate) fn offer_as(&self, digest: Digest, name: &str) {
        let original = self.offer(name, World::P2);
        let mut artifacts = self.artifacts.lock().unwrap();
        let code = artifacts[&(original, World::P2)].clone();
        artifacts.insert((digest, World::P2), code);
    }

    /// The node ends, as far as a host can see.
    pub(crate) fn end(&self) {
        self.alive.lock().unwrap().clear();
    }

    async fn serve_files(&self, mut files: FilesConnection) {
        while let Ok(Some(request)) = files.next().await {
            match request {
                FileRequest::Compiled { digest, world } => {
                    self.compiled_asked.fetch_add(1, SeqCst);
                    let made = self.made.lock().unwrap().contains(&digest);
                    if !made && self.unmade.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
                        let fault = FileFault::NotReady { why: "it is being compiled".into(), soon: true };
                        files.reply(&FileReply::Refused(fault), None).unwrap();
                        continue;
                    }
                    let code = self.artifacts.lock().unwrap().get(&(digest, world)).cloned();
                    match code {
                        Some(code) => {
                            let mut file = tempfile::tempfile().unwrap();
                            file.write_all(&code).unwrap();
                            files.reply(&FileReply::Ready { address: None }, Some(file.as_fd())).unwrap();
                        }
                        None => {
                            let fault = FileFault::NoCode("the tenant runs no such artifact".into());
                            files.reply(&FileReply::Refused(fault), None).unwrap();
                        }
                    }
                }
                FileRequest::External(wanted) => {
                    let why = format!("nothing runs provider `{}` here", wanted.provider);
                    let fault = FileFault::NotReady { why, soon: false };
                    files.reply(&FileReply::Refused(fault), None).unwrap();
                }
                FileRequest::Dial(dial) => {
                    self.dials.lock().unwrap().push(dial);
                    let to = *self.dial_to.lock().unwrap();
                    match to {
                        Some(address) => {
                            let stream = std::net::TcpStream::connect(address).unwrap();
                            let reply = FileReply::Ready { address: Some(address) };
                            files.reply(&reply, Some(stream.as_fd())).unwrap();
                        }
                        None => {
                            let fault = FileFault::Denied { address: "10.0.0.1".into(), what: "private".into() };
                            files.reply(&FileReply::Refused(fault), None).unwrap();
                        }
                    }
                }
            }
        }
    }

    async fn serve_calls(&self, mut reader: FrameReader<OwnedReadHalf>, mut writer: FrameWriter<OwnedWriteHalf>) {
        while let Ok(Some(ServiceCall { id, request, .. })) = reader.next::<ServiceCall>().await {
            let ServiceRequest::Messaging(request) = request else { unreachable!("no test asks for another service") };
            let answer = match request {
                MessagingRequest::Leave { message, .. } => {
                    let delivery = UNTRIED + self.left.fetch_add(1, SeqCst);
                    let handed = Handed { delivery, id: delivery.to_string(), tries: 1, message };
                    self.untried.lock().unwrap().push_back(handed);
                    MessagingAnswer::Done
                }
                MessagingRequest::Take { group, .. } if group.ends_with("/untried") => {
                    let taken = self.untried.lock().unwrap().pop_front();
                    self.untried_out.lock().unwrap().extend(taken.clone().map(|one| (one.delivery, one)));
                    MessagingAnswer::Taken(taken.into_iter().collect())
                }
                MessagingRequest::Settle { delivery, outcome, .. } if delivery >= UNTRIED => {
                    let taken = self.untried_out.lock().unwrap().remove(&delivery).unwrap();
                    if outcome == Settled::GivenBack {
                        self.untried.lock().unwrap().push_back(taken);
                    }
                    MessagingAnswer::Done
                }
                MessagingRequest::Take { broker: BrokerKind::Local, max, .. } => {
                    let mut queue = self.queue.lock().unwrap();
                    let most = queue.len().min(max as usize);
                    let mut taken = self.taken.lock().unwrap();
                    taken.0 += most;
                    taken.1 = taken.1.max(taken.0 - self.settled.lock().unwrap().len());
                    MessagingAnswer::Taken(queue.drain(..most).collect())
                }
                MessagingRequest::Take { .. } => MessagingAnswer::NotSubscribed,
                MessagingRequest::Settle { delivery, outcome, .. } => {
                    self.settled.lock().unwrap().push((delivery, outcome));
                    MessagingAnswer::Done
                }
                other => unreachable!("no test asks {other:?}"),
            };
            if answer == MessagingAnswer::Taken(Vec::new()) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            let result = Ok::<_, ServiceFault>(ServiceAnswer::Messaging(answer));
            writer.push(&Reply { id, result }).unwrap();
            writer.flush().await.unwrap();
        }
    }

    fn store(&self, scope: &KvScope) -> Arc<Memory> {
        let key = format!("{}/{}", scope.app, scope.provider);
        self.stores.lock().unwrap().entry(key).or_insert_with(|| Arc::new(Memory::new(64 << 20))).clone()
    }

    async fn serve_keyvalue(&self, mut reader: FrameReader<OwnedReadHalf>, mut writer: FrameWriter<OwnedWriteHalf>) {
        while let Ok(Some(call)) = reader.next::<KvCall>().await {
            let id = call.id;
            let result = self.operate(call).await.map_err(|error| match error {
                BackendError::NotANumber(key) => KvFault::NotANumber(key),
                BackendError::TooLarge(why) => KvFault::TooLarge(why),
                other => KvFault::Unavailable(other.to_string()),
            });
            writer.push(&KvReply { id, result }).unwrap();
            writer.flush().await.unwrap();
        }
    }

    async fn operate(&self, KvCall { scope, op, .. }: KvCall) -> Result<KvAnswer, BackendError> {
        let (store, bucket) = (self.store(&scope), scope.bucket.as_str());
        let write = match op {
            KvOp::Get { key } => return Ok(KvAnswer::Value(store.get(bucket, &key).await?)),
            KvOp::Exists { key } => return Ok(KvAnswer::Bool(store.exists(bucket, &key).await?)),
            KvOp::ListKeys { cursor, .. } => {
                let page = store.list_keys(bucket, cursor.as_deref()).await?;
                return Ok(KvAnswer::Keys { keys: page.keys, cursor: page.cursor });
            }
            KvOp::GetMany { keys } => return Ok(KvAnswer::Values(store.get_many(bucket, keys).await?)),
            KvOp::Write { write, .. } => write,
        };
        Ok(match write {
            KvWrite::Set { key, value } => store.set(bucket, &key, value).await.map(|()| KvAnswer::Done)?,
            KvWrite::Delete { key } => store.delete(bucket, &key).await.map(|()| KvAnswer::Done)?,
            KvWrite::Increment { key, delta } => KvAnswer::Number(store.increment(bucket, &key, delta).await?),
            KvWrite::SetMany { pairs } => store.set_many(bucket, pairs).await.map(|()| KvAnswer::Done)?,
            KvWrite::DeleteMany { keys } => store.delete_many(bucket, keys).await.map(|()| KvAnswer::Done)?,
            KvWrite::CompareAndSet { .. } => panic!("the contract has no such call"),
        })
    }
}
