//! Malformed and smuggling requests, as raw bytes. After each comes a second request on the same connection: if the
//! first could be read in two ways, one of them would bring the second one, or a part of the first, to a host.

use std::time::Duration;

use super::rig::{Rig, status};

pub(super) const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";

/// Name, bytes, status. Nothing of any of them reaches a host.
pub(super) fn refused() -> Vec<(&'static str, String, u16)> {
    let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    let post = |fields: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n{body}");
    let target = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
    let host = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let line = |line: &str| format!("{line}\r\nHost: h\r\n\r\n");
    let many = |count: usize| (0..count).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
    vec![
        // Framing: who decides where the body ends.
        ("CL and TE", post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400),
        ("TE and CL", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"), 400),
        ("CL 0 and TE", post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400),
        ("two CL, different", post("Content-Length: 4\r\nContent-Length: 5\r\n", "abcd"), 400),
        ("two CL, equal", post("Content-Length: 4\r\nContent-Length: 4\r\n", "abcd"), 400),
        ("CL list", post("Content-Length: 4, 4\r\n", "abcd"), 400),
        ("CL with sign", post("Content-Length: +4\r\n", "abcd"), 400),
        ("CL negative", post("Content-Length: -1\r\n", "abcd"), 400),
        ("CL hex", post("Content-Length: 0x4\r\n", "abcd"), 400),
        ("CL with space inside", post("Content-Length: 4 4\r\n", "abcd"), 400),
        ("CL empty", post("Content-Length:\r\n", "abcd"), 400),
        ("CL overflow", post("Content-Length: 18446744073709551620\r\n", "abcd"), 400),
        ("CL with underscore", post("Content_Length: 4\r\n", "abcd"), 400),
        ("TE with underscore", post("Transfer_Encoding: chunked\r\n", "0\r\n\r\n"), 400),
        ("TE identity", post("Transfer-Encoding: identity\r\n", ""), 400),
        ("TE chunked, identity", post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), 400),
        ("TE gzip, chunked", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), 400),
        ("TE twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400),
        ("TE chunked twice in one", post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"), 400),
        ("TE xchunked", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), 400),
        ("TE with vertical tab", post("Transfer-Encoding: \u{b}chunked\r\n", "0\r\n\r\n"), 400),
        ("TE quoted", post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"), 400),
        ("TE with parameter", post("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n"), 400),
        ("TE empty", post("Transfer-Encoding:\r\n", "0\r\n\r\n"), 400),
        ("TE behind a folded line", post("X: y\r\n Transfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400),
        ("TE with space before colon", post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), 400),
        ("TE in HTTP/1.0", line("POST / HTTP/1.0\r\nTransfer-Encoding: chunked"), 400),
        (
            "TRACE with a body",
            format!("TRACE / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", SMUGGLED.len()),
            400,
        ),
        // Lines and fields.
        ("bare LF everywhere", "GET / HTTP/1.1\nHost: h\n\n".into(), 400),
        ("bare LF after one field", "GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n".into(), 400),
        ("bare LF as the empty line", "GET / HTTP/1.1\r\nHost: h\r\n\n".into(), 400),
        ("bare CR in a value", get("X: a\rb\r\n"), 400),
        ("bare CR before CR LF", get("X: a\r\r\n"), 400),
        ("bare CR in the request line", "GET /\r HTTP/1.1\r\nHost: h\r\n\r\n".into(), 400),
        ("folded value", get("X: a\r\n b\r\n"), 400),
        ("folded with tab", get("X: a\r\n\tb\r\n"), 400),
        ("fold right after the request line", "GET / HTTP/1.1\r\n Host: h\r\n\r\n".into(), 400),
        ("space before colon", get("X : a\r\n"), 400),
        ("tab before colon", get("X\t: a\r\n"), 400),
        ("no colon", get("X\r\n"), 400),
        ("empty name", get(": a\r\n"), 400),
        ("name with parenthesis", get("X(y): a\r\n"), 400),
        ("name not ASCII", get("X\u{e9}: a\r\n"), 400),
        ("NUL in a name", get("X\0: a\r\n"), 400),
        ("NUL in a value", get("X: a\0b\r\n"), 400),
        ("escape in a value", get("X: a\u{1b}b\r\n"), 400),
        ("DEL in a value", get("X: a\u{7f}\r\n"), 400),
        ("101 fields", get(&many(100)), 431),
        ("a head of 64 KiB", get(&format!("X: {}\r\n", "a".repeat(64 * 1024))), 431),
        ("a long field section of many lines", get(&format!("X: {}\r\n", "a".repeat(1000)).repeat(90)), 431),
        // Request line.
        ("empty line first", format!("\r\n{}", get("")), 400),
        ("space first", format!(" {}", get("")), 400),
        ("HTTP/0.9", "GET /\r\n\r\n".into(), 400),
        ("two spaces", line("GET  / HTTP/1.1"), 400),
        ("space inside the target", line("GET /a b HTTP/1.1"), 400),
        ("space after the version", line("GET / HTTP/1.1 "), 400),
        ("tab as separator", line("GET\t/ HTTP/1.1"), 400),
        ("lower-case protocol", line("GET / http/1.1"), 400),
        ("HTTP/1.2", line("GET / HTTP/1.2"), 505),
        ("HTTP/2.0", line("GET / HTTP/2.0"), 505),
        ("HTTP/1.10", line("GET / HTTP/1.10"), 400),
        ("HTTP/11", line("GET / HTTP/11"), 400),
        ("no target", line("GET HTTP/1.1"), 400),
        ("method with a colon", line("GE:T / HTTP/1.1"), 400),
        ("method not ASCII", line("G\u{cb}T / HTTP/1.1"), 400),
        ("a TLS handshake", "\u{16}\u{3}\u{1}\u{2}\0".into(), 400),
        ("a target of 16 KiB", target(&format!("/{}", "a".repeat(16 * 1024))), 414),
        ("CONNECT", line("CONNECT h:443 HTTP/1.1"), 400),
        ("Upgrade", get("Connection: upgrade\r\nUpgrade: websocket\r\n"), 400),
        (
            "Upgrade h2c",
            get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
            400,
        ),
        ("Upgrade with a body", post("Upgrade: x\r\nContent-Length: 4\r\n", "abcd"), 400),
        ("Upgrade in Connection alone", get("Connection: keep-alive, upgrade\r\n"), 400),
        ("Expect something else", post("Expect: 200-ok\r\nContent-Length: 4\r\n", "abcd"), 417),
        ("Expect twice", post("Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 4\r\n", "abcd"), 417),
        // Targets.
        ("asterisk", line("OPTIONS * HTTP/1.1"), 400),
        ("dot segments", target("/a/../admin"), 400),
        ("encoded dot segments", target("/a/%2e%2E/admin"), 400),
        ("dot segment behind an encoded slash", target("/a/..%2fadmin"), 400),
        ("dot segment behind a backslash", target("/a/..%5cadmin"), 400),
        ("dot segment with a parameter", target("/a/..;x/admin"), 400),
        ("encoded NUL", target("/a%00b"), 400),
        ("broken percent-encoding", target("/a%zz"), 400),
        ("backslash", target("/a\\b"), 400),
        ("fragment", target("/a#b"), 400),
        ("control character", target("/a\u{1}b"), 400),
        ("not ASCII", target("/\u{e9}"), 400),
        ("two slashes first", target("//evil.test/a"), 400),
        ("absolute target, other host", target("http://evil.test/"), 400),
        ("absolute target, other port", target("http://h:81/"), 400),
        ("absolute target with userinfo", target("http://h@evil.test/"), 400),
        ("absolute target, other scheme", target("gopher://h/"), 400),
        // Host.
        ("no Host", "GET / HTTP/1.1\r\n\r\n".into(), 400),
        ("no Host in HTTP/1.0", "GET / HTTP/1.0\r\n\r\n".into(), 400),
        ("two Hosts", "GET / HTTP/1.1\r\nHost: h\r\nHost: evil\r\n\r\n".into(), 400),
        ("two equal Hosts", "GET / HTTP/1.1\r\nHost: h\r\nhost: h\r\n\r\n".into(), 400),
        ("empty Host", host(""), 400),
        ("Host list", host("h, evil"), 400),
        ("Host with userinfo", host("user@h"), 400),
        ("Host with a path", host("h/a"), 400),
        ("Host with a space", host("h evil"), 400),
        ("Host with a bad port", host("h:port"), 400),
        ("Host with port 65536", host("h:65536"), 400),
        ("Host with a broken address", host("[::1"), 400),
        ("Host percent-encoded", host("%68"), 400),
        // Connection options may not take away what the application relies on.
        ("Connection: host", get("Connection: close, host\r\n"), 400),
        ("Connection: content-length", post("Connection: content-length\r\nContent-Length: 4\r\n", "abcd"), 400),
        ("Connection flood", get(&format!("Connection: {}\r\n", "a, ".repeat(50))), 400),
        ("Connection malformed", get("Connection: a b\r\n"), 400),
    ]
}

#[tokio::test]
async fn malformed_requests_are_refused_and_reach_nobody() {
    let rig = Rig::new(1);
    let vectors = refused();
    assert!(vectors.len() >= 60, "{}", vectors.len());
    let mut wrong = Vec::new();
    for (name, bytes, want) in &vectors {
        let response = rig.exchange(format!("{bytes}{SMUGGLED}")).await;
        let answers = response.matches("HTTP/1.1 ").count();
        if status(&response) != *want || answers != 1 || !response.contains("\r\nconnection: close\r\n") {
            wrong.push(format!("{name}: want one {want}, got {response:?}"));
        }
        for seen in rig.seen() {
            wrong.push(format!("{name}: a host saw {} {}", seen.method, seen.target));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn malformed_bodies_end_the_request_and_reach_nobody_whole() {
    let rig = Rig::new(1);
    let flood = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(20_000));
    let trailers = format!("0\r\n{}\r\n", "x: y\r\n".repeat(2000));
    for body in [
        "g\r\na\r\n0\r\n\r\n",
        "+1\r\na\r\n0\r\n\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        " 1\r\na\r\n0\r\n\r\n",
        "1 \r\na\r\n0\r\n\r\n",
        "1;ext=1\r\na\r\n0\r\n\r\n",
        "1\na\n0\n\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1\r\na0\r\n\r\n",
        "ffffffffffffffff1\r\na\r\n0\r\n\r\n",
        "-1\r\na\r\n0\r\n\r\n",
        "\r\n",
        "0\r\nContent-Length: 40\r\n\r\n",
        "0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\nHost: evil\r\n\r\n",
        "0\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n",
        "0\r\n folded\r\n\r\n",
        "0\r\nx: \0\r\n\r\n",
        "0\r\nx: y\n\r\n",
        &flood,
        &trailers,
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}{SMUGGLED}");
        let response = rig.exchange(request).await;
        assert_eq!(status(&response), 400, "{body:?}: {response}");
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{body:?}: {response}");
        for seen in rig.seen() {
            assert_eq!((seen.target.as_str(), &seen.body), ("/", &None), "{body:?}");
        }
    }
}

/// Unusual, but there is one way to read them: they arrive, exactly once, written anew.
#[tokio::test]
async fn unusual_requests_arrive_once() {
    let rig = Rig::new(1);
    let close = "Connection: close\r\n\r\n";
    for (name, bytes, target) in [
        ("absolute form", format!("GET http://h/a?b HTTP/1.1\r\nHost: h\r\n{close}"), "/a?b"),
        ("absolute form, upper case", format!("GET HTTP://H/a HTTP/1.1\r\nHost: h\r\n{close}"), "/a"),
        ("absolute form, no path", format!("GET http://h HTTP/1.1\r\nHost: h\r\n{close}"), "/"),
        ("HTTP/1.0", "GET /a HTTP/1.0\r\nHost: h\r\n\r\n".into(), "/a"),
        ("port in Host", format!("GET /a HTTP/1.1\r\nHost: h:8080\r\n{close}"), "/a"),
        ("dot after Host", format!("GET /a HTTP/1.1\r\nHost: h.\r\n{close}"), "/a"),
        ("Host in upper case", format!("GET /a HTTP/1.1\r\nHOST: H\r\n{close}"), "/a"),
        ("an address as Host", format!("GET /a HTTP/1.1\r\nHost: [::1]:80\r\n{close}"), "/a"),
        ("no space after the colon", format!("GET /a HTTP/1.1\r\nHost:h\r\n{close}"), "/a"),
        ("many spaces around a value", format!("GET /a HTTP/1.1\r\nHost: \t h \t \r\n{close}"), "/a"),
        ("a value not ASCII", format!("GET /a HTTP/1.1\r\nHost: h\r\nx: \u{e9}\r\n{close}"), "/a"),
        ("an empty value", format!("GET /a HTTP/1.1\r\nHost: h\r\nx:\r\n{close}"), "/a"),
        ("an unknown method", format!("BREW /a HTTP/1.1\r\nHost: h\r\n{close}"), "/a"),
        ("an encoded slash", format!("GET /a%2Fb HTTP/1.1\r\nHost: h\r\n{close}"), "/a%2Fb"),
        ("100 fields", format!("GET /a HTTP/1.1\r\nHost: h\r\n{}{close}", "x: 1\r\n".repeat(98)), "/a"),
        (
            "chunked in upper case",
            "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: CHUNKED\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n".to_owned(),
            "/a",
        ),
        (
            "GET with a body",
            "GET /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc".into(),
            "/a",
        ),
        (
            "a length with zeros",
            "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 003\r\nConnection: close\r\n\r\nabc".into(),
            "/a",
        ),
    ] {
        let response = rig.exchange(format!("{bytes}{SMUGGLED}")).await;
        assert_eq!(status(&response), 200, "{name}: {response}");
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{name}: {response}");
        let seen = rig.seen();
        assert_eq!(seen.len(), 1, "{name}: {seen:?}");
        assert_eq!(seen[0].target, target, "{name}");
        if bytes.contains("abc") {
            assert_eq!(seen[0].body.as_deref(), Some(b"abc".as_slice()), "{name}");
        }
    }
}

/// One byte of a good request changed: no hang, and a host sees nothing that the ingress did not write.
#[tokio::test]
async fn damaged_requests_never_become_other_requests() {
    let soon = Duration::from_millis(150);
    let rig = Rig::with(1, |config| {
        config.header_timeout = soon;
        config.body_timeout = soon;
        config.keep_alive = soon;
    });
    let request = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nX-A: b\r\nConnection: close\r\n\r\nabc";
    for at in 0..request.len() {
        for byte in [0, b'\n', b'\r', b' ', b':', b'\t', 0xff] {
            let mut damaged = request.to_vec();
            damaged[at] = byte;
            let mut response = rig.exchange(&damaged).await;
            // Without a word is closed what says nothing in time, and that is a client that was late to send.
            for _ in 0..5 {
                if response.is_empty() {
                    assert!(rig.seen().is_empty(), "{at} {byte}: it was late");
                    response = rig.exchange(&damaged).await;
                }
            }
            let seen = rig.seen();
            assert!(seen.len() <= 1, "{at} {byte}: {seen:?}");
            assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{at} {byte}: {response}");
            for seen in seen {
                assert_eq!(seen.headers.get_all("host").iter().collect::<Vec<_>>(), ["h"], "{at} {byte}");
                assert_eq!(seen.headers.get_all("sidereal-route").iter().count(), 1, "{at} {byte}");
                let length = seen.headers.get("content-length").map(|length| length.to_str().unwrap());
                assert!(matches!(length, None | Some("3")), "{at} {byte}: {length:?}");
            }
        }
    }
}
