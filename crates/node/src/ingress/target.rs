//! What a request target may look like, and the form of its path that is compared with routes.
//!
//! The component gets the path as the client wrote it, so a path two readers could understand differently is refused
//! instead of repaired: dot segments (also written with `%2e`, or ended by `%2f`, `%5c` or `;`), `%00`, backslashes,
//! broken percent-encoding, a leading `//`. An encoded slash inside a segment stays part of that segment. For the
//! comparison with routes percent-encoded unreserved characters are decoded, nothing else.

use super::bad::BadRequest;

/// Longest request target, bytes.
pub(super) const MAX_TARGET: usize = 16 * 1024;

/// A request target of HTTP/1, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RequestTarget<'a> {
    /// The authority of the absolute form.
    pub(super) authority: Option<&'a [u8]>,
    /// Path and query in origin form.
    pub(super) path_and_query: &'a [u8],
}

impl<'a> RequestTarget<'a> {
    /// Reads an origin-form or absolute-form target.
    pub(super) fn parse(target: &'a [u8]) -> Result<Self, BadRequest> {
        if target.len() > MAX_TARGET {
            return Err(BadRequest::TargetTooLong);
        }
        if target.first() == Some(&b'/') {
            check_path_and_query(target)?;
            return Ok(Self { authority: None, path_and_query: target });
        }
        let scheme = target.iter().position(|&byte| byte == b':').ok_or(BadRequest::Target)?;
        let (scheme, rest) = target.split_at(scheme);
        if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
            return Err(BadRequest::Target);
        }
        let rest = rest.strip_prefix(b"://").ok_or(BadRequest::Target)?;
        let slash = rest.iter().position(|&byte| matches!(byte, b'/' | b'?' | b'#'));
        let (authority, path) = match slash {
            Some(at) => rest.split_at(at),
            None => (rest, b"/".as_slice()),
        };
        check_path_and_query(path)?;
        Ok(Self { authority: Some(authority), path_and_query: path })
    }

    /// The path alone.
    pub(super) fn path(&self) -> &'a [u8] {
        path_of(self.path_and_query)
    }
}

/// Everything before the query.
pub(super) fn path_of(path_and_query: &[u8]) -> &[u8] {
    path_and_query.split(|&byte| byte == b'?').next().unwrap_or_default()
}

/// Refuses what the module header names; `path_and_query` is in origin form.
pub(super) fn check_path_and_query(path_and_query: &[u8]) -> Result<(), BadRequest> {
    if path_and_query.len() > MAX_TARGET {
        return Err(BadRequest::TargetTooLong);
    }
    let path = path_of(path_and_query);
    let query = path_and_query.get(path.len()..).unwrap_or_default();
    if path.first() != Some(&b'/') || path.get(1) == Some(&b'/') {
        return Err(BadRequest::Target);
    }
    if query.iter().any(|&byte| !byte.is_ascii_graphic() || matches!(byte, b'#' | b'"' | b'<' | b'>')) {
        return Err(BadRequest::Target);
    }
    // Dots of the segment so far; `None` once it has another character.
    let mut dots = None;
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let (byte, encoded) = match byte {
            b'%' => {
                let (byte, after) = decode(rest).ok_or(BadRequest::Target)?;
                rest = after;
                (byte, true)
            }
            _ => (byte, false),
        };
        match byte {
            0 => return Err(BadRequest::Target),
            b'/' | b'\\' if encoded => end_of_segment(&mut dots)?,
            b'/' | b';' => end_of_segment(&mut dots)?,
            b'.' => dots = dots.map(|count: u32| count.saturating_add(1)),
            _ if encoded => dots = None,
            b'\\' | b'#' | b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' => return Err(BadRequest::Target),
            _ if !byte.is_ascii_graphic() => return Err(BadRequest::Target),
            _ => dots = None,
        }
    }
    end_of_segment(&mut dots)
}

fn end_of_segment(dots: &mut Option<u32>) -> Result<(), BadRequest> {
    if matches!(dots, Some(1 | 2)) {
        return Err(BadRequest::Target);
    }
    *dots = Some(0);
    Ok(())
}

/// The byte of a percent-encoding whose `%` was taken, and what follows it.
fn decode(rest: &[u8]) -> Option<(u8, &[u8])> {
    let (&[high, low], after) = rest.split_first_chunk::<2>()?;
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some((digit(high)? << 4 | digit(low)?, after))
}

/// The form of a checked path that is compared with routes. `scratch` is used only where something has to be decoded.
pub(super) fn routing_path<'a>(path: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
    if !path.contains(&b'%') {
        return path;
    }
    scratch.clear();
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        match decode(after) {
            Some((decoded, after)) if byte == b'%' && is_unreserved(decoded) => {
                scratch.push(decoded);
                rest = after;
            }
            _ => {
                scratch.push(byte);
                rest = after;
            }
        }
    }
    scratch
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// The name in a `Host` value or an authority, without its port. Refuses userinfo, empty names and everything that is
/// neither a DNS-like name nor an address in brackets.
pub(super) fn host_name(authority: &[u8]) -> Result<&[u8], BadRequest> {
    if authority.len() > 261 {
        return Err(BadRequest::Host);
    }
    let (name, port) = if let Some(rest) = authority.strip_prefix(b"[") {
        let end = rest.iter().position(|&byte| byte == b']').ok_or(BadRequest::Host)?;
        let address = rest.get(..end).and_then(|inside| std::str::from_utf8(inside).ok()).ok_or(BadRequest::Host)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| BadRequest::Host)?;
        authority.split_at(end.saturating_add(2))
    } else {
        let end = authority.iter().position(|&byte| byte == b':').unwrap_or(authority.len());
        let (name, port) = authority.split_at(end);
        let fits = |&byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if !name.iter().all(fits) || name.first().is_none_or(|&byte| byte == b'.') || contains_empty_label(name) {
            return Err(BadRequest::Host);
        }
        (name, port)
    };
    if let Some((colon, digits)) = port.split_first() {
        let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let valid = *colon == b':' && digits.is_some_and(|digits| digits.parse::<u16>().is_ok_and(|port| port > 0));
        if !valid {
            return Err(BadRequest::Host);
        }
    }
    Ok(name)
}

fn contains_empty_label(name: &[u8]) -> bool {
    name.windows(2).any(|pair| pair == b"..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let ok = |target: &'static str| RequestTarget::parse(target.as_bytes());
        assert_eq!(ok("/a?b").unwrap(), RequestTarget { authority: None, path_and_query: b"/a?b" });
        let absolute = ok("HTTP://h:8/a").unwrap();
        assert_eq!((absolute.authority, absolute.path_and_query), (Some(b"h:8".as_slice()), b"/a".as_slice()));
        assert_eq!(ok("http://h").unwrap().path_and_query, b"/");
        for good in [
            "/",
            "/a/b/",
            "/a//b",
            "/a%2Fb",
            "/a%5Cb",
            "/...",
            "/.well-known/x",
            "/a.b",
            "/a..b",
            "/..a",
            "/%20",
            "/a;b=1",
            "/~x",
            "/a?x={}|^`",
            "/%E2%82%AC",
            "/a?..%00",
            "/@scope%2fname",
            "/:80",
            "/a,b!$&'()*+=",
        ] {
            assert!(ok(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "*",
            "a",
            "//",
            "//evil/x",
            "/..",
            "/.",
            "/./",
            "/../",
            "/a/..",
            "/a/../b",
            "/%2e%2E/x",
            "/.%2e",
            "/..%2fx",
            "/..%5cx",
            "/a%2f..",
            "/..;/x",
            "/.;a",
            "/%00",
            "/a%00b",
            "/%",
            "/%2",
            "/%zz",
            "/a\\b",
            "/a#b",
            "/a?#",
            "/a b",
            "/\u{e9}",
            "/\u{7f}",
            "/\t",
            "/{x}",
            "/a?\"",
            "ftp://h/",
            "http:/h",
            "http//h/",
            "http://h?x",
            "http://h#x",
            "https:h",
            "/<",
            "/a?\u{1}",
        ] {
            assert!(ok(bad).is_err(), "{bad}");
        }
        let long = format!("/{}", "a".repeat(MAX_TARGET));
        assert_eq!(RequestTarget::parse(long.as_bytes()), Err(BadRequest::TargetTooLong));
    }

    #[test]
    fn routing_decodes_unreserved_only() {
        let mut scratch = Vec::new();
        for (path, want) in [("/a", "/a"), ("/%61dmin", "/admin"), ("/a%2Fb", "/a%2Fb"), ("/%7e%41%20", "/~A%20")] {
            assert_eq!(routing_path(path.as_bytes(), &mut scratch), want.as_bytes());
        }
    }

    #[test]
    fn hosts() {
        for (host, name) in [
            ("a", "a"),
            ("A.b-c.d_e:80", "A.b-c.d_e"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("[::1]:80", "[::1]"),
            ("a.", "a."),
        ] {
            assert_eq!(host_name(host.as_bytes()).unwrap(), name.as_bytes(), "{host}");
        }
        for bad in [
            "",
            ":80",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a:8 0",
            "u@h",
            "u:p@h",
            "a b",
            "a/b",
            "a,b",
            "[::1",
            "[zz]",
            "[]",
            "[::1]x",
            "a..b",
            ".a",
            "a?b",
            "a#b",
            "h\u{e9}",
            "a%41",
            "a:80:80",
            "[::1%25lo]",
        ] {
            assert!(host_name(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(host_name("a".repeat(300).as_bytes()).is_err());
    }
}
