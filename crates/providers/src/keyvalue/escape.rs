//! Text of a tenant as one segment of a path on somebody else's server: letters, digits, `-` and `_` stay as they are,
//! every other byte becomes `~` and two digits. Nothing that a server, a proxy or a policy gives a meaning to is left:
//! no `/`, no `.`, no `%`, no `*`. Every text has exactly one such name, and no two have the same.

/// What stands for the empty text.
const EMPTY: &str = "~";

/// The segment that stands for `text`.
pub(crate) fn escape(text: &str) -> String {
    if text.is_empty() {
        return EMPTY.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => out.push(char::from(byte)),
            other => {
                out.push('~');
                for nibble in [other >> 4, other & 15] {
                    out.push(char::from_digit(u32::from(nibble), 16).unwrap_or_default());
                }
            }
        }
    }
    out
}

/// The text that `segment` stands for; `None` for one that [`escape`] never gives, as somebody else's would be.
pub(crate) fn unescape(segment: &str) -> Option<String> {
    if segment == EMPTY {
        return Some(String::new());
    }
    let mut out = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'~' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            plain => plain,
        });
    }
    String::from_utf8(out).ok().filter(|text| escape(text) == segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_with_a_meaning_is_left_and_everything_comes_back() {
        let all: String = (0..=0x2ff).filter_map(char::from_u32).collect();
        for text in ["", "a", "..", ".", "../../sys/policy", "a/b", "~", "~2f", "%2e%2e", "ключ", "\0", "*", "+", &all]
        {
            let name = escape(text);
            assert!(
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_~".contains(&b)),
                "{name}"
            );
            assert_eq!(unescape(&name).as_deref(), Some(text));
        }
        assert_eq!(escape("user/1.name"), "user~2f1~2ename");
    }

    #[test]
    fn a_name_that_is_not_ours_is_none() {
        for name in ["", "a b", "a.b", "~2", "~2F", "~zz", "~61", "~ff", "a~", "é"] {
            assert_eq!(unescape(name), None, "{name}");
        }
    }
}
