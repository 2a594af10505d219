//! Every key-value operation, commanded by the path: `/<operation>/<bucket>/<argument>/<argument>`.
//!
//! `get/b/k`, `set/b/k/v`, `delete/b/k`, `exists/b/k`, `list/b[/cursor]`, `increment/b/k/n`, `get-many/b/k1,k2`,
//! `set-many/b/k1=v1,k2=v2`, `delete-many/b/k1,k2`, `fill/b/<count>/<bytes each>`. A missing value is `-`.
//! Status: 200, 404 no such store, 403 access denied, 502 any other error (its text), 400 not a command.
use guests::wasi::keyvalue::store::{Bucket, Error};
use guests::wasi::keyvalue::{atomics, batch, store};
use guests::{Guest, IncomingRequest, ResponseOutparam};

struct Probe;

impl Guest for Probe {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (path, _) = guests::target(&request);
        let parts: Vec<String> = path.trim_start_matches('/').split('/').map(guests::decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let [operation, bucket, arguments @ ..] = parts.as_slice() else {
            return guests::reply(out, 400, "/operation/bucket/...");
        };
        match store::open(bucket).and_then(|bucket| run(operation, &bucket, arguments)) {
            Ok(Some(text)) => guests::reply(out, 200, &text),
            Ok(None) => guests::reply(out, 400, "no such command"),
            Err(Error::NoSuchStore) => guests::reply(out, 404, "no-such-store"),
            Err(Error::AccessDenied) => guests::reply(out, 403, "access-denied"),
            Err(Error::Other(text)) => guests::reply(out, 502, &text),
        }
    }
}

fn run(operation: &str, bucket: &Bucket, arguments: &[&str]) -> Result<Option<String>, Error> {
    let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
    let list = |keys: &str| keys.split(',').map(str::to_owned).collect::<Vec<_>>();
    let done = |()| Some("ok".to_owned());
    Ok(match (operation, arguments) {
        ("get", [key]) => Some(bucket.get(key)?.map_or("-".to_owned(), text)),
        ("set", [key, value]) => done(bucket.set(key, value.as_bytes())?),
        ("delete", [key]) => done(bucket.delete(key)?),
        ("exists", [key]) => Some(bucket.exists(key)?.to_string()),
        ("list", rest) => {
            let page = bucket.list_keys(rest.first().and_then(|cursor| cursor.parse().ok()))?;
            let cursor = page.cursor.map_or("-".to_owned(), |cursor| cursor.to_string());
            Some(format!("{cursor}\n{}", page.keys.join("\n")))
        }
        ("increment", [key, delta]) => match delta.parse() {
            Ok(delta) => Some(atomics::increment(bucket, key, delta)?.to_string()),
            Err(_) => None,
        },
        ("get-many", [keys]) => {
            let found = batch::get_many(bucket, &list(keys))?;
            let line =
                |entry: Option<(String, Vec<u8>)>| entry.map_or("-".to_owned(), |(k, v)| format!("{k}={}", text(v)));
            Some(found.into_iter().map(line).collect::<Vec<_>>().join("\n"))
        }
        ("set-many", [pairs]) => {
            let pairs: Vec<_> = pairs
                .split(',')
                .filter_map(|pair| pair.split_once('='))
                .map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()))
                .collect();
            done(batch::set_many(bucket, &pairs)?)
        }
        ("delete-many", [keys]) => done(batch::delete_many(bucket, &list(keys))?),
        ("fill", [count, size]) => match (count.parse::<u32>(), size.parse::<usize>()) {
            (Ok(count), Ok(size)) => {
                let value = vec![b'x'; size];
                for n in 0..count {
                    bucket.set(&format!("fill-{n:08}"), &value)?;
                }
                done(())
            }
            _ => None,
        },
        _ => None,
    })
}

guests::export!(Probe);
