//! The probe of WASI 0.3: a path per thing a host must survive or do right with async guests.
wit_bindgen::generate!({
    path: "../wit/p3",
    inline: "
        package sidereal:guests;
        world guest {
            import wasi:clocks/monotonic-clock@0.3.0;
            import wasi:http/client@0.3.0;
            export wasi:http/handler@0.3.0;
        }
    ",
    world: "sidereal:guests/guest",
    generate_all,
});

use exports::wasi::http::handler::Guest;
use wasi::clocks::monotonic_clock;
use wasi::http::client;
use wasi::http::types::{ErrorCode, Fields, Request, Response, Scheme};

struct Probe;

impl Guest for Probe {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = request.get_path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let number = query.split_once('=').and_then(|(_, n)| n.parse::<u64>().ok());
        match path {
            "/" => Ok(written(b"probe".to_vec(), 1, End::Whole)),
            "/spin" => loop {
                core::hint::black_box(());
            },
            "/trap" => core::arch::wasm32::unreachable(),
            "/park" => {
                monotonic_clock::wait_for(3_600_000_000_000).await;
                Err(ErrorCode::InternalError(None))
            }
            "/refuse" => Err(ErrorCode::LoopDetected),
            "/slow" => {
                monotonic_clock::wait_for(number.unwrap_or(100) * 1_000_000).await;
                Ok(written(b"slow".to_vec(), 1, End::Whole))
            }
            "/stream" => Ok(written(vec![b'x'; 1 << 16], number.unwrap_or(16), End::Whole)),
            "/trap-late" => Ok(written(b"begin".to_vec(), 1, End::Trap)),
            "/spin-late" => Ok(written(b"begin".to_vec(), 1, End::Spin)),
            "/work-after" => Ok(written(b"done".to_vec(), 1, End::Work(number.unwrap_or(100)))),
            "/echo" => Ok(passed_on(request)),
            "/fetch" => fetch(query).await,
            "/authority" => Ok(written(request.get_authority().unwrap_or_default().into_bytes(), 1, End::Whole)),
            _ => Ok(written(b"no such probe".to_vec(), 1, End::Whole)),
        }
    }
}

/// What the guest does when it has written its body.
enum End {
    Whole,
    Trap,
    Spin,
    /// For so many milliseconds.
    Work(u64),
}

/// A response whose body a task of the guest writes: `part`, `times` over.
fn written(part: Vec<u8>, times: u64, end: End) -> Response {
    let (mut body, contents) = wit_stream::new();
    let (trailers, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(contents), no_trailers);
    wit_bindgen::spawn_local(async move {
        for _ in 0..times {
            if !body.write_all(part.clone()).await.is_empty() {
                return;
            }
        }
        match end {
            End::Trap => core::arch::wasm32::unreachable(),
            End::Spin => loop {
                core::hint::black_box(());
            },
            End::Whole | End::Work(_) => drop(body),
        }
        let _ = trailers.write(Ok(None)).await;
        if let End::Work(ms) = end {
            monotonic_clock::wait_for(ms * 1_000_000).await;
        }
    });
    response
}

/// Hands the request's stream back as the response's: the guest is gone before the body flows.
fn passed_on(request: Request) -> Response {
    let (_result, processed) = wit_future::new(|| Ok(()));
    let (contents, trailers) = Request::consume_body(request, processed);
    Response::new(Fields::new(), Some(contents), trailers).0
}

/// GETs `http://<query>/`.
async fn fetch(authority: &str) -> Result<Response, ErrorCode> {
    let (_trailers, no_trailers) = wit_future::new(|| Ok(None));
    let (request, _sent) = Request::new(Fields::new(), None, no_trailers, None);
    let _ = request.set_scheme(Some(&Scheme::Http));
    let _ = request.set_authority(Some(authority));
    let _ = request.set_path_with_query(Some("/"));
    client::send(request).await
}

export!(Probe);
