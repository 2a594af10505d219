//! What gets through and what does not: routes, fields, bodies in both directions, connections that are used again.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::rig::{BODY_LIMIT, Rig, body, read_to_end, read_until, status, table};

#[tokio::test]
async fn routes_decide_who_gets_a_request() {
    let rig = Rig::new(1);
    for (host, path, want) in
        [("h", "/", "web"), ("h", "/read/x", "reader"), ("h", "/%72ead", "reader"), ("a.b.wild.test", "/x", "wild")]
    {
        let response = rig.exchange(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(status(&response), 200, "{response}");
        let seen = rig.seen();
        assert_eq!(seen[0].headers["sidereal-route"], format!("shop/1/{want}"));
        assert_eq!(seen[0].target, path);
    }
}

#[tokio::test]
async fn unknown_hosts_and_wrong_methods_are_told_apart() {
    let rig = Rig::new(1);
    let response = rig.exchange("GET /x HTTP/1.1\r\nHost: nobody.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(status(&response), 404);
    assert!(body(&response).contains("http://nobody.test/x\nnext: `sidereal route list`"), "{response}");
    assert!(response.contains("sidereal-fault: not-found\r\n"), "{response}");

    // Both on one connection: it stays usable.
    let mut stream = rig.connect().await;
    stream.write_all(b"DELETE /read HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let response = read_until(&mut stream, "answers GET, HEAD\n").await;
    assert_eq!(status(&response), 405);
    assert!(response.contains("allow: GET, HEAD\r\n"), "{response}");
    stream.write_all(b"HEAD /nobody HTTP/1.1\r\nHost: nobody.test\r\n\r\n").await.unwrap();
    let response = read_until(&mut stream, "\r\n\r\n").await;
    assert_eq!(status(&response), 404);
    stream.write_all(b"HEAD /read HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
    let response = read_to_end(&mut stream).await;
    assert_eq!((status(&response), body(&response)), (200, ""));
    assert!(response.contains("content-length: 17\r\n"), "{response}");
}

#[tokio::test]
async fn a_new_table_holds_for_the_next_request_of_an_open_connection() {
    let rig = Rig::new(1);
    let mut stream = rig.connect().await;
    for revision in ["1", "2"] {
        rig.routes.store(table(&rig.shards, revision));
        stream.write_all(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        read_until(&mut stream, "GET /x from 0").await;
        assert_eq!(rig.seen()[0].headers["sidereal-route"], format!("shop/{revision}/web"));
    }
}

#[tokio::test]
async fn what_a_client_says_about_itself_is_not_believed() {
    let rig = Rig::new(1);
    let response = rig
        .exchange(
            "GET / HTTP/1.1\r\nHost: h:81\r\nX-Forwarded-For: 8.8.8.8\r\nX-Forwarded-Proto: https\r\n\
             X-Forwarded-Host: evil\r\nX-Forwarded-Prefix: /evil\r\nForwarded: for=8.8.8.8\r\nx_forwarded_for: 8.8.8.8\r\n\
             X-Real-IP: 8.8.8.8\r\nSidereal-Route: shop/9/admin\r\nsidereal-fault: x\r\nsidereal_route: y\r\n\
             Keep-Alive: timeout=5\r\nTE: trailers\r\nTrailer: x\r\nProxy-Authorization: Basic eDp5\r\n\
             Proxy-Connection: keep-alive\r\nConnection: close, x-hop, authorization-x\r\nX-Hop: 1\r\n\
             Authorization-X: 1\r\nAuthorization: Bearer t\r\nCookie: a=b\r\nCookie: c=d\r\nX-Kept: yes\r\n\r\n",
        )
        .await;
    assert_eq!(status(&response), 200, "{response}");
    assert!(!response.to_lowercase().contains("sidereal-"), "{response}");
    assert!(response.contains("x-from-host: 0\r\n"), "{response}");
    let seen = rig.seen();
    let mut names: Vec<_> = seen[0].headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    let want = [
        "authorization",
        "cookie",
        "host",
        "sidereal-route",
        "traceparent",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-kept",
    ];
    assert_eq!(names, want);
    for (name, value) in [
        ("host", "h:81"),
        ("sidereal-route", "shop/1/web"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "h:81"),
    ] {
        assert_eq!(seen[0].headers.get_all(name).iter().collect::<Vec<_>>(), [value], "{name}");
    }
    assert_eq!(seen[0].headers.get_all("cookie").iter().count(), 2);
}

#[tokio::test]
async fn traces_are_carried_on_or_begun() {
    let rig = Rig::new(1);
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let ask = |fields: String| format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{fields}\r\n");
    rig.exchange(ask(format!("Traceparent: {good}\r\nTracestate: a=b\r\n"))).await;
    let seen = rig.seen();
    assert_eq!(seen[0].headers["traceparent"], good);
    assert_eq!(seen[0].headers["tracestate"], "a=b");
    let two = format!("traceparent: {good}\r\ntraceparent: {good}\r\ntracestate: a=b\r\n");
    for fields in ["".into(), "traceparent: 00-junk\r\ntracestate: a=b\r\n".into(), "tracestate: a=b\r\n".into(), two] {
        rig.exchange(ask(fields)).await;
        let seen = rig.seen();
        let all: Vec<_> = seen[0].headers.get_all("traceparent").iter().collect();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].len(), 55);
        assert_ne!(all[0], good);
        assert!(!seen[0].headers.contains_key("tracestate"));
    }
}

#[tokio::test]
async fn bodies_stream_in_both_directions_at_once() {
    let rig = Rig::new(1);
    let mut stream = rig.connect().await;
    stream.write_all(b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    // Each piece comes back before the next one is sent.
    for (n, piece) in ["one", "two", "three"].into_iter().enumerate() {
        stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, &format!("{piece}\r\n")).await;
        assert_eq!(answer.contains("HTTP/1.1 200 OK\r\n"), n == 0, "{answer}");
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(read_until(&mut stream, "0\r\n\r\n").await, "0\r\n\r\n");
}

#[tokio::test]
async fn large_bodies_arrive_whole() {
    let rig = Rig::new(1);
    let sent: Vec<u8> = (0..700_000u32).map(|n| (n % 253) as u8).collect();
    for chunked in [false, true] {
        let mut stream = rig.connect().await;
        let framing =
            if chunked { "Transfer-Encoding: chunked".into() } else { format!("Content-Length: {}", sent.len()) };
        let head = format!("PUT /x HTTP/1.1\r\nHost: h\r\n{framing}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        if chunked {
            for piece in sent.chunks(10_007) {
                stream.write_all(format!("{:X}\r\n", piece.len()).as_bytes()).await.unwrap();
                stream.write_all(piece).await.unwrap();
                stream.write_all(b"\r\n").await.unwrap();
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        } else {
            stream.write_all(&sent).await.unwrap();
        }
        let response = read_to_end(&mut stream).await;
        assert_eq!(status(&response), 200, "{response}");
        assert_eq!(rig.seen()[0].body.as_deref(), Some(sent.as_slice()));
    }
}

#[tokio::test]
async fn large_responses_arrive_whole_also_at_a_slow_reader() {
    let rig = Rig::new(1);
    let mut stream = rig.connect().await;
    // An HTTP/1.0 client: no chunks, the end of the connection ends the body.
    stream.write_all(b"GET /large HTTP/1.0\r\nHost: h\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    let mut piece = vec![0; 300_000];
    loop {
        let count = stream.read(&mut piece).await.unwrap();
        if count == 0 {
            break;
        }
        bytes.extend_from_slice(&piece[..count]);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let text = String::from_utf8(bytes).unwrap();
    assert!(!text.contains("transfer-encoding"), "{}", &text[..200]);
    assert_eq!(body(&text).len(), 256 * 64 * 1024);
    assert!(body(&text).bytes().all(|byte| byte == b'x'));
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused() {
    let rig = Rig::new(1);
    let declared = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", BODY_LIMIT + 1);
    let response = rig.exchange(declared).await;
    assert_eq!(status(&response), 413, "{response}");
    assert!(rig.seen().is_empty());

    let piece = vec![b'x'; 64 * 1024];
    let mut stream = rig.connect().await;
    stream.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let writing = async {
        for _ in 0..=BODY_LIMIT / 65536 {
            let sent = async {
                writer.write_all(b"10000\r\n").await?;
                writer.write_all(&piece).await?;
                writer.write_all(b"\r\n").await
            };
            if sent.await.is_err() {
                break;
            }
        }
    };
    let mut response = String::new();
    let (_, read) = tokio::join!(writing, reader.read_to_string(&mut response));
    read.unwrap();
    assert_eq!(status(&response), 413, "{response}");
    assert_eq!(rig.seen()[0].body, None);
}

#[tokio::test]
async fn a_client_that_waits_for_100_gets_it_once_the_request_is_accepted() {
    let rig = Rig::new(1);
    let mut stream = rig.connect().await;
    let head = b"POST /x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\n";
    stream.write_all(head).await.unwrap();
    assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").await.unwrap();
    assert_eq!(status(&read_to_end(&mut stream).await), 200);
    let seen = rig.seen();
    assert_eq!(seen[0].body.as_deref(), Some(b"abc".as_slice()));
    assert!(!seen[0].headers.contains_key("expect"));

    let head = "POST /x HTTP/1.1\r\nHost: nobody.test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    assert_eq!(status(&rig.exchange(head).await), 404);
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_body_ends_the_connection() {
    let rig = Rig::new(1);
    let mut stream = rig.connect().await;
    stream.write_all(b"POST /unread HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\nsome").await.unwrap();
    let response = read_to_end(&mut stream).await;
    assert_eq!((status(&response), body(&response)), (403, "enough"));
    assert!(response.contains("connection: close\r\n"), "{response}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let rig = Rig::new(1);
    let request = |n: u32| format!("POST /{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab");
    let all: String = (0..20).map(request).collect();
    let response = rig.exchange(all + "GET /none HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    let order: Vec<usize> = (0..20).map(|n| response.find(&format!("POST /{n} from 0")).unwrap()).collect();
    assert!(order.is_sorted(), "{order:?}");
    assert!(response.contains("HTTP/1.1 204 No Content\r\n"), "{response}");
    assert_eq!(rig.seen().len(), 21);
}

#[tokio::test]
async fn a_call_from_inside_looks_like_any_other() {
    let rig = Rig::new(1);
    let table = rig.routes.load();
    let target = table.entries()[0].target.clone();
    let all = api::shares::Shares::new(2048);
    let room = || node::ingress::Room { most: 1024, held: all.hold(&"t".parse().unwrap()) };
    let request = http::Request::post("http://h/x?y").header("sidereal-route", "forged").body("abc".into()).unwrap();
    let response = node::ingress::forward(&target, request, Duration::from_secs(5), room()).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.body(), "POST /x?y from 0");
    assert_eq!(all.free(), 2048 - response.body().len(), "its room is its own for as long as it is there");
    drop(response);
    assert_eq!(all.free(), 2048);
    let seen = rig.seen();
    assert_eq!(seen[0].headers["sidereal-route"], "shop/1/web");
    assert_eq!(seen[0].headers["host"], "h");
    assert_eq!(seen[0].body.as_deref(), Some(b"abc".as_slice()));

    let request = http::Request::get("http://h/a/../b").body("".into()).unwrap();
    assert_eq!(node::ingress::forward(&target, request, Duration::from_secs(5), room()).await.status(), 400);
    let request = http::Request::get("http://h/large").body("".into()).unwrap();
    let response = node::ingress::forward(&target, request, Duration::from_secs(5), room()).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()[api::agent::FAULT_HEADER]),
        (502, &"too-large".parse().unwrap())
    );
    drop(response);
    assert_eq!(all.free(), 2048);
    let request = http::Request::get("http://h/hang").body("".into()).unwrap();
    assert_eq!(node::ingress::forward(&target, request, Duration::from_millis(100), room()).await.status(), 504);
}

#[tokio::test]
async fn answers_to_the_calls_of_one_tenant_leave_room_for_those_of_others() {
    let rig = Rig::new(1);
    let target = rig.routes.load().entries()[0].target.clone();
    let all = api::shares::Shares::new(64);
    let call = async |tenant: &str| {
        let room = node::ingress::Room { most: 64, held: all.hold(&tenant.parse().unwrap()) };
        let request = http::Request::post("http://h/x?y").body("abc".into()).unwrap();
        node::ingress::forward(&target, request, Duration::from_secs(60), room).await
    };
    // Nobody reads them.
    let mut greedy = Vec::new();
    let refused = loop {
        match call("greedy").await {
            answer if answer.status() == 200 => greedy.push(answer),
            refused => break refused,
        }
    };
    assert_eq!((greedy.len(), refused.status().as_u16()), (2, 503));
    assert_eq!(call("other").await.status(), 200);
}
