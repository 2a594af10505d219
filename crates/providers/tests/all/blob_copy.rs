//! Copying objects between stores: everything arrives and is read back, what is there is not written again, and what is
//! written meanwhile is noted.

use std::sync::Arc;

use providers::blobstore::copy::{self, Copied, CopyError, End, Key, Rest, Scope};
use providers::blobstore::journal::{ALL, Journaled};
use providers::blobstore::{Backend, BackendError, CHUNK};
use providers::keyvalue::journal::Journal;

use crate::blob_memory::Memory;
use crate::s3;

async fn put(store: &dyn Backend, container: &str, object: &str, bytes: &[u8]) {
    let mut upload = store.write(container, object).await.unwrap();
    for chunk in bytes.chunks(CHUNK) {
        upload.write(chunk.to_vec().into()).await.unwrap();
    }
    upload.finish().await.unwrap();
}

fn end(store: &dyn Backend) -> End<'_> {
    End { backend: store }
}

async fn whole(from: &dyn Backend, to: &dyn Backend, scope: &Scope) -> Result<Copied, CopyError> {
    let (mut sum, mut rest) = (Copied::default(), Rest::default());
    loop {
        let step = copy::page(end(from), end(to), scope, sum.next.as_deref(), &mut rest).await?;
        sum = Copied {
            read: sum.read + step.read,
            written: sum.written + step.written,
            bytes: sum.bytes + step.bytes,
            next: step.next,
        };
        if sum.next.is_none() {
            return Ok(sum);
        }
    }
}

fn everything() -> Scope {
    Scope::AllBut(vec!["of-another-label".to_owned()])
}

async fn filled() -> Memory {
    let store = Memory::default();
    for container in ["photos", "empty", "of-another-label", "z"] {
        store.create(container).await.unwrap();
    }
    for n in 0..30 {
        put(&store, "photos", &format!("{n}/a b.jpg"), &vec![n; usize::from(n) * 1000]).await;
    }
    put(&store, "photos", "large", &vec![7; 6 << 20]).await;
    put(&store, "of-another-label", "x", b"not mine").await;
    put(&store, "z", "last", b"z").await;
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives_in_s3_and_comes_back_and_a_second_time_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = s3::Server::start(dir.path(), "right").await;
    let there = s3::s3(server.address, &s3::vault("right"));
    assert_eq!(there.containers().await.unwrap(), Vec::<String>::new());
    let here = filled().await;
    // An earlier try, or somebody else: of the right size, and something else.
    there.create("z").await.unwrap();
    put(&there, "z", "last", b"y").await;
    let first = whole(&here, &there, &everything()).await.unwrap();
    // Two containers were not there, and 32 objects differ.
    assert_eq!((first.read, first.written), (35, 34));
    let mut names = there.containers().await.unwrap();
    names.sort();
    assert_eq!(names, ["empty", "photos", "z"]);
    let second = whole(&here, &there, &everything()).await.unwrap();
    assert_eq!((second.read, second.written, second.bytes), (35, 0, 0));

    let back = Memory::default();
    let returned = whole(&there, &back, &Scope::AllBut(Vec::new())).await.unwrap();
    assert_eq!((returned.written, returned.bytes), (35, first.bytes));
    let (here, back) = (here.containers.lock().unwrap(), back.containers.lock().unwrap());
    assert!(back.iter().all(|(name, objects)| here[name] == *objects) && back.len() == 3);
}

#[tokio::test]
async fn one_container_is_copied_alone_and_failures_are_told_apart() {
    let (from, to) = (filled().await, Memory::default());
    let one = Scope::One("z".to_owned());
    assert_eq!(whole(&from, &to, &one).await.unwrap().written, 2);
    assert_eq!(to.containers().await.unwrap(), ["z"]);
    assert_eq!(whole(&from, &to, &Scope::One("nowhere".to_owned())).await.unwrap(), Copied::default());

    *to.refuse.lock().unwrap() = Some(BackendError::Unavailable("full".to_owned()));
    let failed = whole(&from, &to, &everything()).await.unwrap_err();
    assert!(matches!(&failed, CopyError::Target(BackendError::Unavailable(why)) if why == "full"), "{failed}");
}

#[tokio::test]
async fn an_object_that_is_damaged_in_the_target_is_written_again() {
    let (from, to) = (filled().await, filled().await);
    to.damaged.lock().unwrap().insert("large".to_owned());
    let copied = whole(&from, &to, &everything()).await.unwrap();
    assert_eq!((copied.written, copied.bytes), (1, 6 << 20));
    assert_eq!(whole(&from, &to, &everything()).await.unwrap().written, 0);
    from.damaged.lock().unwrap().insert("large".to_owned());
    let failed = whole(&from, &to, &everything()).await.unwrap_err();
    assert!(matches!(failed, CopyError::Source(BackendError::Damaged { .. })), "{failed}");
}

#[tokio::test]
async fn an_object_that_another_host_replaces_while_it_is_read_is_left_to_a_later_round() {
    let (from, to) = (filled().await, Memory::default());
    let becomes = |object: &str, bytes: Vec<u8>| from.replaced.lock().unwrap().insert(object.to_owned(), bytes.into());
    let large = |store: &Memory| store.containers.lock().unwrap()["photos"].get("large").cloned();
    // The target has it already: it is read to be compared.
    to.create("photos").await.unwrap();
    put(&to, "photos", "large", &vec![6; 6 << 20]).await;
    becomes("large", vec![8; 5 << 20]);
    let copied = whole(&from, &to, &everything()).await.unwrap();
    assert_eq!((copied.read, large(&to).unwrap().len()), (35, 6 << 20), "all others are copied");
    // Read to be written; what it was before stays until then.
    becomes("large", vec![9; 4 << 20]);
    let noted = || vec![Key::Object("photos".into(), "large".into())];
    assert_eq!(copy::keys(end(&from), end(&to), noted()).await.unwrap().written, 0);
    assert_eq!(large(&to).unwrap().len(), 6 << 20);
    // By another one that is described like it.
    becomes("large", vec![10; 4 << 20]);
    assert_eq!(copy::keys(end(&from), end(&to), noted()).await.unwrap().written, 1);
    assert!(large(&to) == large(&from) && large(&to).unwrap()[0] == 10);
}

#[tokio::test]
async fn what_only_the_target_has_is_found_and_goes_away_when_asked() {
    let (from, to) = (filled().await, filled().await);
    to.create("extra").await.unwrap();
    put(&to, "photos", "extra", b"1").await;
    put(&to, "of-another-label", "extra", b"1").await;
    let (mut found, mut at) = (Vec::new(), None);
    loop {
        let (keys, next) = copy::extra(end(&from), end(&to), &everything(), at.as_deref()).await.unwrap();
        found.extend(keys);
        at = next;
        if at.is_none() {
            break;
        }
    }
    assert_eq!(found, [Key::Container("extra".into()), Key::Object("photos".into(), "extra".into())]);
    assert_eq!(copy::keys(end(&from), end(&to), found).await.unwrap().written, 2);
    assert_eq!(to.containers().await.unwrap(), from.containers().await.unwrap());
    assert_eq!(to.object("photos", "extra").await.unwrap(), None);
    assert!(to.object("of-another-label", "extra").await.unwrap().is_some(), "another link's");
}

#[tokio::test]
async fn what_is_written_meanwhile_is_noted_and_followed() {
    let (plain, journal) = (filled().await, Arc::new(Journal::default()));
    let from = Journaled::new(Arc::new(plain.clone()), journal.clone());
    let to = Memory::default();
    put(&from, "z", "before", b"1").await;
    journal.begin(ALL);
    whole(&from, &to, &everything()).await.unwrap();
    put(&from, "z", "new", b"1").await;
    from.remove("photos", vec!["large".into()]).await.unwrap();
    from.copy(("z", "new"), ("z", "copied")).await.unwrap();
    from.delete("empty").await.unwrap();
    from.create("made").await.unwrap();
    // Emptied and begun again: nothing of what was in it before may stay.
    from.clear("photos").await.unwrap();
    put(&from, "photos", "only", b"1").await;
    let noted: Vec<Key> = journal.round(1).unwrap().iter().map(|key| Key::parse(key)).collect();
    copy::keys(end(&from), end(&to), noted).await.unwrap();
    let mine = |store: &Memory| {
        let mut all = store.containers.lock().unwrap().clone();
        all.remove("of-another-label");
        all
    };
    assert_eq!(mine(&to), mine(&plain));
    assert_eq!(mine(&to)["photos"].len(), 1);
    journal.end();
    put(&from, "z", "after", b"1").await;
    assert_eq!(journal.round(2).unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn two_names_of_one_store_are_found_out_and_nothing_is_left_there() {
    let (one, other) = (filled().await, filled().await);
    let other_name = one.clone();
    let before = one.containers.lock().unwrap().clone();
    for scope in [everything(), Scope::One("photos".to_owned()), Scope::One("not-yet".to_owned())] {
        assert_eq!(copy::same(end(&one), end(&other_name), &scope).await, Ok(true), "{scope:?}");
        assert_eq!(copy::same(end(&one), end(&other), &scope).await, Ok(false), "{scope:?}");
    }
    for store in [one, other] {
        assert!(*store.containers.lock().unwrap() == before);
    }
}
