//! Outgoing HTTP against real servers on loopback.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use providers::dial::{Caller, DialError};
use providers::http_out::{HttpOut, MAX_OPEN, Tls, public_roots};
use runtime::{Bindings, HttpBody, Outbound, OutboundError, OutboundOptions};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{Direct, Guest};

type Seen = Arc<Mutex<Vec<http::request::Parts>>>;

/// Answers by path, and remembers the heads it saw.
async fn server() -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let heads = seen.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let heads = heads.clone();
            let service = service_fn(move |request: Request<Incoming>| answer(request, heads.clone()));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, seen)
}

async fn answer(request: Request<Incoming>, heads: Seen) -> Result<Response<HttpBody>, Infallible> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    heads.lock().unwrap().push(head);
    let text = |text: &str| Full::new(Bytes::from(text.to_owned())).map_err(|never| match never {}).boxed_unsync();
    Ok(match path.as_str() {
        "/redirect" => Response::builder().status(302).header("location", "/elsewhere").body(text("")).unwrap(),
        "/silent" => std::future::pending().await,
        "/stall" => {
            let frames = futures::stream::unfold(0, |n| async move {
                if n > 0 {
                    std::future::pending::<()>().await;
                }
                Some((Ok(Frame::data(Bytes::from_static(b"first"))), n + 1))
            });
            Response::new(StreamBody::new(frames).boxed_unsync())
        }
        "/echo" => {
            let body = body.collect().await.unwrap().to_bytes();
            Response::builder()
                .header("keep-alive", "timeout=3")
                .body(Full::new(body).map_err(|n| match n {}).boxed_unsync())
                .unwrap()
        }
        _ => Response::new(text("hello")),
    })
}

fn client(allow: &[&str], dialer: Arc<Direct>) -> HttpOut {
    client_with(allow, dialer, Tls::new(public_roots()).unwrap())
}

fn client_with(allow: &[&str], dialer: Arc<Direct>, tls: Tls) -> HttpOut {
    let allow: Vec<_> = allow.iter().map(|host| (*host).to_owned()).collect();
    HttpOut::new("shop".parse().unwrap(), "web".parse().unwrap(), &allow, tls, dialer).unwrap()
}

fn get(uri: &str) -> Request<HttpBody> {
    Request::get(uri).body(Full::default().map_err(|never| match never {}).boxed_unsync()).unwrap()
}

async fn text(body: HttpBody) -> String {
    String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

const ANY: OutboundOptions = OutboundOptions { connect: None, first_byte: None, between_bytes: None };

#[tokio::test]
async fn only_what_is_allowed_is_dialled_and_a_connection_is_used_again() {
    let (address, seen) = server().await;
    let dialer = Direct::to(address);
    let client = client(&["http://api.example:8080"], dialer.clone());
    for uri in
        ["http://other.example:8080/", "http://api.example/", "https://api.example:8080/", "http://api.example:8081/"]
    {
        assert_eq!(client.send(get(uri), ANY).await.unwrap_err(), OutboundError::Denied, "{uri}");
    }
    assert_eq!(dialer.dials.load(SeqCst), 0);
    for _ in 0..3 {
        let response = client.send(get("http://api.example:8080/x?y=z"), ANY).await.unwrap();
        assert_eq!(text(response.into_body()).await, "hello");
    }
    assert_eq!(dialer.dials.load(SeqCst), 1);
    let asked = dialer.asked.lock().unwrap()[0].clone();
    assert_eq!((asked.host.as_str(), asked.port), ("api.example", 8080));
    assert_eq!(asked.caller, Caller::Component("web".parse().unwrap()));
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].uri, "/x?y=z");
    assert_eq!(seen[0].headers["host"], "api.example:8080");
}

#[tokio::test]
async fn headers_of_one_connection_stay_on_it_and_the_host_is_the_one_that_was_checked() {
    let (address, seen) = server().await;
    let client = client(&["http://api.example"], Direct::to(address));
    let mut request = get("http://api.example/echo");
    *request.body_mut() = Full::new(Bytes::from_static(b"body")).map_err(|never| match never {}).boxed_unsync();
    for (name, value) in [
        ("host", "evil.example"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("te", "trailers"),
        ("proxy-authorization", "secret"),
        ("transfer-encoding", "chunked"),
        ("x-kept", "2"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let response = client.send(request, ANY).await.unwrap();
    assert!(!response.headers().contains_key("keep-alive"));
    assert_eq!(text(response.into_body()).await, "body");
    let seen = seen.lock().unwrap();
    let headers = &seen[0].headers;
    assert_eq!(headers["host"], "api.example");
    assert_eq!(headers["x-kept"], "2");
    for gone in ["x-hop", "te", "proxy-authorization", "transfer-encoding"] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
}

#[tokio::test]
async fn a_redirect_is_the_guests_to_follow() {
    let (address, seen) = server().await;
    let client = client(&["http://api.example"], Direct::to(address));
    assert_eq!(client.send(get("http://api.example/redirect"), ANY).await.unwrap().status(), 302);
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn every_wait_has_its_limit() {
    let (address, _) = server().await;
    let dialer = Direct::to(address);
    let client = client(&["http://api.example"], dialer.clone());
    let short = Some(Duration::from_millis(80));
    let start = Instant::now();

    let options = OutboundOptions { first_byte: short, ..ANY };
    let failed = client.send(get("http://api.example/silent"), options).await.unwrap_err();
    assert_eq!(failed, OutboundError::ResponseTimeout);

    let options = OutboundOptions { between_bytes: Some(Duration::from_secs(4)), ..ANY };
    let mut body = client.send(get("http://api.example/stall"), options).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    assert!(body.frame().await.unwrap().is_err());

    *dialer.refuse.lock().unwrap() = Some(DialError::TimedOut { ms: 0 });
    let failed = client.send(get("http://api.example/"), OutboundOptions { connect: short, ..ANY }).await.unwrap_err();
    assert_eq!(failed, OutboundError::ConnectTimeout);
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

/// A guest that waits for 80 ms waits no longer because to connect may take seconds; nor where that is over already.
#[tokio::test]
async fn the_time_to_connect_is_no_part_of_the_time_to_the_first_byte() {
    let (address, seen) = server().await;
    let dialer = Direct::to(address);
    let client = client(&["http://api.example", "http://away.example"], dialer.clone());
    for pooled in [false, true] {
        *dialer.refuse.lock().unwrap() = None;
        if pooled {
            text(client.send(get("http://api.example/"), ANY).await.unwrap().into_body()).await;
        }
        let heads = seen.lock().unwrap().len();
        let options = OutboundOptions { first_byte: Some(Duration::from_millis(80)), ..ANY };
        let silent = client.send(get("http://api.example/silent"), options);
        // Begun after it, and given up after the time to connect.
        let connecting = async {
            while seen.lock().unwrap().len() == heads {
                tokio::task::yield_now().await;
            }
            *dialer.refuse.lock().unwrap() = Some(DialError::TimedOut { ms: 0 });
            client.send(get("http://away.example/"), ANY).await.map(|_| ())
        };
        let failed = tokio::select! {
            biased;
            failed = silent => failed.unwrap_err(),
            other = connecting => panic!("it waited longer than {other:?}"),
        };
        assert_eq!(failed, OutboundError::ResponseTimeout, "pooled: {pooled}");
    }
    let asked = dialer.asked.lock().unwrap().iter().filter(|target| target.host == "api.example").count();
    assert_eq!(asked, 2, "one connection was used again");
}

#[tokio::test]
async fn failures_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialer = Direct::to(listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            let read = stream.read(&mut buffer).await.unwrap();
            if buffer[..read].starts_with(b"GET /garbage") {
                stream.write_all(b"\x00\x01 this is no HTTP\r\n\r\n").await.unwrap();
            }
        }
    });
    let client = client(&["http://api.example"], dialer.clone());
    let send = |uri| client.send(get(uri), ANY);
    assert_eq!(send("http://api.example/garbage").await.unwrap_err(), OutboundError::Protocol);
    assert_eq!(send("http://api.example/closes").await.unwrap_err(), OutboundError::Terminated);
    assert_eq!(send("http://u:p@api.example/").await.unwrap_err(), OutboundError::InvalidRequest);
    for (refusal, error) in [
        (DialError::Dns { host: "api.example".into(), cause: "no such name".into() }, OutboundError::Dns),
        (DialError::Denied("private".into()), OutboundError::AddressProhibited),
        (DialError::Connect("refused".into()), OutboundError::Refused),
        (DialError::Unavailable("gone".into()), OutboundError::Other("gone".into())),
    ] {
        *dialer.refuse.lock().unwrap() = Some(refusal);
        assert_eq!(send("http://api.example/").await.unwrap_err(), error);
    }
}

#[tokio::test]
async fn requests_at_once_are_counted_until_their_bodies_end() {
    let (address, _) = server().await;
    let client = client(&["http://api.example"], Direct::to(address));
    let mut open = Vec::new();
    for _ in 0..MAX_OPEN {
        open.push(client.send(get("http://api.example/stall"), ANY).await.unwrap());
    }
    assert_eq!(client.send(get("http://api.example/"), ANY).await.unwrap_err(), OutboundError::LimitReached);
    open.pop();
    assert!(client.send(get("http://api.example/"), ANY).await.is_ok());
}

/// A TLS server for one name; says which name it was asked for.
async fn tls_server(name: &str) -> (SocketAddr, RootCertStore, Arc<Mutex<Option<String>>>) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(None));
    let names = asked.clone();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(stream) = acceptor.accept(stream).await {
                *names.lock().unwrap() = stream.get_ref().1.server_name().map(str::to_owned);
                let service = service_fn(|request| answer(request, Seen::default()));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        }
    });
    (address, roots, asked)
}

#[tokio::test]
async fn tls_asks_for_the_name_and_believes_only_its_roots() {
    let (address, roots, asked) = tls_server("api.example").await;
    let dialer = Direct::to(address);
    let allow = ["https://api.example", "https://other.example"];
    let trusting = client_with(&allow, dialer.clone(), Tls::new(roots).unwrap());
    let response = trusting.send(get("https://api.example/"), ANY).await.unwrap();
    assert_eq!(text(response.into_body()).await, "hello");
    assert_eq!(asked.lock().unwrap().as_deref(), Some("api.example"));
    let wrong_name = trusting.send(get("https://other.example/"), ANY).await.unwrap_err();
    assert_eq!(wrong_name, OutboundError::Certificate);
    let public = client(&allow, dialer);
    assert_eq!(public.send(get("https://api.example/"), ANY).await.unwrap_err(), OutboundError::Certificate);

    let (plain, _) = server().await;
    let plain = client(&allow, Direct::to(plain)).send(get("https://api.example/"), ANY).await.unwrap_err();
    assert_eq!(plain, OutboundError::Tls);
}

#[tokio::test]
async fn a_component_fetches_through_it() {
    let (address, _) = server().await;
    let out = Arc::new(client(&["http://api.example"], Direct::to(address)));
    let guest = Guest::new("probe", Bindings::new(), Some(out));
    assert_eq!(guest.get("/fetch?url=http://api.example/").await, (200, "hello".to_owned()));
    let (status, text) = guest.get("/fetch?url=http://elsewhere.example/").await;
    assert!(status == 502 && text.contains("HttpRequestDenied"), "{status} {text}");
}
