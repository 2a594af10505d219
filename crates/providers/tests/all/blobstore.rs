//! `wasi:blobstore` as a component sees it, through the real runtime, and a suite that sees a store that lies.

use std::sync::Arc;

use bytes::Bytes;
use providers::blobstore::{Answer, Backend, BackendError, BlobLinks, MAX_WHOLE, PAGE, Page, conformance};
use providers::blobstore::{ContainerInfo, ObjectInfo, Reading, Upload};
use providers::meter::LinkMeter;
use providers::share::Sharing;
use runtime::Bindings;

use crate::blob_memory::Memory;
use crate::support::Guest;

/// A guest with the containers `default` (and any other name), and `mine`, which is `theirs` in the store.
fn linked(memory: &Memory, meter: &Arc<LinkMeter>) -> Guest {
    let backend: Arc<dyn Backend> = Arc::new(memory.clone());
    let default = model::Label::default_label();
    let links = BlobLinks::new().with(&default, backend.clone(), None, meter.clone(), Sharing::among(2)).with(
        &"mine".parse().unwrap(),
        backend,
        Some("theirs"),
        Arc::default(),
        Sharing::among(2),
    );
    Guest::new("blob-probe", Bindings::new().with(Arc::new(links)), None)
}

fn ok(text: &str) -> (u16, String) {
    (200, text.to_owned())
}

#[tokio::test]
async fn memory_conforms() {
    conformance::run(&Memory::default()).await.unwrap();
}

#[tokio::test]
async fn the_suite_sees_a_store_that_shows_half_an_object() {
    struct Liar(Memory);
    impl Backend for Liar {
        fn create<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
            self.0.create(container)
        }
        fn container<'a>(&'a self, container: &'a str) -> Answer<'a, Option<ContainerInfo>> {
            self.0.container(container)
        }
        fn delete<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
            self.0.delete(container)
        }
        fn clear<'a>(&'a self, container: &'a str) -> Answer<'a, ()> {
            self.0.clear(container)
        }
        fn object<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Option<ObjectInfo>> {
            self.0.object(container, object)
        }
        fn read<'a>(&'a self, container: &'a str, object: &'a str, start: u64, end: u64) -> Answer<'a, Reading> {
            self.0.read(container, object, start, end)
        }
        fn write<'a>(&'a self, container: &'a str, object: &'a str) -> Answer<'a, Box<dyn Upload>> {
            let shown = (object.to_owned(), Bytes::new());
            self.0.containers.lock().unwrap().get_mut(container).map(|objects| objects.insert(shown.0, shown.1));
            self.0.write(container, object)
        }
        fn list<'a>(&'a self, container: &'a str, cursor: Option<&'a str>) -> Answer<'a, Page> {
            self.0.list(container, cursor)
        }
        fn remove<'a>(&'a self, container: &'a str, objects: Vec<String>) -> Answer<'a, ()> {
            self.0.remove(container, objects)
        }
        fn copy<'a>(&'a self, from: (&'a str, &'a str), to: (&'a str, &'a str)) -> Answer<'a, ()> {
            self.0.copy(from, to)
        }
    }
    let found = conformance::run(&Liar(Memory::default())).await.unwrap_err();
    assert!(found.to_string().contains("what is not finished is not there"), "{found}");
}

#[tokio::test]
async fn every_operation_does_what_it_says() {
    let memory = Memory::default();
    let guest = linked(&memory, &Arc::default());
    for (path, expected) in [
        ("/exists/photos", "false"),
        ("/create/photos", "photos"),
        ("/exists/photos", "true"),
        ("/get-container/photos", "photos"),
        ("/info/photos", "photos 1700000000"),
        ("/has/photos/a", "false"),
        ("/fill/photos/a/5000000", "ok"),
        ("/sum/photos/a", "5000000"),
        ("/stat/photos/a", "photos a 5000000"),
        ("/has/photos/a", "true"),
        ("/early/photos/b%2Fc/1000000", "ok"),
        ("/sum/photos/b%2Fc", "1000000"),
        ("/fill/photos/empty/0", "ok"),
        ("/sync/photos/empty", "0 "),
        ("/list/photos", "a\nb/c\nempty"),
        ("/skip/photos/2", "2 false 1"),
        ("/skip/photos/3", "3 true 0"),
        ("/skip/photos/9", "3 true 0"),
        ("/create/mine", "mine"),
        ("/copy/photos/a/mine/copied", "ok"),
        ("/move/photos/b%2Fc/mine/moved", "ok"),
        ("/stat/mine/copied", "mine copied 5000000"),
        ("/sum/mine/moved", "1000000"),
        ("/move/mine/moved/mine/moved", "ok"),
        ("/move/mine/moved/theirs/moved", "ok"),
        ("/sum/mine/moved", "1000000"),
        ("/list/photos", "a\nempty"),
        ("/delete-many/photos/a,x", "ok"),
        ("/delete/photos/empty", "ok"),
        ("/delete/photos/empty", "ok"),
        ("/list/photos", ""),
        ("/clear/mine", "ok"),
        ("/list/mine", ""),
        ("/delete-container/photos", "ok"),
        ("/exists/photos", "false"),
        ("/twice/mine/x", "true false Err(\"this value is being written to an object already\")"),
    ] {
        assert_eq!(guest.get(path).await, ok(expected), "{path}");
    }
    let kept: Vec<_> = memory.containers.lock().unwrap().keys().cloned().collect();
    assert_eq!(kept, ["theirs"], "the link says what the container is called in the store");
}

#[tokio::test]
async fn ranges_come_as_they_were_asked_for() {
    let memory = Memory::default();
    memory.containers.lock().unwrap().insert("c".into(), [("o".to_owned(), Bytes::from("0123456789"))].into());
    let guest = linked(&memory, &Arc::default());
    for (range, expected) in
        [("0/0", "0"), ("2/4", "234"), ("9/9", "9"), ("5/10", "56789"), ("0/18446744073709551615", "0123456789")]
    {
        assert_eq!(guest.get(&format!("/range/c/o/{range}")).await, ok(expected), "{range}");
    }
    for range in ["10/11", "3/2"] {
        let (status, text) = guest.get(&format!("/range/c/o/{range}")).await;
        assert!(status == 502 && text.contains("not within an object of 10 bytes"), "{range}: {text}");
    }
}

#[tokio::test]
async fn errors_are_sentences_and_not_traps() {
    let memory = Memory::default();
    let guest = linked(&memory, &Arc::default());
    guest.get("/create/c").await;
    let huge = Bytes::from(vec![0; MAX_WHOLE as usize + 1]);
    memory.containers.lock().unwrap().get_mut("c").unwrap().insert("huge".into(), huge);
    for (path, part) in [
        ("/create/c", "is there already"),
        ("/get-container/other", "there is no container `other`"),
        ("/get/c/none", "there is no object `none`"),
        ("/stat/c/none", "there is no object `none`"),
        ("/copy/c/none/c/x", "there is no object `none`"),
        ("/move/c/none/c/none", "there is no object `none`"),
        ("/sync/c/huge", "use incoming-value-consume-async"),
        ("/nowhere/c", "call write-data first"),
        ("/early/c/o/3000000", "call write-data first"),
        ("/get/c/", "at least one character"),
        ("/get/c/a%0Ab", "no control characters"),
        (&format!("/get/c/{}", "x".repeat(513)), "at most 512 bytes"),
        (&format!("/exists/{}", "x".repeat(257)), "at most 256 bytes"),
        (&format!("/delete-many/c/{}", vec!["x"; PAGE + 1].join(",")), "at most 1000 objects"),
    ] {
        let (status, text) = guest.get(path).await;
        assert!(status == 502 && text.contains(part), "{path}: {status} {text}");
    }
}

#[tokio::test]
async fn what_is_not_finished_is_not_stored_and_the_log_says_so() {
    let memory = Memory::default();
    let guest = linked(&memory, &Arc::default());
    guest.get("/create/c").await;
    assert_eq!(guest.get("/half/c/o/3000000").await, ok("ok"));
    assert_eq!(guest.get("/has/c/o").await, ok("false"));
    let said = guest.log.0.lock().unwrap().clone();
    assert!(said.iter().any(|line| line.2.contains("dropped before finish")), "{said:?}");
}

#[tokio::test]
async fn a_store_that_fails_in_the_middle_is_told_to_the_writer_and_counted() {
    let memory = Memory::default();
    let meter = Arc::new(LinkMeter::default());
    let guest = linked(&memory, &meter);
    guest.get("/create/c").await;
    *memory.refuse.lock().unwrap() = Some(BackendError::Unavailable("the disk is full".into()));
    let (status, text) = guest.get("/fill/c/o/9000000").await;
    assert!(status == 502 && text.contains("the disk is full"), "{status} {text}");
    let (status, text) = guest.get("/fill/c/o/0").await;
    assert!(status == 502 && text.contains("the disk is full"), "{status} {text}");
    *memory.refuse.lock().unwrap() = None;
    assert_eq!(guest.get("/fill/c/o/9000000").await, ok("ok"));
    let counts = meter.counts();
    assert!(counts.calls >= 6 && counts.errors.iter().sum::<u64>() >= 1, "{counts:?}");
}

#[tokio::test]
async fn a_component_without_links_has_no_containers() {
    let guest = Guest::new("blob-probe", Bindings::new(), None);
    let (status, text) = guest.get("/exists/c").await;
    assert!(status == 502 && text.contains("nothing is linked"), "{text}");
    let backend: Arc<dyn Backend> = Arc::new(Memory::default());
    let links = BlobLinks::new().with(&"only".parse().unwrap(), backend, None, Arc::default(), Sharing::Alone);
    let guest = Guest::new("blob-probe", Bindings::new().with(Arc::new(links)), None);
    assert_eq!(guest.get("/create/only").await, ok("only"));
    let (status, text) = guest.get("/create/other").await;
    assert!(status == 502 && text.contains("linked: only"), "{text}");
}
