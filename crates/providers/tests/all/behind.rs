//! Contracts that a component answers in the place of a provider: `blob-prefix` before an object store in memory,
//! `go-between` before a test's secrets.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use model::Limits;
use model::unit::Millis;
use providers::blobstore::{
    Answer, Backend, BackendError, BlobLinks, CHUNK, ComponentBlobs, ContainerInfo, ObjectInfo, Page, Reading, Upload,
    conformance,
};
use providers::config::ConfigValues;
use providers::secrets::{ComponentSecrets, LinkedSecret, SecretLinks};
use providers::share::Sharing;
use runtime::trace::CallTrace;
use runtime::{Bindings, Callee, CalleeTrace, Fault, Loading, Sinks, Workload};

use crate::blob_memory::Memory;
use crate::support::{Guest, Vault, config};

/// A component that is always there, and what its calls ended with.
pub(crate) struct Behind {
    work: Arc<Workload>,
    faults: Mutex<Vec<Fault>>,
}

impl Behind {
    pub(crate) fn new(guest: &Guest) -> Arc<Self> {
        Arc::new(Self { work: guest.work.clone(), faults: Mutex::default() })
    }

    pub(crate) fn faults(&self) -> Vec<Fault> {
        self.faults.lock().unwrap().clone()
    }
}

impl Callee for Behind {
    fn enter(&self) -> Result<Option<Arc<Workload>>, Fault> {
        Ok(Some(self.work.clone()))
    }
    fn load(&self) -> Loading<'_> {
        Box::pin(async { Ok(self.work.clone()) })
    }
    fn leave(&self) {}
    fn begins(&self, _: Option<&CallTrace>, _: &str) -> Option<CalleeTrace> {
        None
    }
    fn ended(&self, _: Instant, fault: Option<&Fault>, _: Option<CalleeTrace>) {
        self.faults.lock().unwrap().extend(fault.cloned());
    }
}

/// `blob-prefix` before `memory`.
fn prefixed(memory: &Memory, prefix: &str) -> (Guest, Arc<Behind>, ComponentBlobs) {
    let label = model::Label::default_label();
    let links = BlobLinks::new().with(&label, Arc::new(memory.clone()), None, Arc::default(), Sharing::Alone);
    let values = ConfigValues(config(&[("prefix", prefix)]));
    let guest = Guest::new("blob-prefix", Bindings::new().with(Arc::new(links)).with(Arc::new(values)), None);
    let behind = Behind::new(&guest);
    let blobs = ComponentBlobs::new(behind.clone());
    (guest, behind, blobs)
}

/// The contract has sentences for errors. The suite knows what they mean: told apart here by what they say.
struct Understood(ComponentBlobs);

/// The one of `errors` whose sentence it is.
fn meant<T>(result: Result<T, BackendError>, errors: Vec<BackendError>) -> Result<T, BackendError> {
    result.map_err(|said| match &said {
        BackendError::Misuse(words) => {
            errors.into_iter().find(|error| error.to_string() == *words).unwrap_or_else(|| said.clone())
        }
        _ => said,
    })
}

fn none(container: &str) -> BackendError {
    BackendError::NoContainer(container.to_owned())
}

fn no_object((container, object): (&str, &str)) -> BackendError {
    BackendError::NoObject { container: container.to_owned(), object: object.to_owned() }
}

impl Backend for Understood {
    fn create<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        let there = BackendError::ContainerExists(container.to_owned());
        Box::pin(async move { meant(self.0.create(container).await, vec![there]) })
    }
    fn container<'a>(&'a self, container: &'a str) -> Answer<'a, Option<ContainerInfo>> {
        self.0.container(container)
    }
    fn delete<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        self.0.delete(container)
    }
    fn clear<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { meant(self.0.clear(container).await, vec![none(container)]) })
    }
    fn object<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Option<ObjectInfo>> {
        Box::pin(async move { meant(self.0.object(container, object).await, vec![none(container)]) })
    }
    fn read<'a>(&'a self, container: &'a str, object: &'a str, start: u64, end: u64) -> Answer<'a, Reading> {
        Box::pin(async move {
            let read = self.0.read(container, object, start, end).await;
            let mut errors = vec![none(container), no_object((container, object))];
            if read.is_err()
                && let Ok(Some(info)) = self.0.object(container, object).await
            {
                errors.push(BackendError::Range { start, end, size: info.size });
            }
            meant(read, errors)
        })
    }
    fn write<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Box<dyn Upload>> {
        Box::pin(async move { meant(self.0.write(container, object).await, vec![none(container)]) })
    }
    fn list<'a>(&'a self, container: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
        Box::pin(async move { meant(self.0.list(container, cursor).await, vec![none(container)]) })
    }
    fn remove<'a>(&'a self, container: &'a str, objects: Vec<String>) -> Answer<'a, ()> {
        Box::pin(async move { meant(self.0.remove(container, objects).await, vec![none(container)]) })
    }
    fn copy<'a>(&'a self, from: (&'a str, &'a str), to: (&'a str, &'a str)) -> Answer<'a, ()> {
        let errors = vec![no_object(from), none(from.0), none(to.0)];
        Box::pin(async move { meant(self.0.copy(from, to).await, errors) })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_before_an_object_store_keeps_the_contract() {
    let memory = Memory::default();
    let (_guest, behind, blobs) = prefixed(&memory, "");
    conformance::run(&Understood(blobs)).await.unwrap();
    // Each call went to its end, but for the one upload that the suite gives up.
    let faults = behind.faults();
    assert!(matches!(faults.as_slice(), [Fault::Cancelled]), "{faults:?}");
}

async fn put(store: &dyn Backend, object: &str, bytes: &'static [u8]) {
    let mut upload = store.write("c", object).await.unwrap();
    upload.write(Bytes::from_static(bytes)).await.unwrap();
    upload.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_before_an_object_store_changes_what_passes() {
    let memory = Memory::default();
    let (_guest, behind, blobs) = prefixed(&memory, "p/");
    blobs.create("c").await.unwrap();
    put(&blobs, "a", b"one").await;
    memory.containers.lock().unwrap().get_mut("c").unwrap().insert("other".to_owned(), Bytes::from_static(b"x"));
    let below: Vec<String> = memory.containers.lock().unwrap()["c"].keys().cloned().collect();
    assert_eq!(below, ["other", "p/a"]);
    assert_eq!(blobs.list("c", None).await.unwrap().names, ["a"], "it does not show what is not its own");
    assert_eq!(blobs.object("c", "other").await.unwrap(), None);
    let read: Vec<_> = blobs.read("c", "a", 1, 2).await.unwrap().chunks.collect().await;
    assert_eq!(read, [Ok(Bytes::from_static(b"ne"))]);
    // What fails below is said, and nothing of it is stored.
    *memory.refuse.lock().unwrap() = Some(BackendError::Denied("not today".to_owned()));
    let mut upload = blobs.write("c", "b").await.unwrap();
    let wrote = upload.write(Bytes::from_static(b"two")).await;
    let ended = match wrote {
        Ok(()) => upload.finish().await,
        refused => refused,
    };
    assert!(matches!(&ended, Err(BackendError::Misuse(words)) if words.contains("not today")), "{ended:?}");
    *memory.refuse.lock().unwrap() = None;
    assert_eq!(blobs.list("c", None).await.unwrap().names, ["a"]);
    memory.damaged.lock().unwrap().insert("p/a".to_owned());
    let read: Vec<_> = blobs.read("c", "a", 0, u64::MAX).await.unwrap().chunks.collect().await;
    assert!(matches!(read.as_slice(), [Err(BackendError::Misuse(words))] if words.contains("damaged")), "{read:?}");
    assert!(behind.faults().is_empty(), "{:?}", behind.faults());
}

/// Both names may mean one object: by two labels of links to one component, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_behind_a_component_is_moved_to_another_name_of_itself_and_is_still_there() {
    let memory = Memory::default();
    let (_between, _behind, blobs) = prefixed(&memory, "p/");
    let blobs: Arc<dyn Backend> = Arc::new(blobs);
    let (default, mine) = (model::Label::default_label(), "mine".parse().unwrap());
    let links = BlobLinks::new().with(&default, blobs.clone(), None, Arc::default(), Sharing::among(2)).with(
        &mine,
        blobs,
        Some("theirs"),
        Arc::default(),
        Sharing::among(2),
    );
    let guest = Guest::new("blob-probe", Bindings::new().with(Arc::new(links)), None);
    for (path, expected) in [
        ("/create/mine", "mine"),
        ("/fill/mine/moved/300000", "ok"),
        ("/move/mine/moved/mine/moved", "ok"),
        ("/move/mine/moved/theirs/moved", "ok"),
        ("/sum/mine/moved", "300000"),
    ] {
        assert_eq!(guest.get(path).await, (200, expected.to_owned()), "{path}");
    }
    let below: Vec<String> = memory.containers.lock().unwrap()["theirs"].keys().cloned().collect();
    assert_eq!(below, ["p/moved"]);
}

/// A listing goes on where it was, also where others removed and added before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_of_a_component_goes_on_where_it_was() {
    let memory = Memory::default();
    let (_guest, _behind, blobs) = prefixed(&memory, "");
    blobs.create("c").await.unwrap();
    let name = |n: usize| format!("{n:05}");
    let change = |change: &dyn Fn(&mut std::collections::BTreeMap<String, Bytes>)| {
        change(memory.containers.lock().unwrap().get_mut("c").unwrap());
    };
    change(&|objects| objects.extend((0..2500).map(|n| (name(n), Bytes::new()))));
    let first = blobs.list("c", None).await.unwrap();
    assert_eq!((first.names.len(), first.names.last().cloned()), (providers::blobstore::PAGE, Some(name(999))));
    change(&|objects| {
        objects.remove(&name(3));
        objects.remove(&name(4));
        objects.insert("0000a".to_owned(), Bytes::new());
    });
    let second = blobs.list("c", first.cursor.as_deref()).await.unwrap();
    assert_eq!((second.names.first().cloned(), second.names.last().cloned()), (Some(name(1000)), Some(name(1999))));
    change(&|objects| drop(objects.remove(&name(1999))));
    let lost = blobs.list("c", second.cursor.as_deref()).await;
    assert!(matches!(&lost, Err(BackendError::Misuse(words)) if words.contains("list them again")), "{lost:?}");
    assert!(matches!(blobs.list("c", Some("x")).await, Err(BackendError::Misuse(_))));
}

/// An upload that its caller drops half-way ends the component's call, and with it what that was writing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_given_up_leaves_nothing() {
    let memory = Memory::default();
    let (_guest, behind, blobs) = prefixed(&memory, "");
    blobs.create("c").await.unwrap();
    let mut upload = blobs.write("c", "half").await.unwrap();
    for _ in 0..8 {
        upload.write(Bytes::from(vec![1; CHUNK])).await.unwrap();
    }
    drop(upload);
    assert!(memory.containers.lock().unwrap()["c"].is_empty());
    assert!(matches!(behind.faults().as_slice(), [Fault::Cancelled]));
    put(&blobs, "whole", b"x").await;
    assert_eq!(blobs.list("c", None).await.unwrap().names, ["whole"]);
}

/// A caller that neither reads nor writes on holds the component no longer than its `wall`, and is told why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_caller_pauses_ends_at_its_wall() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let memory = Memory::default();
    let (guest, _, _) = prefixed(&memory, "");
    // The same once more, with less time.
    let label = model::Label::default_label();
    let links = BlobLinks::new().with(&label, Arc::new(memory.clone()), None, Arc::default(), Sharing::Alone);
    let sinks = Sinks { log: guest.log.clone(), outbound: None, sockets: None };
    let limits = Limits { wall: Millis::secs(8), ..Limits::default() };
    let bindings = Bindings::new().with(Arc::new(links)).with(Arc::new(ConfigValues(config(&[("prefix", "")]))));
    let work = Workload::new(guest.work.linked().clone(), limits, None, Arc::new(bindings), sinks);
    let behind = Arc::new(Behind { work, faults: Mutex::default() });
    let blobs = ComponentBlobs::new(behind.clone());
    blobs.create("c").await.unwrap();
    let large = Bytes::from(vec![1; 16 * CHUNK]);
    memory.containers.lock().unwrap().get_mut("c").unwrap().insert("large".to_owned(), large);

    let mut reading = blobs.read("c", "large", 0, u64::MAX).await.unwrap();
    assert!(reading.chunks.next().await.unwrap().is_ok());
    let mut upload = blobs.write("c", "half").await.unwrap();
    upload.write(Bytes::from(vec![1; CHUNK])).await.unwrap();
    let began = Instant::now();
    while behind.faults().len() < 2 {
        assert!(began.elapsed() < PATIENCE, "{:?}", behind.faults());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let faults = behind.faults();
    assert!(faults.iter().all(|fault| matches!(fault.root(), Fault::WallTime { .. })), "{faults:?}");
    let read = loop {
        match reading.chunks.next().await.expect("why it does not come whole") {
            Ok(_) => {}
            Err(cause) => break cause,
        }
    };
    assert_eq!(read, BackendError::TimedOut { ms: 8000 });
    let wrote = upload.write(Bytes::from_static(b"x")).await;
    assert_eq!(wrote, Err(BackendError::TimedOut { ms: 8000 }));
    drop(upload);
    assert_eq!(blobs.list("c", None).await.unwrap().names, ["large"]);
    assert_eq!(behind.faults().len(), 2, "each ended once");
}

#[tokio::test]
async fn a_component_before_secrets_gives_what_it_makes_of_them() {
    let vault = Vault::new();
    vault.set("stripe-key", "sk-1");
    let linked = |secret: &str, source: Arc<dyn providers::secrets::Resolver>| {
        let secret = model::SecretRef::new(secret.parse().unwrap());
        LinkedSecret::new("shop".parse().unwrap(), secret, source, Arc::default())
    };
    let own = SecretLinks::default().with("stripe-key", linked("stripe-key", vault.clone()));
    let between = Guest::new("go-between", Bindings::new().with(Arc::new(own)), None);
    let source = Arc::new(ComponentSecrets::new("between".to_owned(), Behind::new(&between)));
    let links = ["stripe-key", "gone", "forbidden"]
        .iter()
        .fold(SecretLinks::default(), |links, name| links.with(name, linked(name, source.clone())));
    let guest = Guest::new("secret-probe", Bindings::new().with(Arc::new(links)), None);
    assert_eq!(guest.get("/get/stripe-key").await, (200, "string seen:sk-1".to_owned()));
    vault.set("stripe-key", "sk-2");
    assert_eq!(guest.get("/get/stripe-key").await, (200, "string seen:sk-2".to_owned()), "the next call sees it");
    assert_eq!(guest.get("/get/gone").await, (404, "not-found".to_owned()));
    let (status, text) = guest.get("/get/forbidden").await;
    assert!(status == 502 && text.starts_with("upstream") && text.contains("the go-between gives none"), "{text}");
    let said = guest.log.0.lock().unwrap().clone();
    assert!(said.iter().any(|(_, _, text)| text.contains("not given by the component `between`")), "{said:?}");
    assert!(!said.iter().any(|(_, _, text)| text.contains("sk-")), "{said:?}");
}
