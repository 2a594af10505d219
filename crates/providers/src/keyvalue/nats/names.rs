//! Names in NATS for buckets and keys of ours: reversible, so that no two of ours are one of theirs, and readable, so
//! that other clients of the same bucket meet the keys they expect.
//!
//! A bucket is `<tenant>_<app>_<bucket>`: tenant and app are typed names, which hold no `_`. A key keeps letters,
//! digits, `-`, `/`, `_`, and a dot that stands between two other characters; every other byte is `=` and two digits.

use model::{AppName, TenantName};

/// The longest name of a bucket: with the longest key it still fits into a line that a server reads.
const MAX_BUCKET: usize = 200;
/// More dots than this are no structure that anybody reads, and each is a level in the server's index.
const MAX_DOTS: usize = 31;

/// The NATS bucket of a bucket of an app; `None` for one that is too long.
pub(super) fn bucket(tenant: &TenantName, app: &AppName, bucket: &str) -> Option<String> {
    let mut name = format!("{tenant}_{app}_");
    spelled(&mut name, bucket);
    (name.len() <= MAX_BUCKET).then_some(name)
}

/// Adds `text` so that it can be a part of a stream's name, reversibly: every byte that is no letter, digit or `-` is
/// `_` and two digits.
pub(crate) fn spelled(name: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => name.push(char::from(byte)),
            other => hex(name, '_', other),
        }
    }
}

/// The NATS key of a key.
pub(super) fn encode(key: &str) -> String {
    let bytes = key.as_bytes();
    let dots = bytes.iter().filter(|byte| **byte == b'.').count() <= MAX_DOTS;
    let mut out = String::with_capacity(key.len());
    for (at, byte) in bytes.iter().enumerate() {
        let between = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(|byte| *byte != b'.');
        match *byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'/' | b'_' => out.push(char::from(*byte)),
            b'.' if dots && between(at.checked_sub(1)) && between(at.checked_add(1)) => out.push('.'),
            other => hex(&mut out, '=', other),
        }
    }
    out
}

/// The key that `name` stands for; `None` for one that [`encode`] never gives, as somebody else's would be.
pub(super) fn decode(name: &str) -> Option<String> {
    let mut out = Vec::with_capacity(name.len());
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'=' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            plain => plain,
        });
    }
    String::from_utf8(out).ok().filter(|key| encode(key) == name)
}

fn hex(out: &mut String, mark: char, byte: u8) {
    out.push(mark);
    for nibble in [byte >> 4, byte & 15] {
        out.push(char::from_digit(u32::from(nibble), 16).unwrap_or_default().to_ascii_uppercase());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_and_every_name_is_one_of_nats() {
        let all: String = (0..=0x2ff).filter_map(char::from_u32).collect();
        let dots = "a.".repeat(40);
        for key in [
            "a", "user.1", "a/b_c-d", ".", "..", "a..b", ".a", "a.", " ", "=", "=41", "*", "a.>", "ключ", "\0", &all,
            &dots,
        ] {
            let name = encode(key);
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-/_=.".contains(&b)), "{name}");
            assert!(name.split('.').all(|token| !token.is_empty()), "{name}");
            assert_eq!(decode(&name).as_deref(), Some(key));
        }
        assert_eq!(encode("user.1/a b"), "user.1/a=20b");
        assert!(encode(&dots).starts_with("a=2Ea"));
        for foreign in ["a=2eb", "=41", "a=2", "a=zz", "=FF", "a b", "a.=2E.b="] {
            assert_eq!(decode(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn buckets_of_two_apps_never_meet() {
        let name = |tenant: &str, app: &str, b: &str| bucket(&tenant.parse().unwrap(), &app.parse().unwrap(), b);
        assert_eq!(name("acme", "shop", "cart-1").as_deref(), Some("acme_shop_cart-1"));
        assert_eq!(name("acme", "shop", "a_b.c").as_deref(), Some("acme_shop_a_5Fb_2Ec"));
        assert_ne!(name("a", "b-c", "d"), name("a-b", "c", "d"));
        assert_ne!(name("a", "b", "c_d"), name("a", "b", "c_5Fd"));
        assert_eq!(name("a", "b", &"x".repeat(300)), None);
    }

    #[test]
    fn the_longest_names_fit_into_a_line() {
        let longest = MAX_BUCKET * 2 + encode(&"\0".repeat(crate::keyvalue::MAX_KEY)).len();
        assert!(longest + "$JS..API.DIRECT.GET.KV_.$KV..".len() + 64 < 3840);
    }
}
