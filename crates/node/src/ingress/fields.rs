//! What each header field means to a proxy: carried on, ended here, or refused.

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Carried on as it is.
    Plain,
    /// Written anew.
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Expect,
    Upgrade,
    TraceParent,
    TraceState,
    /// Ends here: hop by hop, or ours to set.
    Drop,
    /// A framing field spelled with an underscore: some readers take it for the real one.
    Disguised,
}

/// Longest name looked at whole; longer ones are ours only by their prefix.
const MAX_NAME: usize = 20;

/// Classes a field by its name, in any case. `_` counts as `-`, because CGI-like readers see no difference.
pub(super) fn class(name: &[u8]) -> Class {
    let mut lower = [0u8; MAX_NAME];
    for (to, from) in lower.iter_mut().zip(name) {
        *to = if *from == b'_' { b'-' } else { from.to_ascii_lowercase() };
    }
    if lower.starts_with(b"sidereal-") || lower.starts_with(b"x-forwarded-") {
        return Class::Drop;
    }
    let Some(key) = lower.get(..name.len()) else { return Class::Plain };
    let class = match key {
        b"host" => Class::Host,
        b"content-length" => Class::ContentLength,
        b"transfer-encoding" => Class::TransferEncoding,
        b"connection" => Class::Connection,
        b"expect" => Class::Expect,
        b"upgrade" => Class::Upgrade,
        b"traceparent" => Class::TraceParent,
        b"tracestate" => Class::TraceState,
        b"keep-alive"
        | b"proxy-connection"
        | b"proxy-authorization"
        | b"proxy-authenticate"
        | b"te"
        | b"trailer"
        | b"http2-settings"
        | b"forwarded"
        | b"x-real-ip" => Class::Drop,
        _ => Class::Plain,
    };
    match class {
        Class::ContentLength | Class::TransferEncoding if name.contains(&b'_') => Class::Disguised,
        class => class,
    }
}

/// A character of a token: a method or a field name.
pub(super) fn is_token(byte: u8) -> bool {
    TOKEN.get(usize::from(byte)).copied().unwrap_or(false)
}

/// A byte of a field value: no control character but the tab.
pub(super) fn is_value(byte: u8) -> bool {
    byte >= b' ' && byte != 0x7f || byte == b'\t'
}

static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0u8;
    while byte < 128 {
        #[allow(clippy::indexing_slicing, reason = "evaluated at compile time")]
        {
            table[byte as usize] = byte.is_ascii_alphanumeric()
                || matches!(
                    byte,
                    b'!' | b'#'
                        | b'$'
                        | b'%'
                        | b'&'
                        | b'\''
                        | b'*'
                        | b'+'
                        | b'-'
                        | b'.'
                        | b'^'
                        | b'_'
                        | b'`'
                        | b'|'
                        | b'~'
                );
        }
        byte += 1;
    }
    table
};

/// Without the spaces and tabs around it.
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// A `Content-Length` value: digits only.
pub(super) fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// One field of a head, as it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
}

/// Splits a line (without its end) into name and value; `None` for a folded line, a missing colon, a bad name.
pub(super) fn name_and_value(line: &[u8]) -> Option<Field<'_>> {
    let colon = line.iter().position(|&byte| !is_token(byte))?;
    let (name, rest) = line.split_at(colon);
    let value = rest.strip_prefix(b":")?;
    (!name.is_empty()).then_some(Field { name, value: trim(value) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_ignore_case_and_see_through_underscores() {
        for (name, want) in [
            ("Host", Class::Host),
            ("CONTENT-LENGTH", Class::ContentLength),
            ("content_length", Class::Disguised),
            ("Transfer_Encoding", Class::Disguised),
            ("X-Forwarded-For", Class::Drop),
            ("x_forwarded_proto", Class::Drop),
            ("X-Forwarded-Anything-At-All-Very-Long", Class::Drop),
            ("Sidereal-Route", Class::Drop),
            ("sidereal_route", Class::Drop),
            ("sidereal-", Class::Drop),
            ("TE", Class::Drop),
            ("accept", Class::Plain),
            ("x-forwarde", Class::Plain),
            ("hostx", Class::Plain),
            ("transfer-encoding-long", Class::Plain),
            ("", Class::Plain),
        ] {
            assert_eq!(class(name.as_bytes()), want, "{name}");
        }
    }

    #[test]
    fn lines() {
        let field = name_and_value(b"A: \t b c \t").unwrap();
        assert_eq!((field.name, field.value), (b"A".as_slice(), b"b c".as_slice()));
        assert_eq!(name_and_value(b"a:").unwrap().value, b"");
        for bad in ["", " a: b", "\ta: b", "a : b", "a", ": b", "a\u{0}: b", "a\u{e9}: b", "a(: b"] {
            assert!(name_and_value(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn lengths() {
        assert_eq!(content_length(b"0042"), Some(42));
        for bad in ["", "+1", "-1", "1,1", "1 1", "0x1", "99999999999999999999", "1.0"] {
            assert_eq!(content_length(bad.as_bytes()), None, "{bad}");
        }
    }
}
