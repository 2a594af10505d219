//! A full or read-only disk refuses writes with a reason and loses nothing; when there is room again, writes work
//! again without a restart. Once with a limit on file sizes, which needs no rights, and once on a small file system.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use model::Digest;
use store::blobs::{BlobError, Blobs};
use store::data::{Answer, DataEngine, Fault, Op};
use store::folder::{Folder, FolderError, Scope};
use store::redb::RedbStore;
use store::{Expect, Store, StoreError};

/// Runs [`child`] in a shell that prepared its disk by `setup`.
fn run(setup: &str, how: &[&str], mode: &str) {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(r#"set -e; {setup}; exec "$EXE" --exact disk_full::child --ignored --nocapture"#);
    let (program, args) = how.split_first().unwrap();
    let output = Command::new(program)
        .args(args)
        .args(["sh", "-c", &script])
        .env("EXE", std::env::current_exe().unwrap())
        .env("DIR", dir.path())
        .env("SIDEREAL_FULL", mode)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{}\n{text}", output.status);
}

#[test]
fn a_limit_on_file_sizes_is_survived() {
    run("trap '' XFSZ; ulimit -S -f 8192", &["env"], "limit");
}

#[test]
fn a_full_and_a_read_only_file_system_are_survived() {
    let own = |flag| Command::new("unshare").args([flag, "true"]).output().is_ok_and(|o| o.status.success());
    let Some(flag) = ["-m", "-rm"].into_iter().find(|flag| own(flag)) else {
        // The other test covers the store's behaviour; this one needs a mount of its own.
        eprintln!("skipped: this machine gives no private mounts");
        return;
    };
    run(r#"mount -t tmpfs -o size=24m none "$DIR""#, &["unshare", flag], "tmpfs");
}

struct Place {
    dir: PathBuf,
    ballast: Option<PathBuf>,
}

impl Place {
    /// Fills what is left of a small file system; a limit on sizes needs no filling.
    fn fill(&self) {
        let Some(ballast) = &self.ballast else { return };
        let mut file = std::fs::File::create(ballast).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        match &self.ballast {
            Some(ballast) => std::fs::remove_file(ballast).unwrap(),
            None => {
                let mut limit = rustix::process::getrlimit(rustix::process::Resource::Fsize);
                limit.current = limit.maximum;
                rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
            }
        }
    }
}

/// Run by the tests above in a process with a small disk.
#[tokio::test]
#[ignore = "started by the disk tests"]
async fn child() {
    let Ok(mode) = std::env::var("SIDEREAL_FULL") else { return };
    let dir = PathBuf::from(std::env::var("DIR").unwrap());
    let ballast = (mode == "tmpfs").then(|| dir.join("ballast"));
    let place = Place { dir: dir.clone(), ballast };
    the_store(&place).await;
    if mode == "tmpfs" {
        the_data(&place).await;
        the_blobs(&place);
        the_folder(&place);
        read_only(&dir);
    }
}

async fn the_store(place: &Place) {
    let path = place.dir.join("store.redb");
    let store = RedbStore::open(&path).unwrap();
    let lease = store.grant(Duration::from_secs(600)).await.unwrap();
    store.put("first", Bytes::from_static(b"kept"), Expect::Any, None).await.unwrap();
    place.fill();
    let value = Bytes::from(vec![3; 64 << 10]);
    let mut kept = Vec::new();
    let error = loop {
        let key = format!("k/{:04}", kept.len());
        match store.put(&key, value.clone(), Expect::Absent, None).await {
            Ok(_) => kept.push(key),
            Err(error) => break error,
        }
        assert!(kept.len() < 2000, "the disk never filled");
    };
    assert!(matches!(error, StoreError::CannotWrite { .. }), "{error}");
    assert!(error.to_string().contains("store.redb cannot write"), "{error}");

    // Refused, still there, still read; leases and their keys need no disk.
    for _ in 0..3 {
        let refused = store.put("k/more", value.clone(), Expect::Any, None).await;
        assert!(matches!(refused, Err(StoreError::CannotWrite { .. })), "{refused:?}");
    }
    let keys = async |store: &RedbStore| {
        let listed = store.list("k/").await.unwrap();
        listed.entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>()
    };
    assert_eq!(keys(&store).await, kept);
    assert_eq!(store.get("first").await.unwrap().unwrap().value, "kept");
    store.keep_alive(lease).await.unwrap();
    store.put("observed", Bytes::from_static(b"up"), Expect::Any, Some(lease)).await.unwrap();
    assert_eq!(store.get("observed").await.unwrap().unwrap().value, "up");

    place.make_room();
    let more = store.put("k/more", value.clone(), Expect::Absent, None).await.unwrap();
    kept.push("k/more".into());
    assert_eq!(keys(&store).await, kept);
    drop(store);
    let store = RedbStore::open(&path).unwrap();
    assert_eq!(keys(&store).await, kept);
    assert_eq!(store.get("k/more").await.unwrap().unwrap().revision, more);
    drop(store);
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(place.dir.join("store.redb.last")).unwrap();
}

async fn the_data(place: &Place) {
    let path = place.dir.join("data.redb");
    let engine = DataEngine::open(&path).unwrap();
    let (tenant, app, provider) = ("t".parse().unwrap(), "a".parse().unwrap(), "p".parse().unwrap());
    let add = async |engine: &DataEngine| {
        let op = Op::Increment { key: "n".into(), delta: 1 };
        engine.call(&tenant, &app, &provider, "b", op).await
    };
    let set = async |engine: &DataEngine, n: usize| {
        let op = Op::Set { key: format!("k{n}"), value: vec![4; 32 << 10] };
        engine.call(&tenant, &app, &provider, "b", op).await
    };
    assert_eq!(add(&engine).await, Ok(Answer::Number(1)));
    place.fill();
    let mut kept = 0;
    let fault = loop {
        match set(&engine, kept).await {
            Ok(_) => kept += 1,
            Err(fault) => break fault,
        }
        assert!(kept < 4000, "the disk never filled");
    };
    assert!(matches!(&fault, Fault::Unavailable(text) if text.contains("cannot write")), "{fault}");
    let read = engine.call(&tenant, &app, &provider, "b", Op::Get { key: "n".into() }).await;
    assert_eq!(read, Ok(Answer::Value(Some(b"1".to_vec()))));
    place.make_room();
    assert_eq!(add(&engine).await, Ok(Answer::Number(2)));
    set(&engine, kept).await.unwrap();
    drop(engine);
    let engine = DataEngine::open(&path).unwrap();
    assert_eq!(add(&engine).await, Ok(Answer::Number(3)));
    let gone = Op::Exists { key: format!("k{}", kept + 1) };
    assert_eq!(engine.call(&tenant, &app, &provider, "b", gone).await, Ok(Answer::Bool(false)));
}

fn the_blobs(place: &Place) {
    let blobs = Blobs::open(place.dir.join("blobs")).unwrap();
    let big = vec![9; 4 << 20];
    place.fill();
    let error = blobs.put(&Digest::of(&big), &big).unwrap_err();
    assert!(matches!(error, BlobError::CannotWrite { .. }) && error.to_string().contains("free space"), "{error}");
    assert_eq!(blobs.list().unwrap(), []);
    assert_eq!(std::fs::read_dir(place.dir.join("blobs/sha256")).unwrap().count(), 0);
    place.make_room();
    blobs.put(&Digest::of(&big), &big).unwrap();
    assert_eq!(blobs.get(&Digest::of(&big)).unwrap(), big);
}

fn read_only(dir: &Path) {
    let mounted = Command::new("mount").args(["-o", "remount,ro"]).arg(dir).status().unwrap();
    assert!(mounted.success());
    for file in ["data.redb", "new.redb"] {
        let error = DataEngine::open(dir.join(file)).unwrap_err();
        assert!(matches!(error, StoreError::CannotWrite { .. }), "{error}");
        assert!(error.to_string().contains("Read-only"), "{error}");
    }
    assert!(!dir.join("new.redb").exists());
}

fn the_folder(place: &Place) {
    let folder = Folder::open(place.dir.join("objects")).unwrap();
    let (tenant, app, provider) = ("t".parse().unwrap(), "a".parse().unwrap(), "folder".parse().unwrap());
    let scope = Scope { tenant: &tenant, app: &app, provider: &provider };
    folder.create(scope, "c").unwrap();
    let put = |name: &str, size: usize| {
        let mut partial = folder.write(scope, "c", name)?;
        partial.write(&vec![9; size])?;
        partial.finish()
    };
    put("first", 100).unwrap();
    place.fill();
    for _ in 0..3 {
        let refused = put("more", 1 << 20).unwrap_err();
        assert!(matches!(refused, FolderError::CannotWrite(_)), "{refused}");
        assert!(refused.to_string().contains("free space"), "{refused}");
    }
    assert_eq!(folder.list(scope, "c", None).unwrap().names, ["first"]);
    assert_eq!(folder.read(scope, "c", "first").unwrap().read(0, 1000).unwrap(), [9; 100]);
    place.make_room();
    put("more", 1 << 20).unwrap();
    folder.delete(scope, "c").unwrap().empty();
}
