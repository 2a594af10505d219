//! Request heads of HTTP/2, after hyper has read them: they are accepted for the same host as the same request written in
//! HTTP/1, or not at all.

use http::Request;
use node::ingress::reading::{head, head_of_parts};

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::texts(&[
        "GET\nhttp://a.example/x?y\naccept: */*",
        "POST\nhttp://a:80/\nhost: a:80\ncontent-length: 3",
        "GET\nhttp://a/\nhost: b",
        "GET\n/only\nhost: a",
        "GET\nhttp://u@h/\n",
        "GET\nhttp://a/%2e%2e/x\nhost: a\nhost: a",
        "CONNECT\na:80\n",
        // Longer than a method may be: HTTP/2 took it once, where HTTP/1 refused it.
        "MMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMM\n/\nhost: a",
        "GET\nhttp://a/\ntransfer-encoding: chunked",
        "GET\nhttp://a/\nexpect: 100-continue\nupgrade: h2c",
        "GET\nhttp://[::1]:1/\nx_y: z\ntransfer_encoding: chunked",
    ])
}

pub(super) fn run(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let (Some(method), Some(target)) = (lines.next(), lines.next()) else { return };
    let fields: Vec<(&[u8], &[u8])> = lines
        .filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        })
        .collect();
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in &fields {
        request = request.header(*name, *value);
    }
    let Ok(request) = request.body(()) else { return };
    let (parts, ()) = request.into_parts();
    let Ok(ours) = head_of_parts(&parts) else { return };
    // The same request in the words of HTTP/1.
    let mut text = [parts.method.as_str().as_bytes(), b" "].concat();
    text.extend_from_slice(parts.uri.path_and_query().map_or("/", |path| path.as_str()).as_bytes());
    text.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    text.extend_from_slice(ours.host.as_bytes());
    for (name, value) in &parts.headers {
        // A second Host would be refused; Connection and its like mean nothing in HTTP/2 and are dropped there.
        let name = name.as_str();
        if ["host", "connection", "keep-alive", "proxy-connection", "content-length", "expect"].contains(&name) {
            continue;
        }
        for part in [b"\r\n", name.as_bytes(), b": ", value.as_bytes()] {
            text.extend_from_slice(part);
        }
    }
    text.extend_from_slice(b"\r\n\r\n");
    match head(&text, text.len()) {
        Ok(Some(same)) => {
            assert_eq!(String::from_utf8_lossy(&same.host_name), ours.host_name, "another host in HTTP/1");
            assert_eq!(String::from_utf8_lossy(&same.path_and_query), ours.path_and_query, "another path in HTTP/1");
        }
        other => panic!("accepted in HTTP/2, in HTTP/1 {other:?}: {}", String::from_utf8_lossy(&text)),
    }
}
