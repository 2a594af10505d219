//! The backend of external providers against real processes that speak wRPC: the example in Python, and programs that do
//! everything wrong.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use model::SecretRef;
use providers::external::{Connect, NotReady};
use providers::keyvalue::{Backend, BackendError, External, conformance};
use providers::secrets::Resolver as _;
use providers::secrets::external::External as SecretsExternal;
use tokio::net::UnixStream;

/// A provider's process, started as the node does it.
pub(super) struct Process {
    pub(super) child: Child,
    pub(super) dir: tempfile::TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(super) struct Direct(pub(super) PathBuf);

impl Connect for Direct {
    fn connect(&self) -> BoxFuture<'_, Result<UnixStream, NotReady>> {
        async move {
            UnixStream::connect(&self.0).await.map_err(|cause| NotReady { why: cause.to_string(), soon: true })
        }
        .boxed()
    }
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/external-keyvalue/provider.py")
}

impl Process {
    pub(super) fn start(program: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { child: spawn(program, dir.path(), dir.path()), dir }
    }

    /// One that has the data of another, as while a deploy changes the settings.
    pub(super) fn beside(program: &Path, other: &Self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { child: spawn(program, dir.path(), other.dir.path()), dir }
    }

    /// A program that is this text.
    pub(super) fn script(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        Self { child: spawn(&program, dir.path(), dir.path()), dir }
    }

    fn store(&self) -> External {
        External::new("kv".parse().unwrap(), self.connect())
    }

    /// The way to it.
    pub(super) fn connect(&self) -> Arc<Direct> {
        Arc::new(Direct(self.dir.path().join("s")))
    }

    /// Ends it without a word, and starts the same program again.
    pub(super) fn again(&mut self, program: &Path) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::fs::remove_file(self.dir.path().join("s")).unwrap();
        self.child = spawn(program, self.dir.path(), self.dir.path());
    }
}

fn spawn(program: &Path, dir: &Path, data: &Path) -> Child {
    let mut child = Command::new(program).env_clear().stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let (path, data) = (dir.to_str().unwrap(), data.to_str().unwrap());
    let line = format!("{{\"socket\":\"{path}/s\",\"data\":\"{data}\",\"config\":{{}}}}\n");
    child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    child
}

#[tokio::test]
async fn the_example_conforms() {
    let process = Process::start(&example());
    conformance::run_on_a_wire(&process.store()).await.unwrap();
}

#[tokio::test]
async fn what_it_acknowledged_survives_its_sudden_end() {
    let mut process = Process::start(&example());
    let store = process.store();
    store.check().await.unwrap();
    let begun = Instant::now();
    let mut sums = store.increment("b", "n", 1).await.unwrap();
    while begun.elapsed() < Duration::from_millis(300) {
        sums = store.increment("b", "n", 1).await.unwrap();
    }
    let calls = join_all((0..50).map(|_| store.increment("b", "n", 1)));
    let (answers, ()) = tokio::join!(calls, async {
        tokio::time::sleep(Duration::from_millis(3)).await;
        process.child.kill().unwrap();
    });
    process.child.wait().unwrap();
    let acknowledged = answers.iter().filter_map(|answer| answer.as_ref().ok()).count() as u64;
    assert!(answers.iter().all(|answer| matches!(answer, Ok(_) | Err(BackendError::Unavailable(_)))), "{answers:?}");
    std::fs::remove_file(process.dir.path().join("s")).unwrap();
    process.child = spawn(&example(), process.dir.path(), process.dir.path());
    let after: u64 = String::from_utf8(store.get("b", "n").await.unwrap().unwrap()).unwrap().parse().unwrap();
    assert!((sums + acknowledged..=sums + 50).contains(&after), "{sums} {acknowledged} {after}");
}

/// Listens, and does this with every connection.
pub(super) fn misbehaving(what: &str) -> Process {
    Process::script(&format!(
        "#!/usr/bin/python3 -I\nimport json, socket, sys, time\n\
         l = socket.socket(socket.AF_UNIX)\nl.bind(json.loads(sys.stdin.readline())['socket'])\nl.listen()\n\
         kept = []\nwhile True:\n    c, _ = l.accept()\n    kept.append(c)\n    {what}\n"
    ))
}

#[tokio::test]
async fn whatever_it_does_is_an_error_in_bounded_time() {
    let unavailable = |answer: Result<Option<Vec<u8>>, BackendError>, says: &str| {
        let said = answer.unwrap_err();
        assert!(matches!(said, BackendError::Unavailable(_)) && said.to_string().contains(says), "{said:?}");
    };
    let garbage = misbehaving("c.sendall(b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n')");
    unavailable(garbage.store().get("b", "k").await, "is not wRPC");
    let gone = misbehaving("kept.pop().close()");
    unavailable(gone.store().get("b", "k").await, "hung up");
    // Answers that never end: more keys than any page has, and a value longer than any.
    let frames = |first: &str| {
        misbehaving(&format!(
            "\n    try:\n        c.sendall(b'{first}')\n        while True: c.sendall(b'\\0\\x80\\x80\\4' + bytes(65536))\n    except OSError: pass"
        ))
    };
    let keys = frames("\\0\\5\\0\\xff\\xff\\xff\\x7f").store().list_keys("b", None).await.unwrap_err();
    assert!(matches!(keys, BackendError::TooLarge(_)), "{keys:?}");
    let value = frames("\\0\\6\\0\\1\\xff\\xff\\xff\\x7f").store().get("b", "k").await.unwrap_err();
    assert!(matches!(value, BackendError::TooLarge(_)), "{value:?}");
    let frame = misbehaving("c.sendall(b'\\0\\x80\\x80\\x80\\x20\\0\\1')").store().get("b", "k").await.unwrap_err();
    assert!(matches!(frame, BackendError::Unavailable(_)), "{frame:?}");
    let (begun, silent) = (Instant::now(), misbehaving("pass"));
    let said = silent.store().get("b", "k").await.unwrap_err();
    assert_eq!(said, BackendError::TimedOut { ms: 5000 });
    assert!(begun.elapsed() < Duration::from_secs(60));
}

/// Nothing listens.
struct Nobody(bool);

impl Connect for Nobody {
    fn connect(&self) -> BoxFuture<'_, Result<UnixStream, NotReady>> {
        async move { Err(NotReady { why: "it ends again and again".to_owned(), soon: self.0 }) }.boxed()
    }
}

#[tokio::test]
async fn a_process_that_is_not_there_is_waited_for_only_where_that_helps() {
    for (soon, at_least, at_most) in [(false, 0, 4), (true, 4, 60)] {
        let mut tries = Vec::new();
        // One that is waited for is so every time; the machine may stand still for a while.
        while !tries.last().is_some_and(|took| (at_least..at_most).contains(took)) {
            assert!(tries.len() < 4, "{tries:?} s");
            let store = External::new("kv".parse().unwrap(), Arc::new(Nobody(soon)));
            let begun = Instant::now();
            let said = store.get("b", "k").await.unwrap_err();
            assert_eq!(said, BackendError::Unavailable("it ends again and again".to_owned()));
            tries.push(begun.elapsed().as_secs());
            assert!(tries.iter().all(|took| *took >= at_least), "{tries:?} s");
        }
    }
}

/// Answers every connection and then says nothing.
#[derive(Default)]
struct Hanging(std::sync::Mutex<Vec<UnixStream>>);

impl Connect for Hanging {
    fn connect(&self) -> BoxFuture<'_, Result<UnixStream, NotReady>> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.0.lock().unwrap().push(theirs);
        async move { Ok(ours) }.boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn more_calls_than_have_a_place_wait_no_longer_for_a_program_that_hangs() {
    let begun = tokio::time::Instant::now();
    let store = External::new("kv".parse().unwrap(), Arc::new(Hanging::default()));
    let said = join_all((0..400).map(|_| store.get("b", "k"))).await;
    assert!(said.iter().all(|said| matches!(said, Err(BackendError::TimedOut { ms: 5000 }))));
    assert!(begun.elapsed() < Duration::from_secs(11), "{:?}", begun.elapsed());
    let secret = SecretRef::new("key".parse().unwrap());
    let begun = tokio::time::Instant::now();
    let vault = SecretsExternal::new("kv".parse().unwrap(), Arc::new(Hanging::default()));
    let app = "shop".parse().unwrap();
    let said = join_all((0..100).map(|_| vault.reveal(&app, &secret))).await;
    assert!(said.iter().all(Result::is_err));
    assert!(begun.elapsed() < Duration::from_secs(11), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn values_of_other_keys_than_were_asked_for_are_garbage() {
    // Answers `get-many` of `a` and `b` with the pairs in the other order.
    let swapped = misbehaving("c.recv(65536)\n    c.sendall(b'\\0\\x0c\\0\\2\\1\\1b\\1B\\1\\1a\\1A')");
    let said = swapped.store().get_many("b", vec!["a".into(), "b".into()]).await.unwrap_err();
    assert!(said.to_string().contains("other keys"), "{said}");
    let right = misbehaving("c.recv(65536)\n    c.sendall(b'\\0\\x0c\\0\\2\\1\\1a\\1A\\1\\1b\\1B')");
    let found = right.store().get_many("b", vec!["b".into(), "a".into()]).await.unwrap();
    assert_eq!(found, [("b".to_owned(), Some(b"B".to_vec())), ("a".to_owned(), Some(b"A".to_vec()))]);
}
