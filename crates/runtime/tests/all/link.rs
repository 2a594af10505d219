//! Compiling, loading and linking: what fits, and what is refused with which words.

use model::World;
use runtime::{CompileError, LinkError, LoadError, Runtime, RuntimeSettings};

use crate::support::{Extras, Rig, compiled, file, guest, imports};

#[test]
fn fingerprints_differ_by_world_and_agree_with_the_compiler() {
    let rig = Rig::new();
    let p2 = rig.runtime.fingerprint(World::P2).unwrap();
    let p3 = rig.runtime.fingerprint(World::P3).unwrap();
    assert_ne!(p2, p3);
    assert_eq!((p2.len(), p2.clone()), (32, runtime::fingerprint(World::P2).unwrap()));
    assert_eq!(p3, runtime::fingerprint(World::P3).unwrap());
}

#[test]
fn code_loads_into_its_own_engine_only() {
    let rig = Rig::new();
    rig.load("hello", World::P2);
    rig.load("hello-p3", World::P3);
    let refused = rig.runtime.load(World::P3, compiled("hello", World::P2)).err().unwrap();
    assert!(matches!(refused, LoadError::Unfit(_)), "{refused}");
    for bytes in [&b""[..], b"\x7fELF", &guest("hello")] {
        let refused = rig.runtime.load(World::P2, file(bytes)).err().unwrap();
        assert!(matches!(refused, LoadError::Unfit(_)), "{refused}");
    }
}

#[test]
fn code_is_made_for_the_engine_that_is_named_or_not_at_all() {
    let (wasm, own) = (guest("hello"), runtime::fingerprint(World::P2).unwrap());
    assert!(runtime::compile_for(&wasm, World::P2, Some(&own)).is_ok());
    for other in [runtime::fingerprint(World::P3).unwrap(), "ab12".to_owned()] {
        let refused = runtime::compile_for(&wasm, World::P2, Some(&other)).unwrap_err();
        assert!(matches!(refused, CompileError::Other { .. }), "{refused}");
    }
}

#[test]
fn only_components_compile() {
    let module = wat::parse_str("(module (memory 1))").unwrap();
    for bytes in [&b"not wasm"[..], &module, &guest("hello")[..1000]] {
        assert!(matches!(runtime::compile(bytes, World::P2), Err(CompileError::Invalid(_))));
    }
    for proposal in [
        "(memory i64 1)",
        "(memory 1 1 shared)",
        "(tag)",
        "(type (struct))",
        "(func (param (ref null extern)))",
        "(func (result v128) v128.const i64x2 0 0 v128.const i64x2 0 0 v128.const i64x2 0 0 f32x4.relaxed_madd)",
    ] {
        let text = format!("(component (core module {proposal}))");
        let bytes = wat::parse_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let refused = runtime::compile(&bytes, World::P2);
        assert!(matches!(refused, Err(CompileError::Invalid(_))), "{text} was accepted");
    }
}

#[test]
fn async_components_do_not_compile_for_the_p2_engine() {
    assert!(matches!(runtime::compile(&guest("hello-p3"), World::P2), Err(CompileError::Invalid(_))));
}

#[test]
fn an_import_nobody_offers_is_named() {
    let rig = Rig::new();
    let code = rig.load("wants-unknown", World::P2);
    match rig.runtime.link(&code, &imports("wants-unknown")).err().unwrap() {
        LinkError::Missing { interface, detail } => {
            assert_eq!(interface, "acme:unknown/thing@1.0.0");
            assert!(detail.contains("touch"), "{detail}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn an_import_that_was_not_declared_is_refused() {
    let rig = Rig::new();
    let code = rig.load("wants-unknown", World::P2);
    let declared: Vec<_> = imports("wants-unknown").into_iter().filter(|i| i.contract.namespace != "acme").collect();
    match rig.runtime.link(&code, &declared).err().unwrap() {
        LinkError::Undeclared { interface } => assert_eq!(interface, "acme:unknown/thing@1.0.0"),
        other => panic!("{other}"),
    }
}

#[test]
fn an_import_of_another_shape_is_a_mismatch() {
    let rig = Rig::new();
    let bytes = wat::parse_str(
        r#"(component (import "wasi:config/store@0.2.0-rc.1" (instance (export "get" (func (param "n" u32))))))"#,
    )
    .unwrap();
    let code = rig.runtime.load(World::P2, file(&runtime::compile(&bytes, World::P2).unwrap())).unwrap();
    let refused = rig.runtime.link(&code, &["wasi:config/store@0.2.0-rc.1".parse().unwrap()]).err().unwrap();
    assert!(matches!(refused, LinkError::Mismatch(_)), "{refused}");
    assert!(refused.to_string().contains("wasi:config/store@0.2.0-rc.1"), "{refused}");
}

#[test]
fn two_capabilities_with_one_interface_are_refused() {
    let twice =
        Runtime::new(RuntimeSettings { instances: 1, ..Default::default() }, vec![Box::new(Extras), Box::new(Extras)]);
    assert!(twice.is_err());
}
