//! Counts what the clock calls it for; what it does of it stands in the schedule's name.
use guests::wasi::clocks::monotonic_clock;
use guests::wasi::keyvalue::{atomics, store};
use guests::{Guest, IncomingRequest, ResponseOutparam};

wit_bindgen::generate!({ path: "../wit/schedule", world: "scheduled" });

struct Scheduled;

fn count(key: &str) -> u64 {
    let bucket = store::open("default").expect("a bucket");
    atomics::increment(&bucket, key, 1).expect("a number")
}

impl exports::sidereal::schedule::handler::Guest for Scheduled {
    fn run(name: String, due_ms: u64) -> Result<(), String> {
        // Were it called twice for one due time, this number would say so.
        count(&format!("due:{name}:{due_ms}"));
        let (what, argument) = name.split_once('-').unwrap_or((&name, ""));
        match what {
            "fail" => return Err("it was told to".to_owned()),
            "trap" => panic!("it was told to"),
            // Takes so many milliseconds.
            "slow" => monotonic_clock::subscribe_duration(argument.parse::<u64>().unwrap_or(0) * 1_000_000).block(),
            _ => {}
        }
        count(&format!("done:{name}"));
        Ok(())
    }
}

impl Guest for Scheduled {
    /// Every key and its number, a line each.
    fn handle(_: IncomingRequest, out: ResponseOutparam) {
        let bucket = store::open("default").expect("a bucket");
        let (mut text, mut cursor) = (String::new(), None);
        loop {
            let page = bucket.list_keys(cursor).expect("keys");
            for key in page.keys {
                let value = bucket.get(&key).expect("an answer").unwrap_or_default();
                text.push_str(&format!("{key}={}\n", String::from_utf8_lossy(&value)));
            }
            match page.cursor {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        guests::reply(out, 200, &text);
    }
}

guests::export!(Scheduled);
export!(Scheduled);
