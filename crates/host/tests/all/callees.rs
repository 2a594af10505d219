//! Components of one revision that call one another, directly and as a store.

use std::collections::BTreeMap;
use std::time::Duration;

use api::Code;
use model::app::Reuse;
use model::rules::callee;
use model::unit::Millis;
use model::{ComponentName, Link, LockedApp, ProviderName, World};

use crate::rig::{Answer, Rig, code, until};

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// Adds component `as_name` from a guest, with what it exports.
fn add(rig: &Rig, app: &mut LockedApp, as_name: &str, guest: &str, exports: &[&str]) {
    let mut other = rig.app("other", guest);
    let mut component = other.components.remove(&name::<ComponentName>("main")).unwrap();
    component.exports = exports.iter().map(|export| name(export)).collect();
    app.components.insert(name(as_name), component);
}

fn link(app: &mut LockedApp, from: &str, contract: &str, provider: &str) {
    app.links.push(Link {
        component: name(from),
        contract: name(contract),
        label: name("default"),
        provider: name(provider),
        config: BTreeMap::new(),
    });
}

/// `main` is the shop, and calls `pricing`.
fn shop(rig: &Rig, exports: &[&str]) -> LockedApp {
    let mut app = rig.app("shop", "shop");
    add(rig, &mut app, "pricing", "pricing", exports);
    app.providers.insert(name::<ProviderName>("pricing"), callee::provider("pricing"));
    link(&mut app, "main", "acme:pricing", "pricing");
    app
}

const QUOTE: &[&str] = &["acme:pricing/quote@1.0.0"];

#[tokio::test]
async fn a_component_calls_another_of_its_app() {
    let rig = Rig::new().await;
    let mut app = shop(&rig, QUOTE);
    let pricing = app.components.get_mut(&name::<ComponentName>("pricing")).unwrap();
    pricing.config = [("key".to_owned(), "theirs".to_owned())].into();
    pricing.limits.cpu = Millis(50);
    rig.run(&app).await;
    let get = |target: &'static str| rig.get("shop/1/main", target);
    assert_eq!(get("/price?lines=pear:2").await, Answer::ok("Ok(6)"));
    assert_eq!(get("/basket?lines=pear:2").await, Answer::ok("6 12 ada 12"));
    assert_eq!(get("/act?what=get%20key").await, Answer::ok("Ok(Some(\"theirs\"))"));
    let spun = get("/act?what=spin").await;
    assert_eq!((spun.status, spun.fault.as_deref()), (500, Some("limit-reached")), "{}", spun.text);
    assert!(spun.text.contains("component `pricing`"), "{}", spun.text);
    let trapped = get("/act?what=trap").await;
    assert_eq!(trapped.fault.as_deref(), Some("component-trapped"));
    // It is counted where it happened, in the component and on the link.
    let status = rig.agent.status(1 << 20).await.unwrap();
    let pricing = &status.apps[0].components[&name::<ComponentName>("pricing")];
    assert_eq!((pricing.failed, pricing.in_flight, status.in_flight), (2, 0, 0));
    assert!(pricing.last_fault.as_deref().unwrap().contains("trapped"));
    let metrics = rig.agent.metrics(1 << 20).await.unwrap();
    let carried = metrics.links.iter().find(|link| link.link.contract.to_string() == "acme:pricing").unwrap();
    assert_eq!((carried.counts.errors.refused, carried.counts.errors.unavailable), (1, 1), "{carried:?}");
}

#[tokio::test]
async fn an_interface_that_does_not_agree_stops_the_start() {
    let rig = Rig::new().await;
    let mut app = shop(&rig, QUOTE);
    // It says that it exports what it does not: `hello` in the place of `pricing`.
    let hello = rig.app("other", "hello").components.remove(&name::<ComponentName>("main")).unwrap();
    let pricing = app.components.get_mut(&name::<ComponentName>("pricing")).unwrap();
    (pricing.digest, pricing.imports) = (hello.digest, hello.imports);
    let refused = rig.start(&app, 1, true).await.unwrap_err();
    assert_eq!(refused.code, Code::LinkMissing);
    assert!(refused.detail.contains("acme:pricing/quote@1.0.0 is not exported"), "{}", refused.detail);
    // Nobody says that anyone exports it.
    assert_eq!(code(rig.start(&shop(&rig, &[]), 1, true).await), Code::LinkMissing);
}

#[tokio::test]
async fn concurrency_and_drain_hold_for_a_callee_too() {
    let rig = Rig::new().await;
    let mut app = shop(&rig, QUOTE);
    app.components.get_mut(&name::<ComponentName>("pricing")).unwrap().limits.concurrency = 1;
    rig.run(&app).await;
    let slow = async { rig.get("shop/1/main", "/act?what=wait%205000").await };
    let other = async {
        until("the callee is busy", || async {
            let status = rig.agent.status(1 << 20).await.unwrap();
            status.apps[0].components[&name::<ComponentName>("pricing")].in_flight == 1
        })
        .await;
        let refused = rig.get("shop/1/main", "/next").await;
        let ended = rig.drain("shop", 1, Duration::from_secs(60)).await;
        (refused, ended)
    };
    let (slow, (refused, ended)) = tokio::join!(slow, other);
    assert_eq!(slow, Answer::ok("waited"));
    assert_eq!((refused.status, refused.fault.as_deref(), ended), (503, Some("busy"), 0));
}

/// `main` counts in a store that is component `prefixer`, whose own store is `embedded`.
fn prefixed(rig: &Rig, guest: &str) -> LockedApp {
    let mut app = rig.app("counted", guest);
    let bytes =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/prefix-keyvalue/prefixer.wasm")).unwrap();
    let digest = rig.node.offer_bytes(&bytes, World::P2);
    let mut prefixer = app.components[&name::<ComponentName>("main")].clone();
    let engine = runtime::wasmtime::Engine::default();
    let component = runtime::wasmtime::component::Component::new(&engine, &bytes).unwrap();
    prefixer.digest = digest;
    prefixer.imports = component.component_type().imports(&engine).map(|(import, _)| name(import)).collect();
    prefixer.exports = component.component_type().exports(&engine).map(|(export, _)| name(export)).collect();
    prefixer.config = [("prefix".to_owned(), "p/".to_owned())].into();
    app.components.insert(name("prefixer"), prefixer);
    app.providers.insert(name::<ProviderName>("prefixed"), callee::provider("prefixer"));
    link(&mut app, "main", "wasi:keyvalue", "prefixed");
    link(&mut app, "prefixer", "wasi:keyvalue", "embedded");
    app
}

#[tokio::test]
async fn a_component_is_a_store() {
    let rig = Rig::new().await;
    rig.run(&prefixed(&rig, "kv-counter")).await;
    for count in ["1", "2", "3"] {
        assert_eq!(rig.get("counted/1/main", "/").await, Answer::ok(count));
    }
    // The same keys without the component between: what it did is to be seen, and a link swapped is another way in.
    let mut direct = rig.app("counted", "kv-probe");
    link(&mut direct, "main", "wasi:keyvalue", "embedded");
    rig.start(&direct, 2, true).await.unwrap();
    assert_eq!(rig.get("counted/2/main", "/get/default/p%2Fhits").await, Answer::ok("3"));
    assert_eq!(rig.get("counted/2/main", "/get/default/hits").await, Answer::ok("-"));
    assert_eq!(rig.get("counted/1/main", "/").await, Answer::ok("4"));
}

#[tokio::test]
async fn a_store_that_is_a_component_answers_as_the_contract_says() {
    let rig = Rig::new().await;
    let mut app = prefixed(&rig, "kv-probe");
    app.components.get_mut(&name::<ComponentName>("prefixer")).unwrap().reuse =
        Some(Reuse { requests: 1000, idle: Millis(60_000) });
    rig.run(&app).await;
    let get = |target: &'static str| rig.get("counted/1/main", target);
    assert_eq!(get("/set/default/a/1").await, Answer::ok("ok"));
    assert_eq!(get("/get/default/a").await, Answer::ok("1"));
    assert_eq!(get("/get/default/b").await, Answer::ok("-"));
    assert_eq!(get("/exists/default/a").await, Answer::ok("true"));
    assert_eq!(get("/increment/default/a/41").await, Answer::ok("42"));
    assert_eq!(get("/list/default").await, Answer::ok("-\na"));
    assert_eq!(get("/delete/default/a").await, Answer::ok("ok"));
    assert_eq!(get("/exists/default/a").await, Answer::ok("false"));
    let words = get("/set/default/word/abc").await;
    assert_eq!(words, Answer::ok("ok"));
    let refused = get("/increment/default/word/1").await;
    assert_eq!(refused.status, 502);
    assert!(refused.text.contains("not an integer"), "{}", refused.text);
    assert_eq!(get("/set-many/default/a=1,b=2").await, Answer::ok("ok"));
    assert_eq!(get("/get-many/default/b,none,a,b").await, Answer::ok("b=2\n-\na=1\nb=2"));
    assert_eq!(get("/delete-many/default/a,word,none").await, Answer::ok("ok"));
    assert_eq!(get("/list/default").await, Answer::ok("-\nb"));
    assert_eq!(get("/get/other/a").await.status, 404, "no link has that label");
}

#[tokio::test]
async fn a_store_without_batches_and_atomics_says_so() {
    let rig = Rig::new().await;
    let mut app = rig.app("keys", "kv-probe");
    add(&rig, &mut app, "store", "kv-store-only", &["wasi:keyvalue/store@0.2.0-draft"]);
    app.providers.insert(name::<ProviderName>("store"), callee::provider("store"));
    link(&mut app, "main", "wasi:keyvalue", "store");
    rig.run(&app).await;
    let get = |target: &'static str| rig.get("keys/1/main", target);
    assert_eq!(get("/get/default/a").await, Answer::ok("a"));
    for (target, interface) in [("/get-many/default/a,b", "batch"), ("/increment/default/a/1", "atomics")] {
        let refused = get(target).await;
        assert_eq!(refused.status, 502);
        let said = format!("does not export wasi:keyvalue/{interface}");
        assert!(refused.text.contains(&said), "{}", refused.text);
    }
}
