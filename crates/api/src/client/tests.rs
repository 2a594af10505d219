//! What the client does with answers that a real control plane gives too rarely to be tried on one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// A server that refuses the first requests with this value of `Retry-After`, and counts them all.
async fn server(refusals: usize, retry_after: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let asked = counting.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
                    if !head.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    head.clear();
                    let (status, more, body) = match asked.fetch_add(1, SeqCst) < refusals {
                        true => (
                            "429 Too Many Requests",
                            format!("retry-after: {retry_after}\r\n"),
                            r#"{"code":"rate-limited","detail":"too many"}"#,
                        ),
                        false => ("200 OK", String::new(), "[]"),
                    };
                    let length = body.len();
                    let answer = format!("HTTP/1.1 {status}\r\n{more}content-length: {length}\r\n\r\n{body}");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, asked)
}

fn limited<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> bool {
    matches!(answer, Err(ClientError::Refused(problem)) if problem.code == Code::RateLimited)
}

#[tokio::test]
async fn a_patient_client_comes_back_when_it_is_told_to() {
    let (address, asked) = server(2, "1").await;
    let client = ControlClient::new(address, "token");
    assert!(limited(client.tenants().await), "it is told, and does not wait unless somebody said so");
    assert!(client.patient(Duration::from_secs(30)).tenants().await.unwrap().is_empty());
    assert_eq!(asked.load(SeqCst), 3);
}

#[tokio::test]
async fn patience_has_an_end() {
    for (retry_after, patience, wanted) in [("3600", 30, 1), ("1", 2, 3), ("soon", 30, 1)] {
        let (address, asked) = server(usize::MAX, retry_after).await;
        let client = ControlClient::new(address, "token").patient(Duration::from_secs(patience));
        assert!(limited(client.tenants().await));
        assert_eq!(asked.load(SeqCst), wanted, "{retry_after}");
    }
}

/// `localhost` has two addresses on many machines, and the server listens on one of them.
#[tokio::test]
async fn a_server_is_asked_by_its_own_name_at_each_of_its_addresses() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("localhost:{}", listener.local_addr().unwrap().port());
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut head).await.unwrap() > 0);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]").await.unwrap();
        String::from_utf8(head).unwrap()
    });
    let client = ControlClient::named(&name, "token");
    assert!(client.tenants().await.unwrap().is_empty());
    let head = asked.await.unwrap();
    assert!(head.lines().any(|line| line == format!("host: {name}")), "{head}");
}
