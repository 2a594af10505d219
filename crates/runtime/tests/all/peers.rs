//! Calls from component to component: values, resources, limits of each side, faults, and what is refused at link.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Instant;

use model::World;
use model::app::Reuse;
use model::unit::{ByteSize, Millis};
use runtime::trace::CallTrace;
use runtime::{
    Bindings, Callee, CalleeTrace, Fault, FaultKind, LinkError, Linked, Loading, Peer, Peers, Sinks, Workload,
};

use crate::support::{Config, Rig, call, file, imports};

const QUOTE: &str = "acme:pricing/quote@1.0.0";

/// A callee whose code is in memory.
pub(crate) struct Beside {
    work: Arc<Workload>,
    places: AtomicU32,
    entered: AtomicU32,
    failed: AtomicU32,
}

impl Callee for Beside {
    fn enter(&self) -> Result<Option<Arc<Workload>>, Fault> {
        if self.entered.fetch_add(1, SeqCst) >= self.places.load(SeqCst) {
            self.leave();
            return Err(Fault::Busy);
        }
        // As a host does whose code is not in memory.
        Ok(self.failed.load(SeqCst).is_multiple_of(2).then(|| self.work.clone()))
    }
    fn load(&self) -> Loading<'_> {
        Box::pin(async { Ok(self.work.clone()) })
    }
    fn leave(&self) {
        self.entered.fetch_sub(1, SeqCst);
    }
    fn begins(&self, _: Option<&CallTrace>, _: &str) -> Option<CalleeTrace> {
        None
    }
    fn ended(&self, _: Instant, fault: Option<&Fault>, _: Option<CalleeTrace>) {
        self.failed.fetch_add(u32::from(fault.is_some()), SeqCst);
    }
}

pub(crate) struct Pair {
    pub(crate) shop: Arc<Workload>,
    pub(crate) callee: Arc<Beside>,
}

fn linked(rig: &Rig, name: &str, world: World) -> Linked {
    let forwarded: Vec<_> = imports(name).into_iter().filter(|i| i.contract.namespace == "acme").collect();
    rig.runtime.link_with_peers(&rig.load(name, world), &imports(name), &forwarded).unwrap()
}

/// `shop` with the limits of `rig`, and `pricing` with those of `other`; the same runtime.
pub(crate) fn pair(rig: &Rig, other: &Rig, worlds: (World, World)) -> Pair {
    let pricing = linked(rig, "pricing", worlds.1);
    let shop = linked(rig, "shop", worlds.0);
    shop.agrees(&pricing, &[(QUOTE, QUOTE)]).unwrap();
    let sinks = |rig: &Rig| Sinks { log: rig.log.clone(), outbound: None, sockets: None };
    let work = Workload::new(pricing, other.limits, other.reuse, Arc::new(other.bindings.clone()), sinks(other));
    let callee = Arc::new(Beside { work, places: 4.into(), entered: 0.into(), failed: 0.into() });
    let peer = Peer { import: QUOTE.into(), export: QUOTE.into(), name: "pricing".into(), callee: callee.clone() };
    let bindings = Bindings::new().with(Arc::new(Peers(vec![peer])));
    Pair { shop: Workload::new(shop, rig.limits, rig.reuse, Arc::new(bindings), sinks(rig)), callee }
}

async fn ask(pair: &Pair, target: &str) -> String {
    let (status, text) = call(&pair.shop, target).await.unwrap();
    assert_eq!(status, 200, "{text}");
    assert_eq!(pair.callee.entered.load(SeqCst), 0, "every place is given back");
    text
}

const WORLDS: [(World, World); 4] =
    [(World::P2, World::P2), (World::P3, World::P2), (World::P2, World::P3), (World::P3, World::P3)];

#[tokio::test]
async fn values_and_resources_pass_both_ways() {
    for worlds in WORLDS {
        let pair = pair(&Rig::new(), &Rig::new(), worlds);
        assert_eq!(ask(&pair, "/next?n=41").await, "42");
        assert_eq!(ask(&pair, "/next?times=10").await, "10");
        assert_eq!(ask(&pair, "/price?lines=pear:2,plum:3").await, "Ok(21)");
        assert_eq!(ask(&pair, "/price?lines=pear,kiwi").await, r#"Err(Refusal::Unknown("kiwi"))"#);
        assert_eq!(ask(&pair, "/price?lines=fig").await, "Err(Refusal::SoldOut)");
        assert_eq!(ask(&pair, "/echo?bytes=5000").await, "true");
        assert_eq!(ask(&pair, "/basket?lines=pear:2,plum").await, "11 22 ada 22", "{worlds:?}");
        assert_eq!(ask(&pair, "/basket?lines=kiwi").await, r#"Refusal::Unknown("kiwi")"#);
        let meter = pair.callee.work.meter().snapshot();
        // A fresh instance for each call that passes no handles; one for all that pass those of one caller.
        assert_eq!((meter.failed, meter.instances), (0, 1 + 10 + 3 + 1 + 2), "{worlds:?}");
    }
}

#[tokio::test]
async fn an_instance_is_used_again_only_where_the_callee_says_so() {
    let (rig, mut other) = (Rig::new(), Rig::new());
    other.reuse = Some(Reuse { requests: 1000, idle: Millis(60_000) });
    let pair = pair(&rig, &other, (World::P2, World::P2));
    assert_eq!(ask(&pair, "/next?times=5").await, "5");
    assert_eq!(ask(&pair, "/basket?lines=pear").await, "3 6 ada 6");
    assert_eq!(ask(&pair, "/state").await, "(0, 6)", "every basket has ended, also the one that was dropped");
    assert_eq!(pair.callee.work.meter().snapshot().instances, 1);
}

#[tokio::test]
async fn a_kept_resource_keeps_its_instance() {
    let (mut rig, other) = (Rig::new(), Rig::new());
    rig.reuse = Some(Reuse { requests: 1000, idle: Millis(60_000) });
    let pair = pair(&rig, &other, (World::P2, World::P2));
    let text = |result: Result<(u16, String), Fault>| result.unwrap().1;
    assert_eq!(text(call(&pair.shop, "/keep").await), "3");
    assert_eq!(text(call(&pair.shop, "/kept").await), "6");
    assert_eq!(pair.callee.entered.load(SeqCst), 1, "its place is taken while it is held");
    // A failure in another instance of the callee does not touch it, a trap of the caller's own ends both.
    call(&pair.shop, "/act?what=trap").await.unwrap_err();
    assert_eq!(pair.callee.entered.load(SeqCst), 0);
    assert_eq!(text(call(&pair.shop, "/kept").await), "none");
}

#[tokio::test]
async fn each_side_has_its_own_limits_bindings_and_log() {
    let (mut rig, mut other) = (Rig::new(), Rig::new());
    rig.limits.cpu = Millis(10_000);
    other.limits.cpu = Millis(60);
    other.limits.memory = ByteSize::mib(16);
    other.bindings = Bindings::new().with(Arc::new(Config([("key".to_owned(), "value".to_owned())].into())));
    let pair = pair(&rig, &other, (World::P2, World::P2));
    assert_eq!(ask(&pair, "/act?what=get%20key").await, "Ok(Some(\"value\"))");
    assert_eq!(ask(&pair, "/act?what=log%20hello").await, "logged");
    assert_eq!(other.log.lines.lock().unwrap()[0].2, "hello\n");
    assert!(rig.log.lines.lock().unwrap().is_empty());
    for (what, root) in
        [("spin", Fault::CpuTime { limit: Millis(60) }), ("grow", Fault::Memory { limit: ByteSize::mib(16) })]
    {
        let fault = call(&pair.shop, &format!("/act?what={what}")).await.unwrap_err();
        assert_eq!((fault.root(), fault.kind()), (&root, FaultKind::Limit));
        assert!(fault.to_string().starts_with("its call of acme:pricing/quote@1.0.0 failed in component `pricing`: "));
    }
    assert_eq!((pair.callee.work.meter().failed(), pair.shop.meter().failed()), (2, 2));
    assert_eq!(pair.callee.failed.load(SeqCst), 2);
    // The CPU time of the callee is the callee's.
    assert!(pair.callee.work.meter().cpu_us() >= 60_000, "{}", pair.callee.work.meter().cpu_us());
    assert!(pair.shop.meter().cpu_us() < 30_000, "{}", pair.shop.meter().cpu_us());
}

#[tokio::test]
async fn a_trap_is_typed_and_a_full_callee_is_busy() {
    let pair = pair(&Rig::new(), &Rig::new(), (World::P2, World::P2));
    let fault = call(&pair.shop, "/act?what=trap").await.unwrap_err();
    assert!(
        matches!(&fault, Fault::Callee { name, interface, fault } if name == "pricing" && interface == QUOTE
        && matches!(**fault, Fault::Trap { .. })),
        "{fault}"
    );
    assert_eq!(ask(&pair, "/next").await, "1", "the next call is served");
    pair.callee.places.store(0, SeqCst);
    let fault = call(&pair.shop, "/next").await.unwrap_err();
    assert_eq!((fault.root(), fault.kind()), (&Fault::Busy, FaultKind::Busy));
}

#[tokio::test]
async fn the_callers_wall_time_ends_the_callee() {
    let (mut rig, mut other) = (Rig::new(), Rig::new());
    rig.limits.wall = Millis(150);
    let pair_ = pair(&rig, &other, (World::P2, World::P2));
    let fault = call(&pair_.shop, "/act?what=wait%2060000").await.unwrap_err();
    assert_eq!(fault.root(), &Fault::WallTime { limit: Millis(150) });
    rig.limits.wall = Millis(60_000);
    other.limits.wall = Millis(100);
    let pair = pair(&rig, &other, (World::P2, World::P2));
    let fault = call(&pair.shop, "/act?what=wait%2060000").await.unwrap_err();
    assert_eq!(fault.root(), &Fault::WallTime { limit: Millis(100) });
    assert!(matches!(fault, Fault::Callee { .. }));
}

/// A component that imports one function of its own interface and calls itself by way of the host.
#[tokio::test]
async fn calls_stand_only_so_deep_on_one_another() {
    const TEXT: &str = r#"(component
        (import "acme:deep/down@1.0.0" (instance $down (export "go" (func (param "n" u32) (result u32)))))
        (core func $go (canon lower (func $down "go")))
        (core module $m
          (import "" "go" (func $go (param i32) (result i32)))
          (func (export "go") (param i32) (result i32)
            (if (result i32) (i32.eqz (local.get 0)) (then (i32.const 7))
              (else (call $go (i32.sub (local.get 0) (i32.const 1)))))))
        (core instance $i (instantiate $m (with "" (instance (export "go" (func $go))))))
        (func $up (param "n" u32) (result u32) (canon lift (core func $i "go")))
        (instance $out (export "go" (func $up)))
        (export "acme:deep/down@1.0.0" (instance $out)))"#;
    struct Itself(std::sync::OnceLock<std::sync::Weak<Workload>>);
    impl Callee for Itself {
        fn enter(&self) -> Result<Option<Arc<Workload>>, Fault> {
            Ok(self.0.get().unwrap().upgrade())
        }
        fn load(&self) -> Loading<'_> {
            Box::pin(async { Err(Fault::Cancelled) })
        }
        fn leave(&self) {}
        fn begins(&self, _: Option<&CallTrace>, _: &str) -> Option<CalleeTrace> {
            None
        }
        fn ended(&self, _: Instant, _: Option<&Fault>, _: Option<CalleeTrace>) {}
    }
    let rig = Rig::new();
    let down = "acme:deep/down@1.0.0";
    let code = runtime::compile(&wat::parse_str(TEXT).unwrap(), World::P2).unwrap();
    let code = rig.runtime.load(World::P2, file(&code)).unwrap();
    let ids = [down.parse().unwrap()];
    let linked = rig.runtime.link_with_peers(&code, &ids, &ids).unwrap();
    let itself = Arc::new(Itself(Default::default()));
    let peer = Peer { import: down.into(), export: down.into(), name: "deep".into(), callee: itself.clone() };
    let bindings = Arc::new(Bindings::new().with(Arc::new(Peers(vec![peer]))));
    let work = Workload::new(
        linked,
        rig.limits,
        None,
        bindings,
        Sinks { log: rig.log.clone(), outbound: None, sockets: None },
    );
    itself.0.set(Arc::downgrade(&work)).unwrap();
    let go = async |n: u32| {
        let component = work.instance_pre().component();
        let at = component.get_export_index(None, down).unwrap();
        let at = component.get_export_index(Some(&at), "go").unwrap();
        let called = work.invoke(move |store, instance| {
            Box::pin(async move {
                let go = instance.get_typed_func::<(u32,), (u32,)>(&mut *store, at)?;
                Ok(go.call_async(store, (n,)).await?.0)
            })
        });
        called.await
    };
    assert_eq!(go(runtime::MAX_CALL_DEPTH - 1).await.unwrap(), 7);
    assert_eq!(go(runtime::MAX_CALL_DEPTH).await.unwrap_err().root(), &Fault::Depth { limit: runtime::MAX_CALL_DEPTH });
}

fn refused(text: &str, names: &[&str]) -> LinkError {
    let rig = Rig::new();
    let code = runtime::compile(&wat::parse_str(text).unwrap(), World::P3).unwrap();
    let code = rig.runtime.load(World::P3, file(&code)).unwrap();
    let all: Vec<_> = code_imports(text).iter().map(|name| name.parse().unwrap()).collect();
    let forwarded: Vec<_> = names.iter().map(|name| name.parse().unwrap()).collect();
    rig.runtime.link_with_peers(&code, &all, &forwarded).err().unwrap()
}

fn code_imports(text: &str) -> Vec<&str> {
    text.split("(import \"").skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

#[test]
fn what_cannot_pass_is_refused_at_link() {
    for (text, words) in [
        (
            r#"(component (import "acme:a/b" (instance (export "f" (func (param "s" (stream u8)))))))"#,
            "`f` passes a stream",
        ),
        (
            r#"(component (import "acme:a/b" (instance (export "f" (func (result (option (future u8))))))))"#,
            "`f` passes a future",
        ),
        (
            r#"(component
                (import "wasi:io/poll@0.2.0" (instance $poll (export "pollable" (type (sub resource)))))
                (alias export $poll "pollable" (type $p))
                (import "acme:a/b" (instance (alias outer 1 $p (type $q)) (export "pollable" (type $r (eq $q)))
                    (export "f" (func (param "p" (borrow $r)))))))"#,
            "`f` passes a resource of wasi:io/poll@0.2.0",
        ),
    ] {
        let refused = refused(text, &["acme:a/b"]);
        assert!(matches!(refused, LinkError::NotForwarded { .. }), "{refused}");
        assert!(refused.to_string().contains(words), "{refused}");
    }
}

#[test]
fn an_export_of_another_form_is_named() {
    let rig = Rig::new();
    let shop = linked(&rig, "shop", World::P2);
    let other = |text: &str| {
        let code = runtime::compile(&wat::parse_str(text).unwrap(), World::P2).unwrap();
        let code = rig.runtime.load(World::P2, file(&code)).unwrap();
        rig.runtime.link(&code, &[]).unwrap()
    };
    let none = other("(component)");
    let refused = shop.agrees(&none, &[(QUOTE, QUOTE)]).unwrap_err().to_string();
    assert!(refused.contains("acme:pricing/quote@1.0.0 is not exported"), "{refused}");
    let less = other(r#"(component (instance $i) (export "acme:pricing/quote@1.0.0" (instance $i)))"#);
    let refused = shop.agrees(&less, &[(QUOTE, QUOTE)]).unwrap_err().to_string();
    assert!(refused.contains("there is no "), "{refused}");
    let text = |ty: &str| {
        format!(
            r#"(component (import "acme:a/b" (instance (export "f" (func (param "x" {ty})))))
              )"#
        )
    };
    let caller = |ty: &str| {
        let code = runtime::compile(&wat::parse_str(text(ty)).unwrap(), World::P2).unwrap();
        let code = rig.runtime.load(World::P2, file(&code)).unwrap();
        let ids = ["acme:a/b".parse().unwrap()];
        rig.runtime.link_with_peers(&code, &ids, &ids).unwrap()
    };
    let callee = other(
        r#"(component (core module $m (func (export "f") (param i32)))
            (core instance $i (instantiate $m)) (func $f (param "x" u32) (canon lift (core func $i "f")))
            (instance $o (export "f" (func $f))) (export "acme:a/b" (instance $o)))"#,
    );
    caller("u32").agrees(&callee, &[("acme:a/b", "acme:a/b")]).unwrap();
    let refused = caller("s32").agrees(&callee, &[("acme:a/b", "acme:a/b")]).unwrap_err().to_string();
    assert!(refused.contains("`f` has other parameters"), "{refused}");
}
