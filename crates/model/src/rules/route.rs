//! Routes: hosts, paths and methods that can be matched without interpretation, and no two that answer the same request.

use crate::app::Route;
use crate::rules::{Code, Violation, list, nearest, shown};

/// The methods that can be routed.
pub const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];

/// The longest path of a route, bytes.
pub const MAX_PATH: usize = 1024;

/// Why `text` is not a lower-case DNS host name; ready to follow the quoted text in a sentence.
pub(crate) fn host_name(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("has no host".to_owned());
    }
    if text.len() > 253 {
        return Err("has more than 253 characters".to_owned());
    }
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("has upper-case letters; host names are compared in lower case".to_owned());
    }
    if text.contains('*') {
        return Err("has a `*` that is not its whole first label".to_owned());
    }
    for label in text.split('.') {
        if label.is_empty() {
            return Err("has an empty label (two dots in a row, or one at an end)".to_owned());
        }
        if label.len() > 63 || label.starts_with('-') || label.ends_with('-') {
            return Err("has a label longer than 63 characters, or with a hyphen at an end".to_owned());
        }
        if let Some(c) = label.chars().find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-')) {
            return Err(format!("has `{}`, which host names cannot have", c.escape_debug()));
        }
    }
    Ok(())
}

/// Checks a route's host.
///
/// # Errors
/// `route-host`, with what to write instead.
pub fn check_host(host: &str) -> Result<(), Violation> {
    let name = host.strip_prefix("*.").unwrap_or(host);
    let bad = |why: &str, help: String| {
        Err(Violation::new(Code::RouteHost, format!("host `{}` {why}", shown(host))).help(help))
    };
    if host.is_empty() {
        return bad("is empty", "write a host name such as `shop.example.com`".to_owned());
    }
    if host == "*" {
        return bad(
            "would answer for every name",
            "write a host name, or `*.` and the suffix to answer for".to_owned(),
        );
    }
    if let Some((_, rest)) = host.split_once("://") {
        let rest = rest.split(['/', ':']).next().unwrap_or_default();
        return bad("is a URL", format!("write the host name alone: `{}`", shown(rest)));
    }
    if host.contains('/') {
        return bad("has a path in it", "write the host name alone, and the path under `path`".to_owned());
    }
    if let Some((name, port)) = host.rsplit_once(':')
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        return bad("has a port; the ingress decides on its ports", format!("write `{}`", shown(name)));
    }
    match host_name(name) {
        Ok(()) => Ok(()),
        Err(why) => {
            let lower = host.to_ascii_lowercase();
            let help = if lower != host && check_host(&lower).is_ok() {
                format!("write `{lower}`")
            } else {
                "write a host name such as `shop.example.com`, or `*.example.com` for every name below".to_owned()
            };
            bad(&why, help)
        }
    }
}

/// Checks a route's path.
///
/// # Errors
/// `route-path`, with what to write instead.
pub fn check_path(path: &str) -> Result<(), Violation> {
    let bad = |why: &str, help: String| {
        Err(Violation::new(Code::RoutePath, format!("path `{}` {why}", shown(path))).help(help))
    };
    if !path.starts_with('/') {
        return bad("does not start with `/`", format!("write `/{}`", shown(path)));
    }
    if path.len() > MAX_PATH {
        return bad("is too long", format!("use at most {MAX_PATH} characters"));
    }
    if path.contains(['?', '#']) {
        return bad(
            "has a query or fragment; routes match paths only",
            "remove everything from `?` or `#` on".to_owned(),
        );
    }
    if path.contains('*') {
        return bad("has a `*`; a path covers everything below it", format!("write `{}`", shown(&cut_at_star(path))));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "/-._~!$&'()+,;=:@".contains(c);
    if let Some(c) = path.chars().find(|c| !allowed(*c)) {
        let why = format!("has `{}`, which the ingress does not match", c.escape_debug());
        return bad(&why, "use letters, digits and `-._~!$&'()+,;=:@` between the slashes".to_owned());
    }
    if path != "/" && path.ends_with('/') {
        return bad(
            "ends with `/`; it covers the path itself and everything below",
            format!("write `{}`", path.trim_end_matches('/')),
        );
    }
    if path != "/" && path.split('/').skip(1).any(|s| s.is_empty() || s == "." || s == "..") {
        return bad(
            "has an empty, `.` or `..` segment, which no request reaches",
            "write the path as requests have it".to_owned(),
        );
    }
    Ok(())
}

fn cut_at_star(path: &str) -> String {
    let base = path.split('*').next().unwrap_or_default().trim_end_matches('/');
    if base.is_empty() { "/".to_owned() } else { base.to_owned() }
}

/// Checks one method of a route.
///
/// # Errors
/// `route-method`, with the nearest method.
pub fn check_method(method: &str) -> Result<(), Violation> {
    if METHODS.contains(&method) {
        return Ok(());
    }
    let help = match nearest(method, METHODS) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("the methods are {}; leave `methods` out to answer all", list(&METHODS)),
    };
    Err(Violation::new(Code::RouteMethod, format!("`{}` is not a method that can be routed", shown(method))).help(help))
}

/// Whether some request would be answered by both.
pub fn collide(a: &Route, b: &Route) -> bool {
    a.host == b.host
        && a.path == b.path
        && (a.methods.is_empty() || b.methods.is_empty() || a.methods.iter().any(|m| b.methods.contains(m)))
}

/// Whether some host name is covered by both patterns.
pub fn hosts_overlap(a: &str, b: &str) -> bool {
    let covers = |pattern: &str, host: &str| {
        pattern.strip_prefix('*').is_some_and(|suffix| host.trim_start_matches('*').ends_with(suffix))
    };
    a == b || covers(a, b) || covers(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_overlap_in_both_directions() {
        for (a, b, overlap) in [
            ("a.example", "a.example", true),
            ("*.example", "a.example", true),
            ("a.b.example", "*.example", true),
            ("*.b.example", "*.example", true),
            ("*.example", "example", false),
            ("*.ample", "a.example", false),
            ("a.example", "b.example", false),
        ] {
            assert_eq!(hosts_overlap(a, b), overlap, "{a} {b}");
            assert_eq!(hosts_overlap(b, a), overlap, "{b} {a}");
        }
    }

    #[test]
    fn hosts_and_paths_are_plain() {
        for good in ["localhost", "counter.localhost", "*.example.com", "127.0.0.1", "xn--mnchen-3ya.example"] {
            assert!(check_host(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "*",
            "*.",
            "*.*.a",
            "a.*",
            "a..b",
            "a.",
            "A.b",
            "a_b",
            "a:80",
            "http://a",
            "a/b",
            "[::1]",
            "é.example",
            "a b",
        ] {
            assert!(check_host(bad).is_err(), "{bad}");
        }
        for good in ["/", "/a", "/a/b.c", "/.well-known"] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in
            ["", "a", "//", "/a/", "/a//b", "/a/../b", "/.", "/a?b", "/a#b", "/*", "/a%20b", "/é", "/a b", "/a\\b"]
        {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }
}
