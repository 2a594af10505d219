//! The contracts as a component sees them, through the real runtime.

use std::sync::Arc;

use providers::config::ConfigValues;
use providers::keyvalue::{Backend, KeyValueLinks, Memory, PAGE};
use providers::secrets::{LinkedSecret, SecretLinks};
use runtime::{Bindings, LogStreamKind};

use crate::support::{Guest, Vault, config};

fn linked(memory: Arc<Memory>) -> Guest {
    let links = KeyValueLinks::new().with(&model::Label::default_label(), memory.clone(), "main", Arc::default()).with(
        &"cart".parse().unwrap(),
        memory,
        "carts",
        Arc::default(),
    );
    Guest::new("kv-probe", Bindings::new().with(Arc::new(links)), None)
}

fn ok(text: &str) -> (u16, String) {
    (200, text.to_owned())
}

#[tokio::test]
async fn keyvalue_does_every_operation() {
    let memory = Arc::new(Memory::new(64 << 20));
    let guest = linked(memory.clone());
    assert_eq!(guest.get("/get/default/k").await, ok("-"));
    assert_eq!(guest.get("/set/default/k/v").await, ok("ok"));
    assert_eq!(guest.get("/get/default/k").await, ok("v"));
    assert_eq!(guest.get("/exists/default/k").await, ok("true"));
    assert_eq!(guest.get("/exists/cart/k").await, ok("false"), "another bucket");
    assert_eq!(guest.get("/increment/default/n/5").await, ok("5"));
    assert_eq!(guest.get("/increment/default/n/7").await, ok("12"));
    assert_eq!(guest.get("/set-many/cart/a=1,b=2").await, ok("ok"));
    assert_eq!(guest.get("/get-many/cart/b,x,a").await, ok("b=2\n-\na=1"));
    assert_eq!(guest.get("/list/cart").await, ok("-\na\nb"));
    assert_eq!(guest.get("/delete-many/cart/a,b").await, ok("ok"));
    assert_eq!(guest.get("/delete/default/k").await, ok("ok"));
    assert_eq!(guest.get("/list/default").await, ok("-\nn"));
    assert_eq!(memory.get("main", "n").await.unwrap(), Some(b"12".to_vec()));
}

#[tokio::test]
async fn keyvalue_errors_are_errors_and_not_traps() {
    let memory = Arc::new(Memory::new(64 << 20));
    let guest = linked(memory.clone());
    assert_eq!(guest.get("/get/other/k").await.0, 404);
    let said = guest.log.0.lock().unwrap().clone();
    assert!(said[0].2.contains("`other`") && said[0].2.contains("cart, default"), "{said:?}");

    guest.get("/set/default/word/x").await;
    for (target, part) in [
        ("/increment/default/word/1", "not an integer"),
        ("/increment/default/n/9223372036854775808", "not an integer"),
        (&format!("/get/default/{}", "k".repeat(1025)), "at most 1024 bytes"),
        ("/get/default/", "at least one character"),
        (&format!("/get-many/default/{}", vec!["k"; 1025].join(",")), "at most 1024 keys"),
    ] {
        let (status, text) = guest.get(target).await;
        assert!(status == 502 && text.contains(part), "{target}: {status} {text}");
    }
    memory.set("main", "negative", b"-5".to_vec()).await.unwrap();
    assert_eq!(guest.get("/increment/default/negative/1").await.0, 502, "the draft has no negative numbers");
}

#[tokio::test]
async fn a_component_without_links_has_no_store() {
    let guest = Guest::new("kv-probe", Bindings::new(), None);
    assert_eq!(guest.get("/get/default/k").await.0, 404);
    assert!(guest.log.0.lock().unwrap()[0].2.contains("nothing is linked"));
}

#[tokio::test]
async fn a_listing_goes_on_over_calls() {
    let memory = Arc::new(Memory::new(64 << 20));
    for n in 0..PAGE * 2 + 1 {
        memory.set("main", &format!("{n:05}"), vec![]).await.unwrap();
    }
    let guest = linked(memory);
    let mut cursor = String::new();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (status, text) = guest.get(&format!("/list/default/{cursor}")).await;
        assert_eq!(status, 200);
        let (next, keys) = text.split_once('\n').unwrap();
        cursor = next.to_owned();
        seen.extend(keys.lines().map(str::to_owned));
    }
    assert_eq!(cursor, "-");
    assert_eq!(seen, (0..PAGE * 2 + 1).map(|n| format!("{n:05}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn config_is_what_the_manifest_says() {
    let values = ConfigValues(config(&[("greeting", "hello"), ("level", "7")]));
    let guest = Guest::new("probe", Bindings::new().with(Arc::new(values)), None);
    assert_eq!(guest.get("/config?key=greeting").await, ok("hello"));
    assert_eq!(guest.get("/config?key=Greeting").await.0, 404);
    assert_eq!(guest.get("/config").await, ok("greeting=hello\nlevel=7\n"));
    let bare = Guest::new("probe", Bindings::new(), None);
    assert_eq!(bare.get("/config").await, ok(""));
    assert_eq!(bare.get("/config?key=greeting").await.0, 404);
}

#[tokio::test]
async fn logging_keeps_level_and_context() {
    let guest = Guest::new("probe", Bindings::new(), None);
    assert_eq!(guest.get("/log?text=x").await.0, 200);
    let lines = guest.log.0.lock().unwrap().clone();
    assert!(lines.contains(&(LogStreamKind::Warn, "probe".to_owned(), "log x".to_owned())), "{lines:?}");
}

#[tokio::test]
async fn a_component_sees_the_secrets_that_its_links_name_and_as_they_are_now() {
    let vault = Vault::new();
    vault.set("stripe-key", "sk-1");
    vault.set("other", "not-yours");
    let linked = |secret: &str| {
        let secret = model::SecretRef::new(secret.parse().unwrap());
        LinkedSecret::new("shop".parse().unwrap(), secret, vault.clone(), Arc::default())
    };
    let (known, gone) = (linked("stripe-key"), linked("gone"));
    let meter = known.meter.clone();
    let links = SecretLinks::default().with("STRIPE_KEY", known).with("gone", gone);
    let guest = Guest::new("secret-probe", Bindings::new().with(Arc::new(links)), None);
    assert_eq!(guest.get("/get/STRIPE_KEY").await, ok("string sk-1"));
    assert_eq!(guest.get("/hold/STRIPE_KEY").await, ok("held"));
    vault.set("stripe-key", "sk-2");
    assert_eq!(guest.get("/get/STRIPE_KEY").await, ok("string sk-2"), "the next call sees it");
    assert_eq!(meter.counts().calls, 3);
    for unnamed in ["stripe-key", "other", "", "gone"] {
        assert_eq!(guest.get(&format!("/get/{unnamed}")).await.0, 404, "{unnamed}");
    }
    let said = guest.log.0.lock().unwrap().clone();
    assert!(said.iter().any(|(stream, context, text)| {
        *stream == LogStreamKind::Warn && context == "wasmcloud:secrets" && text.contains("its links name `STRIPE_KEY`")
    }));
    assert!(!said.iter().any(|(_, _, text)| text.contains("sk-") || text.contains("not-yours")), "{said:?}");
    let none = Guest::new("secret-probe", Bindings::new(), None);
    assert_eq!(none.get("/get/STRIPE_KEY").await.0, 404);
}

#[tokio::test]
async fn a_secret_that_is_no_text_comes_as_bytes() {
    let vault = Vault::new();
    vault.set_bytes("blob", vec![0, 255, 7]);
    let secret = model::SecretRef::new("blob".parse().unwrap());
    let linked = LinkedSecret::new("shop".parse().unwrap(), secret, vault, Arc::default());
    let links = SecretLinks::default().with("blob", linked);
    let guest = Guest::new("secret-probe", Bindings::new().with(Arc::new(links)), None);
    assert_eq!(guest.get("/get/blob").await, ok("bytes [0, 255, 7]"));
}
