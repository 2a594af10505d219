//! A component as it is uploaded: what is read of it is what the validator of the compiler reads, and what was signed
//! does not verify once a byte of it changed.

use std::sync::OnceLock;

use model::InterfaceId;
use model::claims::{Claims, KeyKind, KeyPair, TrustPolicy, Verdict, sign, verify};
use model::component::{ComponentInfo, InspectError, inspect};
use wasmparser::{ComponentTypeRef, Parser, Payload, Validator, WasmFeatures};

const NOW: u64 = 1_800_000_000;

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let wat = [
        r#"(component)"#,
        r#"(component (import "wasi:http/types@0.2.12" (instance)) (core module (func (export "run"))))"#,
        r#"(component (core module $m (memory 1) (func (export "f") (result i32) i32.const 1))
            (core instance $i (instantiate $m)) (func $f (result u32) (canon lift (core func $i "f")))
            (instance $x (export "f" (func $f))) (export "a:b/c@1.0.0" (instance $x)))"#,
        r#"(component (component (component (core module))) (import "wasi:clocks/monotonic-clock@0.3.0" (instance)))"#,
        r#"(component (import "a:b/t" (instance $i (export "r" (type (sub resource)))
            (export "f" (func (param "x" (list string)) (result (option (tuple u8 u64))))))) (core func (canon task.return)))"#,
        r#"(component (@custom "producers" "x") (type (func (param "a" string))) (import "run" (func (type 0))))"#,
    ];
    wat.iter().map(|text| wat::parse_str(text).expect("a component")).collect()
}

pub(super) fn run(bytes: &[u8]) {
    let info = inspect(bytes);
    if let Ok(imports) = validated(bytes) {
        match &info {
            Ok(info) => assert_eq!(info.imports, imports, "the validator sees other imports"),
            // Our own bounds, and imports that no link answers; anything else should have been refused by the validator.
            Err(InspectError::TooDeep | InspectError::TooMany | InspectError::ImportNotInterface { .. }) => {}
            Err(other) => panic!("the validator accepts it, we do not: {other}"),
        }
    }
    let Ok(info) = info else {
        assert!(verify(bytes, &anyone(), NOW).is_err(), "what cannot be read is not admitted");
        return;
    };
    if let Ok(signed) = sign(bytes, claims(), account()) {
        signature(bytes, &signed, &info);
    }
}

fn signature(bytes: &[u8], signed: &[u8], info: &ComponentInfo) {
    let anchors = [account().public_key()];
    let policy = TrustPolicy { anchors: &anchors, revoked: &[], allow_unsigned: false };
    let again = inspect(signed).expect("a signed component is one");
    assert_eq!((&again.imports, &again.exports, again.world), (&info.imports, &info.exports, info.world));
    // A token in a nested component is refused when it is read, and signing takes it out.
    assert!(matches!(verify(signed, &policy, NOW), Ok(Verdict::Signed(_))), "what was signed is not believed");
    let salt = bytes.iter().fold(1_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let mut other = signed.to_vec();
    let at = (salt >> 3) as usize % other.len();
    other[at] ^= 1 << (salt & 7);
    assert!(verify(&other, &policy, NOW).is_err(), "byte {at} of it changed, and it is believed");
}

/// The interfaces that the validator of the compiler sees imported at the top, where it accepts the bytes.
fn validated(bytes: &[u8]) -> Result<Vec<InterfaceId>, ()> {
    let features = WasmFeatures::default() | WasmFeatures::COMPONENT_MODEL | WasmFeatures::CM_ASYNC;
    Validator::new_with_features(features).validate_all(bytes).map_err(drop)?;
    let (mut depth, mut imports) = (0, Vec::new());
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(drop)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) if depth > 0 => depth -= 1,
            // A core module is valid, and no component.
            Payload::Version { encoding: wasmparser::Encoding::Module, .. } if depth == 0 => return Err(()),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    let import = import.map_err(drop)?;
                    if matches!(import.ty, ComponentTypeRef::Instance(_)) {
                        imports.push(import.name.name.parse().map_err(drop)?);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(imports)
}

fn anyone() -> TrustPolicy<'static> {
    TrustPolicy { anchors: &[], revoked: &[], allow_unsigned: true }
}

fn account() -> &'static KeyPair {
    static KEY: OnceLock<KeyPair> = OnceLock::new();
    KEY.get_or_init(|| KeyPair::from_entropy(KeyKind::Account, [7; 32]))
}

fn claims() -> Claims {
    Claims::new("fuzz", &KeyPair::from_entropy(KeyKind::Module, [8; 32]).public(), "id", NOW)
}
