//! Chooses one of several links by its label, in both versions of `wasmcloud:bus`, and says what is behind it:
//! `/kv`, `/blob` and `/send`, with `?link=` the label that is chosen, `?open=` what is opened and `?v1=1` the old version.
mod v1 {
    wit_bindgen::generate!({ path: "../wit/bus-v1", world: "wasmcloud:bus/imports" });
}
mod v2 {
    wit_bindgen::generate!({ path: "../wit/bus", world: "wasmcloud:bus/imports" });
}

use guests::wasi::blobstore::blobstore;
use guests::wasi::keyvalue::{atomics, store};
use guests::wasmcloud::messaging::{consumer, types::BrokerMessage};
use guests::{Guest, IncomingRequest, ResponseOutparam, param, reply};
use v1::wasmcloud::bus::lattice as old;
use v2::wasmcloud::bus::lattice;

struct Probe;

impl Guest for Probe {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (path, query) = guests::target(&request);
        match answer(&path, &query) {
            Ok(text) => reply(out, 200, &text),
            Err(text) => reply(out, 502, &text),
        }
    }
}

fn answer(path: &str, query: &str) -> Result<String, String> {
    let open = param(query, "open").unwrap_or_else(|| "default".to_owned());
    let (package, interface) = match path {
        "/kv" => ("keyvalue", "store"),
        "/blob" => ("blobstore", "blobstore"),
        _ => ("messaging", "consumer"),
    };
    let namespace = if package == "messaging" { "wasmcloud" } else { "wasi" };
    match (param(query, "link"), param(query, "v1")) {
        (Some(link), None) => {
            lattice::set_link_name(&link, vec![lattice::CallTargetInterface::new(namespace, package, interface)])?;
        }
        (Some(link), Some(_)) => {
            old::set_link_name(&link, vec![old::CallTargetInterface::new(namespace, package, interface)]);
        }
        (None, _) => {}
    }
    match path {
        "/kv" => {
            let bucket = store::open(&open).map_err(|error| format!("{error:?}"))?;
            atomics::increment(&bucket, "n", 1).map(|n| n.to_string()).map_err(|error| format!("{error:?}"))
        }
        "/blob" => {
            let there = blobstore::container_exists(&open)?;
            if !there {
                blobstore::create_container(&open)?;
            }
            Ok(if there { "there" } else { "made" }.to_owned())
        }
        _ => {
            let message = BrokerMessage { subject: open, body: b"hello".to_vec(), reply_to: None };
            consumer::publish(&message).map(|()| "sent".to_owned())
        }
    }
}

guests::export!(Probe);
