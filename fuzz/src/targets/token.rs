//! The token of a signed component: whatever stands in it, only the one that was signed is believed.

use std::sync::OnceLock;

use model::claims::{Claims, KeyKind, KeyPair, TrustPolicy, Verdict, peek, sign, verify};

use crate::components::{custom_section, sections};

/// Any moment within the token's life, seconds since 1970.
const NOW: u64 = 1_800_000_000;

struct Signed {
    component: Vec<u8>,
    anchors: Vec<String>,
    token: Vec<u8>,
}

fn signed() -> &'static Signed {
    static SIGNED: OnceLock<Signed> = OnceLock::new();
    SIGNED.get_or_init(|| {
        let component = wat::parse_str(r#"(component (import "wasi:keyvalue/store@0.2.0-draft" (instance)))"#);
        let component = component.expect("a component");
        let account = KeyPair::from_entropy(KeyKind::Account, [7; 32]);
        let module = KeyPair::from_entropy(KeyKind::Module, [8; 32]);
        let claims = Claims { expires: Some(NOW + 60), ..Claims::new("fuzz", &module.public(), "id", NOW - 60) };
        let whole = sign(&component, claims, &account).expect("it is signed");
        let token = sections(&whole).into_iter().filter_map(|s| s.custom("wasmcloud_jwt")).next();
        Signed { anchors: vec![account.public_key()], token: token.expect("it has a token").to_vec(), component }
    })
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![signed().token.clone()];
    seeds.extend(super::texts(&["", "a.b.c", "e30.e30.", "eyJ0eXAiOiJqd3QiLCJhbGciOiJub25lIn0.e30."]));
    seeds
}

pub(super) fn run(bytes: &[u8]) {
    let signed = signed();
    let mut component = signed.component.clone();
    custom_section(&mut component, "wasmcloud_jwt", bytes);
    if let Ok(Some(claims)) = peek(&component) {
        let json = serde_json::to_vec(&claims).expect("claims are written as JSON");
        assert_eq!(serde_json::from_slice::<Claims>(&json).ok(), Some(claims), "claims come back");
    }
    let policy = TrustPolicy { anchors: &signed.anchors, revoked: &[], allow_unsigned: true };
    let verdict = verify(&component, &policy, NOW);
    // Also where unsigned code may run: a bad token is worse than none.
    assert!(!matches!(verdict, Ok(Verdict::Unsigned)), "the token was overlooked");
    assert_eq!(verdict.is_ok(), bytes == signed.token, "{verdict:?}");
}
