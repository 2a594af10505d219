//! Compiled code on disk: made once, shared, and never loaded when it is not ours.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use model::{Digest, TenantName, World};
use node::artifacts::{ArtifactError, Artifacts, CodeKey, CompileError};
use node::confine::Confinement;
use store::blobs::Blobs;

struct Rig {
    dir: tempfile::TempDir,
    blobs: Blobs,
}

impl Rig {
    /// A compiler that notes each run, takes a moment, and does `last`.
    fn new(last: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        let exe = dir.path().join("exe");
        std::fs::write(&exe, format!("#!/bin/sh\necho run >> {}\n{last}\n", runs.display())).unwrap();
        std::fs::set_permissions(&exe, std::fs::Permissions::from_mode(0o700)).unwrap();
        let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
        Self { dir, blobs }
    }

    fn open(&self, keys: &str) -> Arc<Artifacts> {
        let path = self.dir.path();
        let artifacts = Artifacts::open(
            path.join("cache"),
            path.join(keys),
            path.join("exe"),
            Confinement::bare(),
            self.blobs.clone(),
        );
        Arc::new(artifacts.unwrap())
    }

    fn blob(&self, content: &[u8]) -> CodeKey {
        let digest = Digest::of(content);
        self.blobs.put(&digest, content).unwrap();
        CodeKey { digest, world: World::P2, fingerprint: "abc123".into() }
    }

    fn runs(&self) -> usize {
        std::fs::read_to_string(self.dir.path().join("runs")).map_or(0, |text| text.lines().count())
    }

    fn file(&self, key: &CodeKey) -> PathBuf {
        let name = format!("{}.{}.cwasm", key.digest.hex(), key.world.as_str());
        self.dir.path().join("cache").join(&key.fingerprint).join(name)
    }
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    format!("{}{suffix}", path.display()).into()
}

fn tenant() -> TenantName {
    "acme".parse().unwrap()
}

/// Asks until it is there, or cannot be.
async fn opened(artifacts: &Artifacts, key: &CodeKey) -> Result<File, ArtifactError> {
    let asked = async {
        loop {
            match artifacts.open_code(&tenant(), key).await.transpose() {
                Some(opened) => return opened,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asked).await.expect("it is made for ever")
}

async fn content(artifacts: &Artifacts, key: &CodeKey) -> Vec<u8> {
    let mut bytes = Vec::new();
    opened(artifacts, key).await.unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

const COMPILE: &str = "printf compiled:; exec /bin/cat";

#[tokio::test]
async fn code_is_made_once_and_shared() {
    let rig = Rig::new("/bin/sleep 0.2\nprintf compiled:; exec /bin/cat");
    let artifacts = rig.open("keys");
    let key = rig.blob(b"one");
    let all = (0..20).map(|_| {
        let (artifacts, key) = (artifacts.clone(), key.clone());
        tokio::spawn(async move { artifacts.ensure(&tenant(), &key).await })
    });
    for result in futures::future::join_all(all).await {
        result.unwrap().unwrap();
    }
    assert_eq!(rig.runs(), 1);
    assert!(artifacts.is_cached(&key));
    assert_eq!(content(&artifacts, &key).await, b"compiled:one");
    // Twice from the start: hosts do not share a place in the file.
    assert_eq!(content(&artifacts, &key).await, b"compiled:one");
    assert_eq!(content(&rig.open("keys"), &key).await, b"compiled:one");
    assert_eq!(rig.runs(), 1);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&rig.dir.path().join("keys/mac.key")), 0o600);
    // A host opens it as another user; nobody else reaches it.
    assert_eq!((mode(&rig.file(&key)), mode(&rig.dir.path().join("cache"))), (0o644, 0o700));
}

#[tokio::test]
async fn what_is_not_ours_is_made_anew() {
    let rig = Rig::new(COMPILE);
    let artifacts = rig.open("keys");
    let (one, two) = (rig.blob(b"one"), rig.blob(b"two"));
    artifacts.ensure(&tenant(), &one).await.unwrap();
    artifacts.ensure(&tenant(), &two).await.unwrap();
    let mut runs = rig.runs();
    assert_eq!(runs, 2);

    // changed in place, also after it was checked by this very process
    let mut bytes = std::fs::read(rig.file(&one)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    assert_eq!(content(&artifacts, &one).await, b"compiled:one");
    std::fs::write(rig.file(&one), &bytes).unwrap();
    assert_eq!(content(&artifacts, &one).await, b"compiled:one");
    runs += 1;
    assert_eq!(rig.runs(), runs, "a flipped bit");

    // the right content of another artifact, with its MAC
    std::fs::copy(rig.file(&two), rig.file(&one)).unwrap();
    std::fs::copy(with(&rig.file(&two), ".mac"), with(&rig.file(&one), ".mac")).unwrap();
    assert_eq!(content(&artifacts, &one).await, b"compiled:one");
    runs += 1;
    assert_eq!(rig.runs(), runs, "another artifact's code");

    // the same code under another engine
    let other = CodeKey { fingerprint: "def456".into(), ..one.clone() };
    std::fs::create_dir_all(rig.file(&other).parent().unwrap()).unwrap();
    std::fs::copy(rig.file(&one), rig.file(&other)).unwrap();
    std::fs::copy(with(&rig.file(&one), ".mac"), with(&rig.file(&other), ".mac")).unwrap();
    assert_eq!(content(&artifacts, &other).await, b"compiled:one");
    runs += 1;
    assert_eq!(rig.runs(), runs, "another engine's code");

    // no MAC, half a MAC, cut short
    for damage in 0..3 {
        match damage {
            0 => std::fs::remove_file(with(&rig.file(&one), ".mac")).unwrap(),
            1 => std::fs::write(with(&rig.file(&one), ".mac"), [0; 16]).unwrap(),
            _ => std::fs::write(rig.file(&one), b"compi").unwrap(),
        }
        assert_eq!(content(&rig.open("keys"), &one).await, b"compiled:one");
        runs += 1;
        assert_eq!(rig.runs(), runs, "damage {damage}");
    }

    // made by somebody with another key
    assert_eq!(content(&rig.open("other-keys"), &one).await, b"compiled:one");
    assert_eq!(rig.runs(), runs + 1, "another key");
}

#[tokio::test]
async fn failures_have_their_reasons_and_are_not_repeated_at_once() {
    let rig = Rig::new("echo 'unexpected end at 0x9' >&2; exit 1");
    let artifacts = rig.open("keys");
    let key = rig.blob(b"bad");
    let refused = opened(&artifacts, &key).await.unwrap_err();
    assert!(refused.to_string().contains("unexpected end at 0x9"), "{refused}");
    for _ in 0..5 {
        assert!(artifacts.open_code(&tenant(), &key).await.is_err());
    }
    assert_eq!(rig.runs(), 1, "a host that insists gets the same answer");
    assert!(artifacts.ensure(&tenant(), &key).await.is_err());
    assert_eq!(rig.runs(), 2, "a deploy tries again");

    let absent = CodeKey { digest: Digest::of(b"absent"), ..key.clone() };
    assert!(matches!(artifacts.ensure(&tenant(), &absent).await, Err(ArtifactError::Blob { .. })));
    std::fs::write(rig.blobs.path(&key.digest), b"changed").unwrap();
    assert!(
        matches!(artifacts.ensure(&tenant(), &key).await, Err(ArtifactError::Blob { .. })),
        "the blob is hashed again"
    );
    for bad in ["", "../../etc", "a/b", "xyz"] {
        let key = CodeKey { fingerprint: bad.into(), ..key.clone() };
        assert!(matches!(artifacts.ensure(&tenant(), &key).await, Err(ArtifactError::Fingerprint(_))), "{bad}");
    }
}

/// A host is not kept waiting for it: what is there is handed out meanwhile, however much is made.
#[tokio::test]
async fn code_that_is_being_made_is_asked_for_again() {
    let rig = Rig::new("while [ ! -e \"${0%exe}go\" ]; do sleep 0.01; done; printf compiled:; exec /bin/cat");
    let artifacts = rig.open("keys");
    std::fs::write(rig.dir.path().join("go"), b"").unwrap();
    let there = rig.blob(b"there");
    artifacts.ensure(&tenant(), &there).await.unwrap();
    std::fs::remove_file(rig.dir.path().join("go")).unwrap();

    let keys: Vec<_> = (0..10).map(|n| rig.blob(format!("one {n}").as_bytes())).collect();
    for key in keys.iter().chain(&keys) {
        assert!(artifacts.open_code(&tenant(), key).await.unwrap().is_none());
    }
    assert_eq!(content(&artifacts, &there).await, b"compiled:there");
    std::fs::write(rig.dir.path().join("go"), b"").unwrap();
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(content(&artifacts, key).await, format!("compiled:one {n}").as_bytes());
    }
    assert_eq!(rig.runs(), 11, "each is made once");
}

#[tokio::test]
async fn a_crash_of_the_compiler_harms_nothing() {
    let rig = Rig::new("kill -SEGV $$");
    let artifacts = rig.open("keys");
    let key = rig.blob(b"bomb");
    let crash = artifacts.ensure(&tenant(), &key).await.unwrap_err();
    assert!(matches!(crash, ArtifactError::Compile { cause: CompileError::Crashed { signal: 11, .. }, .. }), "{crash}");
    assert!(!artifacts.is_cached(&key));
}

#[tokio::test]
async fn the_row_of_one_tenant_is_nobody_else_s_and_holds_no_artifact() {
    // Each run says that it has begun, and ends when it may.
    let rig = Rig::new("cat > /dev/null; while [ ! -e \"${0%exe}go\" ]; do sleep 0.01; done; printf done");
    let artifacts = rig.open("keys");
    let keys: Vec<_> = (0..6).map(|n| rig.blob(format!("one {n}").as_bytes())).collect();
    let ask = |tenant: &str, key: &CodeKey| {
        let (artifacts, tenant, key) = (artifacts.clone(), tenant.parse::<TenantName>().unwrap(), key.clone());
        tokio::spawn(async move { artifacts.ensure(&tenant, &key).await })
    };
    let begun = async |count: usize| {
        let reached = async {
            while rig.runs() < count {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), reached).await.expect("compilations begin");
    };
    let mut all: Vec<_> = keys[..2].iter().map(|key| ask("greedy", key)).collect();
    begun(2).await;
    all.extend(keys[2..].iter().map(|key| ask("greedy", key)));
    // Another tenant has its turn at once, though four wait.
    all.push(ask("other", &rig.blob(b"another")));
    begun(3).await;
    assert_eq!(rig.runs(), 3, "and nobody else begins");
    // One that waits has not been read: it is read when it is its turn.
    std::fs::write(rig.blobs.path(&keys[5].digest), b"changed").unwrap();
    std::fs::write(rig.dir.path().join("go"), b"").unwrap();
    for (n, one) in all.into_iter().enumerate() {
        assert_eq!(one.await.unwrap().is_ok(), n != 5, "{n}");
    }
    assert_eq!(rig.runs(), 6);
}

#[test]
fn processes_that_begin_together_have_one_key() {
    let rig = Rig::new(COMPILE);
    let barrier = std::sync::Barrier::new(8);
    for round in 0..20 {
        let keys = format!("keys-{round}");
        let path = rig.dir.path().join(&keys);
        let made: Vec<_> = std::thread::scope(|scope| {
            let open = || {
                barrier.wait();
                rig.open(&keys)
            };
            let all: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        // What one of them made is code to each of the others.
        let key = rig.blob(format!("round {round}").as_bytes());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let before = rig.runs();
        for artifacts in &made {
            assert_eq!(runtime.block_on(content(artifacts, &key)), format!("compiled:round {round}").as_bytes());
        }
        assert_eq!(rig.runs(), before + 1, "round {round}");
        let left: Vec<_> = std::fs::read_dir(&path).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["mac.key"]);
    }
}

#[test]
fn a_damaged_key_is_refused_and_not_replaced() {
    let rig = Rig::new(COMPILE);
    let path = rig.dir.path().join("keys/mac.key");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, b"short").unwrap();
    let opened = Artifacts::open(
        rig.dir.path().join("cache"),
        rig.dir.path().join("keys"),
        "exe".into(),
        Confinement::bare(),
        rig.blobs.clone(),
    );
    assert!(matches!(opened, Err(node::NodeError::KeyDamaged(_))));
    assert_eq!(std::fs::read(path).unwrap(), b"short");
}

#[tokio::test]
async fn code_that_nobody_names_and_code_of_other_engines_goes() {
    let rig = Rig::new("exec /bin/cat");
    let artifacts = rig.open("keys");
    let (kept, unnamed) = (rig.blob(b"kept"), rig.blob(b"unnamed"));
    let earlier = CodeKey { fingerprint: "0ld".replace('l', "1"), ..kept.clone() };
    for key in [&kept, &unnamed, &earlier] {
        artifacts.ensure(&tenant(), key).await.unwrap();
    }
    let foreign = rig.dir.path().join("cache").join("not-an-engine");
    std::fs::create_dir(&foreign).unwrap();
    // No host has said which engine there is: what there is stays, but for what nobody names.
    artifacts.tidy(&[unnamed.digest], &std::collections::BTreeSet::new());
    assert!(!rig.file(&unnamed).exists() && !with(&rig.file(&unnamed), ".mac").exists());
    assert!(rig.file(&kept).exists() && rig.file(&earlier).exists());
    artifacts.tidy(&[], &[kept.fingerprint.clone()].into());
    assert!(rig.file(&kept).exists() && !rig.file(&earlier).exists() && foreign.exists());
    assert_eq!(rig.runs(), 3);
    // Wanted again, it is made again.
    assert_eq!(content(&artifacts, &unnamed).await, b"unnamed");
    assert_eq!(rig.runs(), 4);
}
