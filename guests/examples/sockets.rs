//! Speaks over TCP and UDP sockets, and answers with what came back or with the error code. `/table` tries many hosts.
use std::net::IpAddr;

use guests::wasi::clocks::monotonic_clock;
use guests::wasi::http::types::IncomingBody;
use guests::wasi::io::poll::{Pollable, poll};
use guests::wasi::io::streams::StreamError;
use guests::wasi::sockets::instance_network::instance_network;
use guests::wasi::sockets::ip_name_lookup::resolve_addresses;
use guests::wasi::sockets::network::{
    ErrorCode, IpAddress, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress,
};
use guests::wasi::sockets::tcp::{InputStream, OutputStream, ShutdownType, TcpSocket};
use guests::wasi::sockets::tcp_create_socket::create_tcp_socket;
use guests::wasi::sockets::udp::{OutgoingDatagram, UdpSocket};
use guests::wasi::sockets::udp_create_socket::create_udp_socket;
use guests::{Guest, IncomingRequest, ResponseOutparam, number, param, reply};

const PATIENCE_NS: u64 = 5_000_000_000;

struct Sockets;

impl Guest for Sockets {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (path, query) = guests::target(&request);
        let text = |name: &str| param(&query, name).unwrap_or_default();
        let (host, port, send) = (text("host"), number(&query, "port", 0) as u16, text("send"));
        let result = match path.as_str() {
            "/tcp" => tcp(&host, port, &send),
            "/hold" => hold(&host, port),
            "/udp" => udp(&host, port, &send, true),
            "/udpto" => udp(&host, port, &send, false),
            "/lookup" => look_up(&host).map(|ip| ip.to_string()),
            "/bind" => bind(&host, port).map(|()| "bound".to_owned()),
            "/listen" => listen().map(|()| "listening".to_owned()),
            "/table" => Ok(table(&request, port)),
            _ => return reply(out, 404, "no such probe"),
        };
        match result {
            Ok(text) => reply(out, 200, &text),
            Err(code) => reply(out, 502, &format!("{code:?}")),
        }
    }
}

fn look_up(host: &str) -> Result<IpAddr, ErrorCode> {
    let answers = resolve_addresses(&instance_network(), host)?;
    match answers.resolve_next_address()? {
        Some(IpAddress::Ipv4((a, b, c, d))) => Ok(IpAddr::from([a, b, c, d])),
        Some(IpAddress::Ipv6((a, b, c, d, e, f, g, h))) => Ok(IpAddr::from([a, b, c, d, e, f, g, h])),
        None => Err(ErrorCode::NameUnresolvable),
    }
}

/// What a standard library does: a literal is taken as it is, anything else is looked up.
fn remote(host: &str, port: u16) -> Result<(IpSocketAddress, IpAddressFamily), ErrorCode> {
    let ip = match host.parse() {
        Ok(ip) => ip,
        Err(_) => look_up(host)?,
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

/// Whether it became ready in time.
fn wait(ready: &Pollable) -> bool {
    let late = monotonic_clock::subscribe_duration(PATIENCE_NS);
    poll(&[ready, &late]).contains(&0)
}

fn connect(host: &str, port: u16) -> Result<(TcpSocket, InputStream, OutputStream), ErrorCode> {
    let (to, family) = remote(host, port)?;
    let socket = create_tcp_socket(family)?;
    socket.start_connect(&instance_network(), to)?;
    loop {
        match socket.finish_connect() {
            Ok((input, output)) => return Ok((socket, input, output)),
            Err(ErrorCode::WouldBlock) if wait(&socket.subscribe()) => {}
            Err(code) => return Err(code),
        }
    }
}

/// Sends, says that this was all, and reads to the end.
fn tcp(host: &str, port: u16, send: &str) -> Result<String, ErrorCode> {
    let (socket, input, output) = connect(host, port)?;
    for part in send.as_bytes().chunks(4096) {
        output.blocking_write_and_flush(part).map_err(|_| ErrorCode::ConnectionReset)?;
    }
    socket.shutdown(ShutdownType::Send)?;
    // Its own address is hidden, the other one is as it was asked for.
    assert!(
        matches!(socket.local_address()?, IpSocketAddress::Ipv4(own) if own.address == (0, 0, 0, 0) && own.port > 0)
    );
    let mut received = Vec::new();
    loop {
        match input.blocking_read(1 << 16) {
            Ok(bytes) => received.extend(bytes),
            Err(StreamError::Closed) => return Ok(String::from_utf8_lossy(&received).into_owned()),
            Err(StreamError::LastOperationFailed(_)) => return Err(ErrorCode::ConnectionReset),
        }
    }
}

/// Stays connected until the other side, or somebody between, ends it.
fn hold(host: &str, port: u16) -> Result<String, ErrorCode> {
    let (_socket, input, output) = connect(host, port)?;
    output.blocking_write_and_flush(b"here").map_err(|_| ErrorCode::ConnectionReset)?;
    while input.blocking_read(1024).is_ok() {}
    Ok("ended".to_owned())
}

fn udp(host: &str, port: u16, send: &str, connected: bool) -> Result<String, ErrorCode> {
    let (to, family) = remote(host, port)?;
    let socket = any_port(family)?;
    let (incoming, outgoing) = socket.stream(connected.then_some(to))?;
    let datagram = OutgoingDatagram { data: send.as_bytes().to_vec(), remote_address: (!connected).then_some(to) };
    while outgoing.check_send()? == 0 {
        outgoing.subscribe().block();
    }
    outgoing.send(&[datagram])?;
    loop {
        if let Some(datagram) = incoming.receive(1)?.first() {
            return Ok(String::from_utf8_lossy(&datagram.data).into_owned());
        }
        if !wait(&incoming.subscribe()) {
            return Err(ErrorCode::Timeout);
        }
    }
}

fn any_port(family: IpAddressFamily) -> Result<UdpSocket, ErrorCode> {
    let socket = create_udp_socket(family)?;
    let any = match family {
        IpAddressFamily::Ipv4 => IpSocketAddress::Ipv4(Ipv4SocketAddress { port: 0, address: (0, 0, 0, 0) }),
        IpAddressFamily::Ipv6 => IpSocketAddress::Ipv6(Ipv6SocketAddress {
            port: 0,
            flow_info: 0,
            address: (0, 0, 0, 0, 0, 0, 0, 0),
            scope_id: 0,
        }),
    };
    socket.start_bind(&instance_network(), any)?;
    socket.finish_bind()?;
    Ok(socket)
}

fn bind(host: &str, port: u16) -> Result<(), ErrorCode> {
    let (at, family) = remote(host, port)?;
    create_udp_socket(family)?.start_bind(&instance_network(), at)?;
    create_tcp_socket(family)?.start_bind(&instance_network(), at)
}

fn listen() -> Result<(), ErrorCode> {
    create_tcp_socket(IpAddressFamily::Ipv4)?.start_listen()
}

/// Each line of the body is a host; answers with what TCP and UDP made of each.
fn table(request: &IncomingRequest, port: u16) -> String {
    let body = request.consume().expect("the body is taken once");
    let mut hosts = Vec::new();
    {
        let stream = body.stream().expect("the stream is taken once");
        while let Ok(bytes) = stream.blocking_read(1 << 16) {
            hosts.extend(bytes);
        }
    }
    drop(IncomingBody::finish(body));
    let mut told = String::new();
    for host in String::from_utf8_lossy(&hosts).lines() {
        let connected = connect(host, port).map(drop).err();
        let sent = udp(host, port, "x", true).err();
        told.push_str(&format!("{connected:?} {sent:?}\n"));
    }
    told
}

guests::export!(Sockets);
