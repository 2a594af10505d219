//! Secrets, commanded by the path: `/get/<key>` answers with the kind and the value, `/hold/<key>` gets without revealing,
//! `/kv/<bucket>/<key>` counts in a key-value store, for apps whose store needs a password.
//! Status: 200, 404 not found, 502 any other error (its text), 400 not a command.
use guests::wasi::keyvalue::{atomics, store as keyvalue};
use guests::wasmcloud::secrets::reveal::reveal;
use guests::wasmcloud::secrets::store::{self, SecretValue, SecretsError};
use guests::{Guest, IncomingRequest, ResponseOutparam};

struct Probe;

impl Guest for Probe {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (path, _) = guests::target(&request);
        let parts: Vec<String> = path.trim_start_matches('/').split('/').map(guests::decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["get", key] => match store::get(key).map(|secret| reveal(&secret)) {
                Ok(SecretValue::String(text)) => guests::reply(out, 200, &format!("string {text}")),
                Ok(SecretValue::Bytes(bytes)) => guests::reply(out, 200, &format!("bytes {bytes:?}")),
                Err(error) => refuse(out, error),
            },
            ["hold", key] => match store::get(key) {
                Ok(_) => guests::reply(out, 200, "held"),
                Err(error) => refuse(out, error),
            },
            ["kv", bucket, key] => {
                let counted = keyvalue::open(bucket).and_then(|bucket| atomics::increment(&bucket, key, 1));
                match counted {
                    Ok(count) => guests::reply(out, 200, &count.to_string()),
                    Err(error) => guests::reply(out, 502, &format!("{error:?}")),
                }
            }
            _ => guests::reply(out, 400, "no such command"),
        }
    }
}

fn refuse(out: ResponseOutparam, error: SecretsError) {
    match error {
        SecretsError::NotFound => guests::reply(out, 404, "not-found"),
        SecretsError::Upstream(text) => guests::reply(out, 502, &format!("upstream {text}")),
        SecretsError::Io(text) => guests::reply(out, 502, &format!("io {text}")),
    }
}

guests::export!(Probe);
