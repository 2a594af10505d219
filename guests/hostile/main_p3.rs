//! Everything a component of WASI 0.3 can do to its host by way of a request: the path names the case, one file each.
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

pub use exports::wasi::http::handler::Guest;
pub use wasi::http::types::{ErrorCode, Fields, Request, Response};

/// What a case answers with.
pub type Answer = Result<Response, ErrorCode>;

/// A response of a few words, whole.
pub fn reply(text: String) -> Answer {
    let (mut body, contents) = wit_stream::new();
    let (trailers, no_trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), Some(contents), no_trailers);
    wit_bindgen::spawn_local(async move {
        let _ = body.write_all(text.into_bytes()).await;
        drop(body);
        let _ = trailers.write(Ok(None)).await;
    });
    Ok(response)
}

macro_rules! cases {
    ($($case:ident)+) => {
        mod streams { $(pub mod $case;)+ }

        struct Hostile;

        impl Guest for Hostile {
            async fn handle(request: Request) -> Answer {
                let target = request.get_path_with_query().unwrap_or_default();
                match target.trim_start_matches('/') {
                    $(stringify!($case) => streams::$case::run(request).await,)+
                    "" => reply("hostile".to_owned()),
                    _ => Err(ErrorCode::DestinationNotFound),
                }
            }
        }
    };
}

cases! {
    futures_many
    loop_after
    never_ends
    never_read
    parked_later
    producer
    pump
    streams_many
    tasks_many
    tasks_spin
    trap_after
}

export!(Hostile);
