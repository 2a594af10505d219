//! Names and other short texts: accepted exactly where the rule, written down a second time, accepts them, and written
//! back as they were read.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use model::messaging::{Pattern, covers};
use model::trace::TraceContext;
use model::unit::{ByteSize, Millis};
use model::{AppName, ContractId, Digest, InterfaceId, SecretName, TenantName};

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::texts(&[
        "a",
        "counter",
        "a-b",
        "xn--a",
        "a.b.>|a.*.c",
        "*.b|a.b",
        "wasi:keyvalue/store@0.2.0-draft",
        "wasi:http@0.2",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "64MiB",
        "1500ms",
        "0B",
        "..",
        "a%2fb",
        "\u{430}pp",
    ])
}

pub(super) fn run(bytes: &[u8]) {
    let traced = TraceContext::parse(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        assert!(traced.is_err());
        return;
    };
    let alike = text.parse::<AppName>().is_ok();
    assert_eq!(alike, is_name(text), "{text:?}");
    assert_eq!(alike, text.parse::<TenantName>().is_ok());
    assert_eq!(alike, serde_json::from_value::<SecretName>(text.into()).is_ok());
    again::<AppName>(text, true);
    again::<InterfaceId>(text, false);
    again::<ContractId>(text, true);
    again::<Digest>(text, false);
    again::<ByteSize>(text, false);
    again::<Millis>(text, false);
    if let Ok(context) = traced {
        // Other flags than the first are not carried on.
        assert_eq!(context.to_string().get(..53), text.get(..53));
        assert_eq!(TraceContext::parse(context.to_string().as_bytes()), Ok(context));
    }
    if let Some((one, two)) = text.split_once('|') {
        subjects(one, two);
    }
}

/// `[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?`, without looking at how it is done elsewhere.
fn is_name(text: &str) -> bool {
    let end = |byte: Option<&u8>| byte.is_some_and(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9'));
    let bytes = text.as_bytes();
    bytes.len() <= 40
        && end(bytes.first())
        && end(bytes.last())
        && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// What is read is read again from what it is written as; `same`: it is written as it was read.
fn again<T: FromStr + Display + PartialEq + Debug>(text: &str, same: bool) {
    let Ok(value) = text.parse::<T>() else { return };
    let written = value.to_string();
    assert!(!same || written == text, "{text:?} is written as {written:?}");
    assert_eq!(written.parse::<T>().ok().as_ref(), Some(&value), "{text:?} is written as {written:?}");
}

fn subjects(one: &str, two: &str) {
    let (Ok(pattern), Ok(other)) = (one.parse::<Pattern>(), two.parse::<Pattern>()) else { return };
    assert_eq!(pattern.overlaps(&other), other.overlaps(&pattern));
    assert!(pattern.overlaps(&pattern) && covers(one, one));
    let plain = !two.contains(['*', '>']);
    if plain {
        let meant = matches(&one.split('.').collect::<Vec<_>>(), &two.split('.').collect::<Vec<_>>());
        assert_eq!(pattern.matches(two), meant, "{one} {two}");
        assert_eq!(covers(one, two), meant, "{one} {two}");
        assert_eq!(pattern.overlaps(&other), meant, "{one} {two}");
    }
    if covers(one, two) {
        assert!(pattern.overlaps(&other), "{one} covers {two} and does not overlap with it");
    }
}

fn matches(pattern: &[&str], subject: &[&str]) -> bool {
    match (pattern, subject) {
        ([], []) => true,
        ([">"], [_, ..]) => true,
        (["*", pattern @ ..], [_, subject @ ..]) => matches(pattern, subject),
        ([one, pattern @ ..], [two, subject @ ..]) => one == two && matches(pattern, subject),
        _ => false,
    }
}
