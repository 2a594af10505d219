//! Sends messages on request and counts those it is given: what it does with one stands in the message's body.
use guests::wasi::clocks::monotonic_clock;
use guests::wasi::keyvalue::{atomics, store};
use guests::wasmcloud::messaging::consumer;
use guests::wasmcloud::messaging::types::BrokerMessage;
use guests::{Guest, IncomingRequest, ResponseOutparam};

wit_bindgen::generate!({
    path: "../wit/messaging",
    world: "messaging-handler",
    with: { "wasmcloud:messaging/types@0.2.0": guests::wasmcloud::messaging::types },
});

struct Messages;

fn count(key: &str) -> u64 {
    let bucket = store::open("default").expect("a bucket");
    atomics::increment(&bucket, key, 1).expect("a number")
}

fn number(key: &str) -> String {
    let bucket = store::open("default").expect("a bucket");
    let value = bucket.get(key).expect("an answer").unwrap_or_else(|| b"0".to_vec());
    String::from_utf8_lossy(&value).into_owned()
}

impl exports::wasmcloud::messaging::handler::Guest for Messages {
    fn handle_message(message: BrokerMessage) -> Result<(), String> {
        let body = String::from_utf8_lossy(&message.body).into_owned();
        let tries = count(&format!("tried:{body}"));
        let (what, argument) = body.split_once('-').unwrap_or((&body, ""));
        let argument: u64 = argument.parse().unwrap_or(0);
        match what {
            "fail" => return Err("it was told to".to_owned()),
            "trap" => panic!("it was told to"),
            // Fails so many times.
            "flaky" if tries <= argument => return Err(format!("try {tries}")),
            // Takes so many milliseconds.
            "slow" => monotonic_clock::subscribe_duration(argument * 1_000_000).block(),
            _ => {}
        }
        if let Some(subject) = message.reply_to {
            let body = format!("re: {body}").into_bytes();
            consumer::publish(&BrokerMessage { subject, body, reply_to: None })?;
        }
        count(&format!("done:{body}"));
        count(&format!("subject:{}", message.subject));
        count("done");
        Ok(())
    }
}

impl Guest for Messages {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (path, query) = guests::target(&request);
        let text = |name: &str| guests::param(&query, name).unwrap_or_default();
        let message =
            |body: String| BrokerMessage { subject: text("subject"), body: body.into_bytes(), reply_to: None };
        let answer = match path.as_str() {
            "/publish" => consumer::publish(&message(text("body"))).map(|()| "sent".to_owned()),
            // So many messages, with numbers as bodies.
            "/burst" => {
                let (from, to) = (guests::number(&query, "from", 0), guests::number(&query, "to", 0));
                (from..to).try_for_each(|n| consumer::publish(&message(format!("n{n}")))).map(|()| "sent".to_owned())
            }
            "/large" => {
                let body = "x".repeat(guests::number(&query, "size", 0) as usize);
                consumer::publish(&message(body)).map(|()| "sent".to_owned())
            }
            "/ask" => {
                let timeout = guests::number(&query, "timeout", 1000) as u32;
                let answer = consumer::request(&text("subject"), text("body").as_bytes(), timeout);
                answer.map(|answer| String::from_utf8_lossy(&answer.body).into_owned())
            }
            "/number" => Ok(number(&text("key"))),
            // How often a schedule called.
            _ => Ok(count(&format!("called:{path}")).to_string()),
        };
        match answer {
            Ok(text) => guests::reply(out, 200, &text),
            Err(why) => guests::reply(out, 500, &why),
        }
    }
}

guests::export!(Messages);
export!(Messages);
