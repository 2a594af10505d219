//! Secrets: sealed on disk, bound to their place, kept over a change of keys, refused without them.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::secret::MAX_SECRET;
use model::{SecretName, SecretValue, TenantName};
use store::redb::RedbStore;
use store::secrets::{Secrets, SecretsError};
use store::{Expect, Store, StoreError, keys};

const CANARY: &[u8] = b"canary-6f1d7c0e5ab94e12";

fn name(text: &str) -> SecretName {
    text.parse().unwrap()
}

fn tenant(text: &str) -> TenantName {
    text.parse().unwrap()
}

fn value(text: &str) -> SecretValue {
    SecretValue::new(text.as_bytes().to_vec())
}

/// Opens the store once those who had it open are gone: a task that watched it ends a little later than its owner.
async fn reopened(dir: &Path) -> Arc<dyn Store> {
    let start = std::time::Instant::now();
    loop {
        match RedbStore::open(dir.join("store.redb")) {
            Err(StoreError::InUse { .. }) if start.elapsed() < Duration::from_secs(60) => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            other => return other.unwrap(),
        }
    }
}

async fn open(dir: &Path) -> (Arc<dyn Store>, Arc<Secrets>) {
    let store = reopened(dir).await;
    let secrets = Secrets::open(store.clone(), &dir.join("keys")).await.unwrap();
    (store, secrets)
}

async fn revealed(secrets: &Secrets, of: &str, secret: &str) -> Option<String> {
    let found = secrets.reveal(&tenant(of), &name(secret)).await.unwrap()?;
    Some(found.value.expose_text().unwrap().to_owned())
}

/// Every file below a folder.
fn files(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_is_revealed_to_its_tenant_only() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, secrets) = open(dir.path()).await;
    let (one, two) = (tenant("one"), tenant("two"));
    let first = secrets.set(&one, &name("a"), &value("1"), Expect::Any).await.unwrap();
    assert_eq!((first.version, first.name.as_str()), (1, "a"));
    let second = secrets.set(&one, &name("a"), &value("2"), Expect::Revision(first.etag)).await.unwrap();
    assert_eq!(second.version, 2);
    assert!(second.etag > first.etag && second.updated_ms >= first.updated_ms);
    for expect in [Expect::Revision(first.etag), Expect::Absent] {
        let lost = secrets.set(&one, &name("a"), &value("3"), expect).await.unwrap_err();
        assert!(matches!(lost, SecretsError::Store(StoreError::Conflict { .. })), "{lost}");
        let kept = secrets.delete(&one, &name("a"), expect).await;
        assert!(matches!(kept, Err(SecretsError::Store(StoreError::Conflict { .. }))));
    }
    secrets.set(&two, &name("a"), &value("other"), Expect::Absent).await.unwrap();
    assert_eq!(revealed(&secrets, "one", "a").await.as_deref(), Some("2"));
    assert_eq!(revealed(&secrets, "two", "a").await.as_deref(), Some("other"));
    assert_eq!(revealed(&secrets, "three", "a").await, None);
    assert_eq!(secrets.list(&one).await.unwrap(), vec![second.clone()]);
    assert_eq!(secrets.get(&one, &name("a")).await.unwrap(), Some(second));
    assert_eq!(secrets.get(&one, &name("b")).await.unwrap(), None);
    secrets.delete(&one, &name("a"), Expect::Any).await.unwrap();
    assert_eq!(revealed(&secrets, "one", "a").await, None);
    assert_eq!(revealed(&secrets, "two", "a").await.as_deref(), Some("other"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, secrets) = open(dir.path()).await;
    for size in [0, MAX_SECRET + 1] {
        let refused = secrets.set(&tenant("t"), &name("a"), &SecretValue::new(vec![7; size]), Expect::Any).await;
        assert!(matches!(refused, Err(SecretsError::Size(found)) if found == size));
    }
    let all: Vec<u8> = (0..MAX_SECRET).map(|n| n as u8).collect();
    secrets.set(&tenant("t"), &name("a"), &SecretValue::new(all.clone()), Expect::Any).await.unwrap();
    let found = secrets.reveal(&tenant("t"), &name("a")).await.unwrap().unwrap();
    assert_eq!(found.value.expose(), all);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_at_once_make_one_version_each() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, secrets) = open(dir.path()).await;
    let writes = (0..8).map(|n| {
        let secrets = secrets.clone();
        tokio::spawn(async move { secrets.set(&tenant("t"), &name("a"), &value(&n.to_string()), Expect::Any).await })
    });
    let versions: BTreeSet<u64> =
        futures::future::join_all(writes).await.into_iter().map(|set| set.unwrap().unwrap().version).collect();
    assert_eq!(versions, (1..=8).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_files_nor_keys_give_a_value_away() {
    let dir = tempfile::tempdir().unwrap();
    let canary = SecretValue::new(CANARY.to_vec());
    {
        let (_store, secrets) = open(dir.path()).await;
        secrets.set(&tenant("t"), &name("a"), &canary, Expect::Any).await.unwrap();
        assert!(!format!("{secrets:?} {:?}", secrets.reveal(&tenant("t"), &name("a")).await).contains("canary"));
        secrets.set(&tenant("t"), &name("a"), &value("next"), Expect::Any).await.unwrap();
    }
    let files = files(dir.path());
    assert!(files.iter().any(|(_, bytes)| contains(bytes, b"secrets/t/a")), "the search finds what is there");
    let base64 = data_encoding::BASE64.encode(CANARY);
    for (path, bytes) in &files {
        assert!(!contains(bytes, CANARY) && !contains(bytes, base64.as_bytes()), "{}", path.display());
    }
    let mode = std::fs::metadata(dir.path().join("keys/secrets.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_master_key_changes_under_traffic_and_the_old_one_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, secrets) = open(dir.path()).await;
    let tenants: Vec<String> = (0..5).map(|n| format!("t{n}")).collect();
    for of in &tenants {
        secrets.set(&tenant(of), &name("a"), &value(of), Expect::Any).await.unwrap();
    }
    let key_file = dir.path().join("keys/secrets.key");
    let old = std::fs::read(&key_file).unwrap();
    let reader = tokio::spawn({
        let (secrets, tenants) = (secrets.clone(), tenants.clone());
        async move {
            for n in 0..200 {
                let of = &tenants[n % tenants.len()];
                assert_eq!(revealed(&secrets, of, "a").await.as_ref(), Some(of));
                let fresh = format!("n{n}");
                secrets.set(&tenant(&fresh), &name("a"), &value("x"), Expect::Any).await.unwrap();
            }
        }
    });
    let mut wrapped = 0;
    for _ in 0..5 {
        wrapped = secrets.rotate_key().await.unwrap().tenants;
    }
    reader.await.unwrap();
    assert!(wrapped >= 5, "{wrapped}");
    let new = std::fs::read_to_string(&key_file).unwrap();
    assert_eq!(new.lines().count(), 1, "the old keys are gone");
    for of in &tenants {
        assert_eq!(revealed(&secrets, of, "a").await.as_ref(), Some(of));
    }
    drop((secrets, store));

    // After a restart too, and not with the key from before.
    let (store, secrets) = open(dir.path()).await;
    assert_eq!(revealed(&secrets, "n199", "a").await.as_deref(), Some("x"));
    drop((secrets, store));
    std::fs::write(&key_file, old).unwrap();
    let store = reopened(dir.path()).await;
    let refused = Secrets::open(store, &dir.path().join("keys")).await.unwrap_err();
    assert!(matches!(&refused, SecretsError::Keys { cause, .. } if cause.contains("lacks the key")), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_change_of_keys_is_ended_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (store, secrets) = open(dir.path()).await;
    secrets.set(&tenant("t"), &name("a"), &value("kept"), Expect::Any).await.unwrap();
    let key_file = dir.path().join("keys/secrets.key");
    let old = std::fs::read_to_string(&key_file).unwrap();
    let wrapped = store.get(&keys::secret_key(&tenant("t"))).await.unwrap().unwrap();
    secrets.rotate_key().await.unwrap();
    // As after a power cut between the first write of the file and the first of the store.
    let new = std::fs::read_to_string(&key_file).unwrap();
    std::fs::write(&key_file, format!("{new}{old}")).unwrap();
    store.put(&keys::secret_key(&tenant("t")), wrapped.value, Expect::Any, None).await.unwrap();
    drop((secrets, store));
    let (_store, secrets) = open(dir.path()).await;
    assert_eq!(revealed(&secrets, "t", "a").await.as_deref(), Some("kept"));
    assert_eq!(std::fs::read_to_string(&key_file).unwrap(), new);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_belong_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, secrets) = open(dir.path()).await;
    for (of, secret) in [("one", "a"), ("one", "b"), ("two", "a")] {
        secrets.set(&tenant(of), &name(secret), &value(&format!("{of}-{secret}")), Expect::Any).await.unwrap();
    }
    // Another's value or key under one's own name opens nothing.
    let copy = |from: String, to: String| {
        let store = store.clone();
        async move {
            let entry = store.get(&from).await.unwrap().unwrap();
            let kept = store.get(&to).await.unwrap().unwrap();
            store.put(&to, entry.value, Expect::Any, None).await.unwrap();
            kept
        }
    };
    for (from, to) in [
        (keys::secret(&tenant("one"), &name("b")), keys::secret(&tenant("one"), &name("a"))),
        (keys::secret(&tenant("two"), &name("a")), keys::secret(&tenant("one"), &name("a"))),
        (keys::secret_key(&tenant("two")), keys::secret_key(&tenant("one"))),
    ] {
        let kept = copy(from, to.clone()).await;
        let refused = secrets.reveal(&tenant("one"), &name("a")).await;
        assert!(matches!(refused, Err(SecretsError::Sealed(_))), "{to}: {refused:?}");
        store.put(&to, kept.value, Expect::Any, None).await.unwrap();
        assert_eq!(revealed(&secrets, "one", "a").await.as_deref(), Some("one-a"));
    }
    drop((secrets, store));

    let key_file = dir.path().join("keys/secrets.key");
    let good = std::fs::read(&key_file).unwrap();
    let again = || async {
        let store = reopened(dir.path()).await;
        Secrets::open(store, &dir.path().join("keys")).await.map(|_| ())
    };
    for bad in [&b""[..], b"nonsense", &good[..good.len() / 2]] {
        std::fs::write(&key_file, bad).unwrap();
        let refused = again().await.unwrap_err();
        assert!(matches!(refused, SecretsError::Keys { .. }), "{refused}");
        assert_eq!(std::fs::read(&key_file).unwrap(), bad, "it is not touched");
    }
    std::fs::remove_file(&key_file).unwrap();
    let refused = again().await.unwrap_err();
    assert!(matches!(&refused, SecretsError::Keys { cause, .. } if cause.contains("gone")), "{refused}");
    assert!(!key_file.exists(), "no new key is made for old secrets");
    std::fs::write(&key_file, &good).unwrap();
    std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = again().await.unwrap_err();
    assert!(matches!(&refused, SecretsError::Keys { cause, .. } if cause.contains("chmod 600")), "{refused}");
    std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    again().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_told_to_those_who_wait_for_its_tenant() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, secrets) = open(dir.path()).await;
    secrets.set(&tenant("one"), &name("a"), &value("1"), Expect::Any).await.unwrap();
    let soon = Duration::from_secs(10);
    let one = tokio::time::timeout(soon, secrets.changed(&tenant("one"), 0)).await.unwrap();
    let waiting = tokio::spawn({
        let secrets = secrets.clone();
        async move { secrets.changed(&tenant("one"), one).await }
    });
    secrets.set(&tenant("two"), &name("a"), &value("1"), Expect::Any).await.unwrap();
    tokio::time::timeout(soon, secrets.changed(&tenant("two"), 0)).await.unwrap();
    assert!(!waiting.is_finished(), "another tenant's change is none of its business");
    secrets.delete(&tenant("one"), &name("a"), Expect::Any).await.unwrap();
    let next = tokio::time::timeout(soon, waiting).await.unwrap().unwrap();
    assert_eq!(next, one + 1, "its own changes are counted, and nobody else's");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_tells_two_values_apart_tells_nothing_of_other_tenants() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, secrets) = open(dir.path()).await;
    let (one, two) = (tenant("one"), tenant("two"));
    let mark = async || secrets.reveal(&one, &name("a")).await.unwrap().unwrap().mark;
    let mut marks = Vec::new();
    for times in 0..20 {
        secrets.set(&one, &name("a"), &value("same"), Expect::Any).await.unwrap();
        marks.push(mark().await);
        assert_eq!(mark().await, marks[times], "the same as long as it is not set");
        for _ in 0..times {
            secrets.set(&two, &name("a"), &value("x"), Expect::Any).await.unwrap();
        }
    }
    secrets.delete(&one, &name("a"), Expect::Any).await.unwrap();
    secrets.set(&one, &name("a"), &value("same"), Expect::Any).await.unwrap();
    marks.push(mark().await);
    let near = marks.windows(2).filter(|two| two[0].abs_diff(two[1]) < 1 << 32).count();
    assert_eq!(near, 0, "no mark is a little more than the one before, as numbers of writes are: {marks:?}");
    let different: std::collections::BTreeSet<_> = marks.iter().collect();
    assert_eq!(different.len(), marks.len());
}
