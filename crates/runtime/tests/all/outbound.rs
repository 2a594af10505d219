//! Outgoing HTTP: denied without a client, handed to it otherwise, counted per call.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use runtime::{HttpBody, Outbound, OutboundError, OutboundOptions, OutboundResponse};

use crate::support::{Rig, call};

#[derive(Default)]
pub(crate) struct Client {
    sent: AtomicU32,
    last: Mutex<Option<http::Uri>>,
    fail: Mutex<Option<OutboundError>>,
}

impl Outbound for Client {
    fn send(&self, request: http::Request<HttpBody>, _: OutboundOptions) -> OutboundResponse {
        self.sent.fetch_add(1, SeqCst);
        *self.last.lock().unwrap() = Some(request.uri().clone());
        let answer = match self.fail.lock().unwrap().clone() {
            Some(error) => Err(error),
            None => {
                let body = Full::new(Bytes::from_static(b"from afar")).map_err(|e| match e {}).boxed_unsync();
                Ok(http::Response::builder().status(201).body(body).unwrap())
            }
        };
        Box::pin(async { answer })
    }
}

#[tokio::test]
async fn without_a_client_every_request_is_denied() {
    let rig = Rig::new();
    let (status, text) = call(&rig.workload("probe"), "/fetch?url=http://example.com/").await.unwrap();
    assert_eq!(status, 502);
    assert!(text.contains("HttpRequestDenied"), "{text}");
}

#[tokio::test]
async fn a_client_gets_the_request_and_its_answer_comes_back() {
    let client = Arc::new(Client::default());
    let mut rig = Rig::new();
    rig.outbound = Some(client.clone());
    let answer = call(&rig.workload("probe"), "/fetch?url=https://example.com:8443/a%3Fb=c").await.unwrap();
    assert_eq!(answer, (201, "from afar".to_owned()));
    assert_eq!(client.last.lock().unwrap().as_ref().unwrap(), "https://example.com:8443/a?b=c");
}

#[tokio::test]
async fn errors_reach_the_guest_as_their_code() {
    let client = Arc::new(Client::default());
    let mut rig = Rig::new();
    rig.outbound = Some(client.clone());
    let work = rig.workload("probe");
    for (error, code) in [
        (OutboundError::Denied, "HttpRequestDenied"),
        (OutboundError::AddressProhibited, "DestinationIpProhibited"),
        (OutboundError::ConnectTimeout, "ConnectionTimeout"),
        (OutboundError::Refused, "ConnectionRefused"),
    ] {
        *client.fail.lock().unwrap() = Some(error);
        let (status, text) = call(&work, "/fetch?url=http://example.com/").await.unwrap();
        assert!(status == 502 && text.contains(code), "{status} {text}");
    }
}

#[tokio::test]
async fn a_call_may_send_only_so_many() {
    let client = Arc::new(Client::default());
    let mut rig = Rig::new();
    rig.outbound = Some(client.clone());
    rig.limits.subrequests = 3;
    let work = rig.workload("probe");
    assert_eq!(call(&work, "/fetch?url=http://example.com/&n=3").await.unwrap().0, 201);
    let (status, text) = call(&work, "/fetch?url=http://example.com/&n=4").await.unwrap();
    assert!(status == 502 && text.contains("ConnectionLimitReached"), "{status} {text}");
    assert_eq!(client.sent.load(SeqCst), 6);
}
