//! `sockets` in WASI 0.3: speaks over TCP and UDP, and answers with what came back or with the error code.
wit_bindgen::generate!({
    path: "../wit/p3",
    inline: "
        package sidereal:guests;
        world guest {
            import wasi:clocks/monotonic-clock@0.3.0;
            import wasi:sockets/types@0.3.0;
            import wasi:sockets/ip-name-lookup@0.3.0;
            export wasi:http/handler@0.3.0;
        }
    ",
    world: "sidereal:guests/guest",
    generate_all,
});

#[path = "../src/query.rs"]
mod query;

use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::pin;
use std::task::Poll;

use exports::wasi::http::handler::Guest;
use query::{number, param};
use wasi::clocks::monotonic_clock;
use wasi::http::types::{self as http, Fields, Request, Response};
use wasi::sockets::ip_name_lookup::{self, resolve_addresses};
use wasi::sockets::types::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress, TcpSocket, UdpSocket,
};

const PATIENCE_NS: u64 = 5_000_000_000;

struct Sockets;

/// What a probe came to: a text, or the name of an error code.
type Told = Result<String, String>;

impl Guest for Sockets {
    async fn handle(request: Request) -> Result<Response, http::ErrorCode> {
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let text = |name: &str| param(query, name).unwrap_or_default();
        let (host, port, send) = (text("host"), number(query, "port", 0) as u16, text("send"));
        let told = match path {
            "/tcp" => tcp(&host, port, send.repeat(number(query, "times", 1) as usize)).await,
            "/hold" => hold(&host, port).await,
            "/many" => many(&host, port, number(query, "n", 1)).await,
            "/udp" => udp(&host, port, &send, true).await,
            "/udpto" => udp(&host, port, &send, false).await,
            "/udphold" => udp_hold(&host, port).await,
            "/udptwo" => udp_two(&host, port).await,
            "/lookup" => look_up(&host).await.map(|ip| ip.to_string()),
            "/bind" => bind(&host, port).await,
            "/listen" => listen(),
            "/table" => table(request, port).await,
            _ => return Err(http::ErrorCode::DestinationNotFound),
        };
        Ok(match told {
            Ok(text) => reply(200, text),
            Err(code) => reply(502, code),
        })
    }
}

fn reply(status: u16, text: String) -> Response {
    let (mut body, contents) = wit_stream::new();
    let (trailers, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(contents), no_trailers);
    response.set_status_code(status).expect("a valid status");
    wit_bindgen::spawn_local(async move {
        body.write_all(text.into_bytes()).await;
        drop(body);
        let _ = trailers.write(Ok(None)).await;
    });
    response
}

/// The name of an error code, as its contract writes it.
fn name(code: ErrorCode) -> String {
    match code {
        ErrorCode::AccessDenied => "access-denied",
        ErrorCode::InvalidArgument => "invalid-argument",
        ErrorCode::InvalidState => "invalid-state",
        ErrorCode::RemoteUnreachable => "remote-unreachable",
        ErrorCode::ConnectionRefused => "connection-refused",
        ErrorCode::Timeout => "timeout",
        ErrorCode::Other(Some(why)) => return why,
        other => return format!("{other:?}"),
    }
    .to_owned()
}

/// Waits for an answer, but not for ever.
async fn in_time<T>(answer: impl Future<Output = Result<T, ErrorCode>>) -> Result<T, String> {
    let (mut answer, mut late) = (pin!(answer), pin!(monotonic_clock::wait_for(PATIENCE_NS)));
    poll_fn(|cx| match answer.as_mut().poll(cx) {
        Poll::Ready(answer) => Poll::Ready(answer.map_err(name)),
        Poll::Pending => late.as_mut().poll(cx).map(|()| Err("no answer".to_owned())),
    })
    .await
}

async fn look_up(host: &str) -> Result<IpAddr, String> {
    let found = resolve_addresses(host.to_owned()).await.map_err(|code| match code {
        ip_name_lookup::ErrorCode::AccessDenied => "access-denied".to_owned(),
        ip_name_lookup::ErrorCode::InvalidArgument => "invalid-argument".to_owned(),
        other => format!("{other:?}"),
    })?;
    match found[..] {
        [IpAddress::Ipv4((a, b, c, d))] => Ok(IpAddr::from([a, b, c, d])),
        [IpAddress::Ipv6((a, b, c, d, e, f, g, h))] => Ok(IpAddr::from([a, b, c, d, e, f, g, h])),
        _ => Err(format!("{} addresses", found.len())),
    }
}

/// What a standard library does: a literal is taken as it is, anything else is looked up.
async fn remote(host: &str, port: u16) -> Result<(IpSocketAddress, IpAddressFamily), String> {
    let ip = match host.parse() {
        Ok(ip) => ip,
        Err(_) => look_up(host).await?,
    };
    Ok(match ip {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            (IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: (a, b, c, d) }), IpAddressFamily::Ipv4)
        }
        IpAddr::V6(v6) => {
            let [a, b, c, d, e, f, g, h] = v6.segments();
            let address = (a, b, c, d, e, f, g, h);
            let v6 = Ipv6SocketAddress { port, flow_info: 0, address, scope_id: 0 };
            (IpSocketAddress::Ipv6(v6), IpAddressFamily::Ipv6)
        }
    })
}

async fn connect(host: &str, port: u16) -> Result<TcpSocket, String> {
    let (to, family) = remote(host, port).await?;
    let socket = TcpSocket::create(family).map_err(name)?;
    socket.connect(to).await.map_err(name)?;
    // Its own address is hidden, the other one is as it was asked for, and it connects once.
    let own = socket.get_local_address().map_err(name)?;
    assert!(matches!(own, IpSocketAddress::Ipv4(own) if own.address == (0, 0, 0, 0) && own.port > 0));
    assert_eq!(format!("{:?}", socket.get_remote_address().map_err(name)?), format!("{to:?}"));
    assert_eq!(socket.connect(to).await.map_err(name), Err("invalid-state".to_owned()));
    Ok(socket)
}

/// Sends, says that this was all, and reads to the end, both at once.
async fn tcp(host: &str, port: u16, send: String) -> Told {
    let socket = connect(host, port).await?;
    let (mut out, outgoing) = wit_stream::new();
    let sent = socket.send(outgoing);
    let (incoming, ended) = socket.receive();
    // Each way is given out once.
    let (nothing, refused) = socket.receive();
    assert_eq!((nothing.collect().await.len(), refused.await.map_err(name)), (0, Err("invalid-state".to_owned())));
    let (_nobody, nothing) = wit_stream::new();
    assert_eq!(socket.send(nothing).await.map_err(name), Err("invalid-state".to_owned()));
    // The streams outlive the socket they are of.
    drop(socket);
    wit_bindgen::spawn_local(async move {
        out.write_all(send.into_bytes()).await;
    });
    let received = incoming.collect().await;
    sent.await.map_err(name)?;
    ended.await.map_err(name)?;
    Ok(String::from_utf8_lossy(&received).into_owned())
}

/// Stays connected until the other side, or somebody between, ends it.
async fn hold(host: &str, port: u16) -> Told {
    let socket = connect(host, port).await?;
    let (mut out, outgoing) = wit_stream::new();
    let _sent = socket.send(outgoing);
    let (mut incoming, _ended) = socket.receive();
    out.write_all(b"here".to_vec()).await;
    while incoming.next().await.is_some() {}
    Ok("ended".to_owned())
}

/// Has so many connections open at once.
async fn many(host: &str, port: u16, n: u64) -> Told {
    let mut open = Vec::new();
    for _ in 0..n {
        open.push(connect(host, port).await?);
    }
    Ok(open.len().to_string())
}

async fn udp(host: &str, port: u16, send: &str, connected: bool) -> Told {
    let (to, family) = remote(host, port).await?;
    let socket = UdpSocket::create(family).map_err(name)?;
    assert_eq!(socket.receive().await.map(drop).map_err(name), Err("invalid-state".to_owned()));
    if connected {
        socket.connect(to).map_err(name)?;
    }
    in_time(socket.send(send.as_bytes().to_vec(), (!connected).then_some(to))).await?;
    let (data, from) = in_time(socket.receive()).await?;
    assert_eq!(format!("{from:?}"), format!("{to:?}"));
    Ok(String::from_utf8_lossy(&data).into_owned())
}

/// Takes what comes until nothing can come any more.
async fn udp_hold(host: &str, port: u16) -> Told {
    let (to, family) = remote(host, port).await?;
    let socket = UdpSocket::create(family).map_err(name)?;
    socket.connect(to).map_err(name)?;
    in_time(socket.send(b"here".to_vec(), None)).await?;
    loop {
        socket.receive().await.map_err(name)?;
    }
}

/// One who may not be sent to does not stand in the way of one who may, and who is connected anew hears the other.
async fn udp_two(host: &str, port: u16) -> Told {
    let (to, family) = remote(host, port).await?;
    let (other, _) = remote("127.0.0.2", port).await?;
    let socket = UdpSocket::create(family).map_err(name)?;
    let refused = in_time(socket.send(b"one".to_vec(), Some(other))).await;
    in_time(socket.send(b"two".to_vec(), Some(to))).await?;
    let (first, _) = in_time(socket.receive()).await?;
    socket.connect(to).map_err(name)?;
    let elsewhere = in_time(socket.send(b"three".to_vec(), Some(other))).await;
    in_time(socket.send(b"four".to_vec(), Some(to))).await?;
    let (second, _) = in_time(socket.receive()).await?;
    socket.disconnect().map_err(name)?;
    let nowhere = in_time(socket.send(b"five".to_vec(), None)).await;
    let text = |data: &[u8]| String::from_utf8_lossy(data).into_owned();
    Ok(format!("{refused:?} {} {elsewhere:?} {} {nowhere:?}", text(&first), text(&second)))
}

async fn bind(host: &str, port: u16) -> Told {
    let (at, family) = remote(host, port).await?;
    UdpSocket::create(family).and_then(|socket| socket.bind(at)).map_err(name)?;
    TcpSocket::create(family).and_then(|socket| socket.bind(at)).map_err(name)?;
    Ok("bound".to_owned())
}

fn listen() -> Told {
    TcpSocket::create(IpAddressFamily::Ipv4).and_then(|socket| socket.listen()).map_err(name)?;
    Ok("listening".to_owned())
}

/// Each line of the body is a host; answers with what TCP and UDP made of each.
async fn table(request: Request, port: u16) -> Told {
    let (_result, processed) = wit_future::new(|| Ok(()));
    let (hosts, _trailers) = Request::consume_body(request, processed);
    let mut told = String::new();
    for host in String::from_utf8_lossy(&hosts.collect().await).lines() {
        let connected = connect(host, port).await.map(drop).err();
        let sent = udp(host, port, "x", true).await.err();
        told.push_str(&format!("{connected:?} {sent:?}\n"));
    }
    Ok(told)
}

export!(Sockets);
