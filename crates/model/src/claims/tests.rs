//! Every way a component can be signed wrongly, and the few in which it is right.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_790_000_000;

/// Imports a store, and holds a nested module with a section of its own.
const WAT: &str = r#"(component
    (import "wasi:http/types@0.2.12" (instance))
    (import "wasi:keyvalue/store@0.2.0-draft" (instance))
    (core module (@custom "name-like" "anything") (func (export "run")))
)"#;

fn component() -> Vec<u8> {
    wat::parse_str(WAT).unwrap()
}

fn account(n: u8) -> KeyPair {
    KeyPair::from_entropy(KeyKind::Account, [n; 32])
}

fn module() -> KeyPair {
    KeyPair::from_entropy(KeyKind::Module, [99; 32])
}

fn claims() -> Claims {
    Claims::new("test", &module().public(), "token-1", NOW - 10)
}

struct Tenant {
    anchors: Vec<String>,
    revoked: Vec<String>,
    allow_unsigned: bool,
}

impl Tenant {
    fn trusting(key: &KeyPair) -> Self {
        Self { anchors: vec![key.public_key()], revoked: Vec::new(), allow_unsigned: false }
    }

    fn revoking(mut self, what: impl ToString) -> Self {
        self.revoked.push(what.to_string());
        self
    }

    fn policy(&self) -> TrustPolicy<'_> {
        TrustPolicy { anchors: &self.anchors, revoked: &self.revoked, allow_unsigned: self.allow_unsigned }
    }

    fn verify(&self, bytes: &[u8]) -> Result<Verdict, ClaimsError> {
        verify(bytes, &self.policy(), NOW)
    }

    fn code(&self, bytes: &[u8]) -> &'static str {
        self.verify(bytes).map_or_else(|error| error.code(), |_| "accepted")
    }
}

/// A component with `section` appended at the top level.
fn with_section(name: &str, data: &[u8]) -> Vec<u8> {
    append_section(component(), name, data)
}

fn append_section(mut bytes: Vec<u8>, name: &str, data: &[u8]) -> Vec<u8> {
    let content = [&[u8::try_from(name.len()).unwrap()], name.as_bytes(), data].concat();
    section::append(&mut bytes, 0, &content);
    bytes
}

fn hash() -> String {
    section::hash(&component())
}

/// The claims of a token that `account(1)` would be right to sign.
fn payload() -> Value {
    json!({
        "iss": account(1).public_key(),
        "sub": module().public_key(),
        "iat": NOW - 10,
        "jti": "token-1",
        "wascap": {"name": "test", "hash": hash(), "caps": ["wasi:keyvalue"], "prov": false},
        "wascap_revision": 3,
    })
}

/// A token written by hand, truly signed by `key`.
fn token(header: &str, payload: &str, key: &KeyPair) -> String {
    let message =
        format!("{}.{}", BASE64URL_NOPAD.encode(header.as_bytes()), BASE64URL_NOPAD.encode(payload.as_bytes()));
    format!("{message}.{}", BASE64URL_NOPAD.encode(&key.sign(message.as_bytes())))
}

fn signed_by_hand(header: &str, payload: &str) -> Vec<u8> {
    with_section("wasmcloud_jwt", token(header, payload, &account(1)).as_bytes())
}

const HEADER: &str = r#"{"typ":"jwt","alg":"EdDSA"}"#;

#[test]
fn what_is_signed_is_accepted_with_its_claims() {
    let key = account(1);
    let wanted = Claims { expires: Some(NOW + 100), not_before: Some(NOW - 100), ..claims() };
    let signed = sign(&component(), wanted, &key).unwrap();
    let Verdict::Signed(read) = Tenant::trusting(&key).verify(&signed).unwrap() else { panic!("unsigned") };
    assert_eq!(read.issuer, key.public_key());
    assert_eq!(read.subject, module().public_key());
    assert_eq!(read.component.hash, hash());
    assert_eq!(read.component.granted, Some(vec!["wasi:keyvalue".to_owned()]));
    assert_eq!(peek(&signed).unwrap(), Some(read.clone()));
    assert_eq!(inspect(&signed).unwrap().claims, Some(read));
}

#[test]
fn signing_again_replaces_the_token() {
    let (first, second) = (account(1), account(2));
    let once = sign(&component(), claims(), &first).unwrap();
    let twice = sign(&once, claims(), &second).unwrap();
    assert_eq!(twice, sign(&component(), claims(), &second).unwrap());
    assert_eq!(Tenant::trusting(&second).code(&twice), "accepted");
    assert_eq!(Tenant::trusting(&first).code(&twice), "issuer-untrusted");
}

#[test]
fn the_header_written_is_eddsa() {
    let signed = sign(&component(), claims(), &account(1)).unwrap();
    let token = section::token(&signed).unwrap().unwrap();
    let header = BASE64URL_NOPAD.decode(token.split('.').next().unwrap().as_bytes()).unwrap();
    assert_eq!(header, HEADER.as_bytes());
}

#[test]
fn a_token_shaped_and_signed_as_wascap_does_is_accepted() {
    let header = r#"{"typ":"jwt","alg":"Ed25519"}"#;
    let key = nkeys::KeyPair::new_from_raw(nkeys::KeyPairType::Account, [1; 32]).unwrap();
    let payload = json!({
        "exp": NOW + 86_400, "jti": "8Cfm8Y1nQDVvYwFMGEJkUQ", "iat": NOW, "iss": key.public_key(), "sub": module().public_key(),
        "nbf": NOW, "wascap": {
            "name": "Echo", "hash": hash(), "tags": [], "caps": ["wasi:keyvalue"], "rev": 4, "ver": "0.3.2",
            "call_alias": "echo", "prov": false
        }, "wascap_revision": 3
    });
    let message = format!(
        "{}.{}",
        BASE64URL_NOPAD.encode(header.as_bytes()),
        BASE64URL_NOPAD.encode(payload.to_string().as_bytes())
    );
    let token = format!("{message}.{}", BASE64URL_NOPAD.encode(&key.sign(message.as_bytes()).unwrap()));
    for section in ["wasmcloud_jwt", "jwt"] {
        assert_eq!(
            Tenant::trusting(&account(1)).code(&with_section(section, token.as_bytes())),
            "accepted",
            "{section}"
        );
    }
}

#[test]
fn unsigned_runs_only_where_the_tenant_says_so() {
    let mut tenant = Tenant::trusting(&account(1));
    assert_eq!(tenant.code(&component()), "artifact-unsigned");
    tenant.allow_unsigned = true;
    assert_eq!(tenant.verify(&component()), Ok(Verdict::Unsigned));
    assert_eq!(tenant.code(b"\0asm\x01\0\0\0"), "artifact-invalid");
    let stranger = sign(&component(), claims(), &account(2)).unwrap();
    assert_eq!(tenant.code(&stranger), "issuer-untrusted", "a bad token is worse than none");
    let tenant = tenant.revoking(Digest::of(&component()));
    assert_eq!(tenant.code(&component()), "artifact-revoked");
}

#[test]
fn every_changed_byte_is_noticed() {
    let key = account(1);
    let signed = sign(&component(), claims(), &key).unwrap();
    let tenant = Tenant::trusting(&key);
    for at in 0..signed.len() {
        let mut tampered = signed.clone();
        tampered[at] ^= 1;
        assert_ne!(tenant.code(&tampered), "accepted", "byte {at}");
    }
}

#[test]
fn a_token_moved_to_other_bytes_is_tampering() {
    let signed = sign(&component(), claims(), &account(1)).unwrap();
    let token = section::token(&signed).unwrap().unwrap();
    let other = wat::parse_str("(component (core module (func)))").unwrap();
    let moved = append_section(other, "wasmcloud_jwt", token.as_bytes());
    let verdict = Tenant::trusting(&account(1)).verify(&moved);
    assert_eq!(verdict, Err(ClaimsError::Tampered(Mismatch::Hash)));
}

#[test]
fn old_revisions_do_not_skip_the_hash() {
    for revision in [json!(0), json!(2), Value::Null] {
        let mut payload = payload();
        payload["wascap_revision"] = revision;
        payload["wascap"]["hash"] = json!("00".repeat(32));
        let verdict = Tenant::trusting(&account(1)).verify(&signed_by_hand(HEADER, &payload.to_string()));
        assert_eq!(verdict, Err(ClaimsError::Tampered(Mismatch::Hash)));
    }
}

#[test]
fn content_added_behind_the_token_is_tampering() {
    let signed = sign(&component(), claims(), &account(1)).unwrap();
    let added = append_section(signed, "other", b"data");
    assert_eq!(Tenant::trusting(&account(1)).code(&added), "artifact-tampered");
}

#[test]
fn a_life_has_two_ends_and_a_minute_of_grace() {
    let tenant = Tenant::trusting(&account(1));
    let code = |not_before: Option<u64>, expires: Option<u64>| {
        let signed = sign(&component(), Claims { not_before, expires, ..claims() }, &account(1)).unwrap();
        tenant.code(&signed)
    };
    assert_eq!(code(None, Some(NOW + 1)), "accepted");
    assert_eq!(code(None, Some(NOW - LEEWAY + 1)), "accepted");
    assert_eq!(code(None, Some(NOW - LEEWAY)), "artifact-expired");
    assert_eq!(code(None, Some(0)), "artifact-expired");
    assert_eq!(code(None, Some(u64::MAX)), "accepted");
    assert_eq!(code(Some(NOW + LEEWAY), None), "accepted");
    assert_eq!(code(Some(NOW + LEEWAY + 1), None), "artifact-not-yet-valid");
    assert_eq!(code(Some(u64::MAX), Some(u64::MAX)), "artifact-not-yet-valid");
}

#[test]
fn people_read_when_a_life_ends_and_begins() {
    let at = 1_700_000_000;
    for said in [ClaimsError::Expired { at }.to_string(), ClaimsError::NotYetValid { at }.to_string()] {
        assert!(said.ends_with("2023-11-14T22:13:20Z"), "{said}");
    }
}

#[test]
fn the_issuer_must_be_an_anchor_whatever_the_token_says() {
    let stranger = sign(&component(), claims(), &account(2)).unwrap();
    let tenant = Tenant::trusting(&account(1));
    assert_eq!(tenant.verify(&stranger), Err(ClaimsError::IssuerUntrusted { issuer: account(2).public_key() }));
    // The stranger names an issuer the tenant trusts: only its key could have signed.
    let forged = token(HEADER, &payload().to_string(), &account(2));
    let verdict = tenant.verify(&with_section("wasmcloud_jwt", forged.as_bytes()));
    assert_eq!(verdict, Err(ClaimsError::Tampered(Mismatch::Signature)));
    let nobody = Tenant { anchors: Vec::new(), ..tenant };
    assert_eq!(nobody.code(&stranger), "issuer-untrusted");
}

#[test]
fn issuer_and_subject_are_keys_of_their_kind() {
    let tenant = |issuer: &str| Tenant {
        anchors: vec![issuer.to_owned(), account(1).public_key()],
        revoked: Vec::new(),
        allow_unsigned: false,
    };
    for issuer in ["", "not a key", &module().public_key()] {
        let mut payload = payload();
        payload["iss"] = json!(issuer);
        let signed = signed_by_hand(HEADER, &payload.to_string());
        assert_eq!(tenant(issuer).verify(&signed), Err(TokenFault::Issuer.into()), "{issuer}");
    }
    // A text of 56 times A is a key whose signatures anybody can make: it signs nothing here.
    let weak = "A".repeat(56);
    let mut payload = payload();
    payload["iss"] = json!(weak);
    let signed = signed_by_hand(HEADER, &payload.to_string());
    assert_eq!(tenant(&weak).verify(&signed), Err(ClaimsError::Tampered(Mismatch::Signature)));
    payload["iss"] = json!(account(1).public_key());
    payload["sub"] = json!(account(3).public_key());
    let signed = signed_by_hand(HEADER, &payload.to_string());
    assert_eq!(tenant("").verify(&signed), Err(TokenFault::Subject.into()));
}

#[test]
fn revocation_takes_account_module_token_or_artifact() {
    let key = account(1);
    let signed = sign(&component(), claims(), &key).unwrap();
    for (entry, wanted) in [
        (key.public_key(), Revoked::Issuer(key.public_key())),
        (module().public_key(), Revoked::Subject(module().public_key())),
        ("token-1".to_owned(), Revoked::Token("token-1".to_owned())),
        (Digest::of(&signed).to_string(), Revoked::Artifact(Digest::of(&signed))),
    ] {
        let verdict = Tenant::trusting(&key).revoking(entry).verify(&signed);
        assert_eq!(verdict, Err(ClaimsError::Revoked(wanted)));
    }
    assert_eq!(Tenant::trusting(&key).revoking("token-2").code(&signed), "accepted");
}

#[test]
fn recheck_notices_what_changed_since() {
    let key = account(1);
    let signed = sign(&component(), Claims { expires: Some(NOW + 100), ..claims() }, &key).unwrap();
    let tenant = Tenant::trusting(&key);
    let verdict = tenant.verify(&signed).unwrap();
    let digest = Digest::of(&signed);
    let code = |tenant: &Tenant, now| recheck(&verdict, &digest, &tenant.policy(), now).map_err(|e| e.code());
    assert_eq!(code(&tenant, NOW), Ok(()));
    assert_eq!(code(&tenant, NOW + 1000), Err("artifact-expired"));
    assert_eq!(code(&Tenant::trusting(&account(2)), NOW), Err("issuer-untrusted"));
    assert_eq!(code(&Tenant::trusting(&key).revoking("token-1"), NOW), Err("artifact-revoked"));
    assert_eq!(code(&Tenant::trusting(&key).revoking(digest), NOW), Err("artifact-revoked"));
    let unsigned = recheck(&Verdict::Unsigned, &digest, &tenant.policy(), NOW);
    assert_eq!(unsigned, Err(ClaimsError::Unsigned));
}

#[test]
fn only_one_algorithm_is_one() {
    let tenant = Tenant::trusting(&account(1));
    for name in ["none", "None", "", "HS256", "HS512", "ES256", "RS256", "ed25519", "eddsa", "EdDSA ", "EdDSA,HS256"] {
        let header = json!({"typ": "jwt", "alg": name}).to_string();
        let verdict = tenant.verify(&signed_by_hand(&header, &payload().to_string()));
        assert!(matches!(verdict, Err(ClaimsError::TokenInvalid(TokenFault::Algorithm { .. }))), "{name}: {verdict:?}");
    }
}

#[test]
fn headers_that_bring_a_key_or_two_algorithms_are_refused() {
    let tenant = Tenant::trusting(&account(1));
    for header in [
        r#"{"typ":"jwt","alg":"EdDSA","alg":"none"}"#,
        r#"{"typ":"jwt","alg":"none","alg":"EdDSA"}"#,
        r#"{"typ":"jwt","alg":"EdDSA","\u0061lg":"EdDSA"}"#,
        r#"{"typ":"jwt","alg":["EdDSA"]}"#,
        r#"{"typ":"jwt"}"#,
        r#"{"alg":"EdDSA"}"#,
        r#"{"typ":"jwt","alg":"EdDSA","jwk":{"kty":"OKP"}}"#,
        r#"{"typ":"jwt","alg":"EdDSA","kid":"mine"}"#,
        r#"{"typ":"jwt","alg":"EdDSA","crit":["exp"]}"#,
        r#"{"typ":"jwe","alg":"EdDSA"}"#,
        r#"{"typ":"jwt","alg":"EdDSA"} "x""#,
        "",
    ] {
        assert_eq!(tenant.code(&signed_by_hand(header, &payload().to_string())), "token-invalid", "{header}");
    }
}

#[test]
fn a_signature_of_another_algorithm_under_our_name_is_no_signature() {
    let tenant = Tenant::trusting(&account(1));
    let message = token(HEADER, &payload().to_string(), &account(1));
    let message = message.rsplit_once('.').unwrap().0;
    let hmac_like = BASE64URL_NOPAD.encode(&[0x5a; 32]);
    let ecdsa_like = BASE64URL_NOPAD.encode(&[0x5a; 64]);
    for (signature, code) in
        [("", "token-invalid"), (hmac_like.as_str(), "token-invalid"), (ecdsa_like.as_str(), "artifact-tampered")]
    {
        let token = format!("{message}.{signature}");
        assert_eq!(tenant.code(&with_section("wasmcloud_jwt", token.as_bytes())), code, "{signature}");
    }
}

#[test]
fn claims_that_two_readers_could_read_differently_are_refused() {
    let tenant = Tenant::trusting(&account(1));
    let good = payload().to_string();
    assert_eq!(tenant.code(&signed_by_hand(HEADER, &good)), "accepted");
    let twice = |extra: &str| good.replacen('{', &format!("{{{extra},"), 1);
    for bad in [
        twice(r#""exp":1,"exp":99999999999"#),
        twice(r#""iss":"A""#),
        twice(r#""note":{"a":1,"a":2}"#),
        twice(r#""exp":"tomorrow""#),
        twice(r#""exp":-1"#),
        twice(r#""nbf":1.5"#),
        good.replace("\"prov\":false", "\"prov\":false,\"hash\":\"00\""),
        format!("{good}{good}"),
        "[]".to_owned(),
        "[".repeat(40_000),
    ] {
        assert_eq!(tenant.code(&signed_by_hand(HEADER, &bad)), "token-invalid", "{}", &bad[..bad.len().min(80)]);
    }
}

#[test]
fn tokens_that_are_no_tokens_are_refused() {
    let tenant = Tenant::trusting(&account(1));
    let good = token(HEADER, &payload().to_string(), &account(1));
    let padded = format!("{good}=");
    let spaced = format!(" {good}");
    let four = format!("{good}.x");
    let two = good.rsplit_once('.').unwrap().0.to_owned();
    for bad in ["", ".", "..", "...", &padded, &spaced, &four, &two] {
        assert_eq!(tenant.code(&with_section("wasmcloud_jwt", bad.as_bytes())), "token-invalid", "{bad}");
    }
    assert_eq!(tenant.code(&with_section("wasmcloud_jwt", b"\xff\xfe")), "token-invalid");
}

#[test]
fn a_token_of_ten_mebibytes_is_refused_unread() {
    let tenant = Tenant::trusting(&account(1));
    let size = 10 * 1024 * 1024;
    let verdict = tenant.verify(&with_section("wasmcloud_jwt", &vec![b'A'; size]));
    assert_eq!(verdict, Err(TokenFault::TooLong { size }.into()));
    let many = Claims { id: "x".repeat(MAX_TOKEN), ..claims() };
    assert!(matches!(sign(&component(), many, &account(1)), Err(SignError::TooLong(_))));
}

#[test]
fn two_tokens_are_refused_whatever_their_names_and_order() {
    let tenant = Tenant::trusting(&account(1));
    let good = token(HEADER, &payload().to_string(), &account(1));
    for (first, second) in
        [("wasmcloud_jwt", "wasmcloud_jwt"), ("jwt", "wasmcloud_jwt"), ("wasmcloud_jwt", "jwt"), ("jwt", "jwt")]
    {
        let bytes = append_section(with_section(first, good.as_bytes()), second, good.as_bytes());
        assert_eq!(tenant.verify(&bytes), Err(TokenFault::Several.into()));
    }
}

#[test]
fn a_nested_token_counts_for_nothing_and_is_refused() {
    let tenant = Tenant::trusting(&account(1));
    for name in ["jwt", "wasmcloud_jwt"] {
        for inner in [
            format!(r#"(core module (@custom "{name}" "x"))"#),
            format!(r#"(component (@custom "{name}" "x"))"#),
            format!(r#"(component (component (core module (@custom "{name}" "x"))))"#),
        ] {
            let bytes = wat::parse_str(format!("(component {inner})")).unwrap();
            assert_eq!(tenant.verify(&bytes), Err(TokenFault::Nested.into()), "{inner}");
            // Signing takes it out, as wascap does.
            let signed = sign(&bytes, claims(), &account(1)).unwrap();
            assert_eq!(tenant.code(&signed), "accepted", "{inner}");
        }
    }
}

#[test]
fn imports_beyond_the_grant_are_refused() {
    let tenant = Tenant::trusting(&account(1));
    let code = |granted: Option<Vec<&str>>| {
        let mut payload = payload();
        payload["wascap"]["caps"] = json!(granted);
        tenant.code(&signed_by_hand(HEADER, &payload.to_string()))
    };
    assert_eq!(code(Some(vec!["wasi:keyvalue"])), "accepted");
    assert_eq!(code(Some(vec!["wasi:http", "wasi:keyvalue/store"])), "accepted");
    assert_eq!(code(Some(vec![])), "interface-not-granted");
    assert_eq!(code(Some(vec!["wasi:http", "wasmcloud:keyvalue"])), "interface-not-granted");
    assert_eq!(code(Some(vec!["wasi:keyvalue/atomics"])), "interface-not-granted");
    assert_eq!(code(None), "interface-not-granted", "a token without the list grants the baseline only");
}

#[test]
fn section_lengths_are_hashed_in_their_shortest_form() {
    // wasm-ld writes lengths in five bytes; wascap's hash does not see that.
    let short = wat::parse_str("(component (core module))").unwrap();
    assert_eq!(short[8..], [1, 8, 0, b'a', b's', b'm', 1, 0, 0, 0]);
    let long = [&short[..9], &[0x88, 0x80, 0x80, 0x80, 0], &short[10..]].concat();
    assert_eq!(section::strip(&long).unwrap(), short);
}

#[test]
fn only_accounts_sign() {
    let error = sign(&component(), claims(), &module()).unwrap_err();
    assert!(matches!(error, SignError::NotAnAccount(_)));
    assert!(matches!(sign(b"no", claims(), &account(1)), Err(SignError::Artifact(InspectError::NotWasm))));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

    #[test]
    fn arbitrary_tokens_never_panic(data in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let tenant = Tenant { anchors: Vec::new(), revoked: Vec::new(), allow_unsigned: false };
        let _ = tenant.verify(&with_section("wasmcloud_jwt", &data));
    }

    #[test]
    fn arbitrary_components_never_panic(data in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let tenant = Tenant { anchors: Vec::new(), revoked: Vec::new(), allow_unsigned: true };
        let bytes = [b"\0asm\x0d\0\x01\0", data.as_slice()].concat();
        let _ = tenant.verify(&bytes);
        let _ = section::strip(&bytes);
    }
}
