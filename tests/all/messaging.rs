//! Messages through the whole system: sent by one app, handled by another, over kills, deploys and moved links.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use sidereal_tests::nats::Nats;
use sidereal_tests::platform::{Platform, until, write_app};
use sidereal_tests::redis::Redis;

/// An app that sends, and one that counts what it is given.
const LINKS: &str = "\n[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"\n";

fn sender(dir: &Path, provider: &str) {
    let rest = format!("{LINKS}\"wasmcloud:messaging\" = \"{provider}\"\n");
    write_app(&dir.join("sender"), "sender", "messages", &rest).unwrap();
}

fn worker(dir: &Path, provider: &str, more: &str) {
    let rest = format!("{LINKS}\"wasmcloud:messaging\" = {{ provider = \"{provider}\", {more} }}\n");
    write_app(&dir.join("worker"), "worker", "messages", &rest).unwrap();
}

fn deploy(platform: &Platform, dir: &Path, app: &str) {
    platform.ok(&["deploy", dir.join(app).to_str().unwrap()]).unwrap();
}

fn text(platform: &Platform, host: &str, path: &str) -> String {
    let answer = platform.get(host, path).unwrap();
    answer.body
}

fn publish(platform: &Platform, subject: &str, body: &str) {
    assert_eq!(text(platform, "sender.localhost", &format!("/publish?subject={subject}&body={body}")), "sent");
}

fn number(platform: &Platform, key: &str) -> u64 {
    text(platform, "worker.localhost", &format!("/number?key={key}")).parse().unwrap_or(0)
}

fn reaches(platform: &Platform, key: &str, least: u64) {
    until(Duration::from_secs(20), || number(platform, key) >= least)
        .unwrap_or_else(|_| panic!("{key} is {} and not {least}", number(platform, key)));
}

#[test]
fn messages_go_from_app_to_app_and_failures_come_again_until_they_are_put_away() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(&dir.path().join("data"), &[]).unwrap();
    sender(dir.path(), "local");
    worker(dir.path(), "local", "subscriptions = [\"orders.*\", \"dead-letter.>\"], max-tries = \"3\"");
    deploy(&platform, dir.path(), "worker");
    deploy(&platform, dir.path(), "sender");

    assert_eq!(text(&platform, "sender.localhost", "/burst?subject=orders.new&from=0&to=200"), "sent");
    reaches(&platform, "done", 200);
    assert_eq!(number(&platform, "done"), 200, "each once");
    // Nobody takes these.
    publish(&platform, "orders.new.late", "unheard");
    publish(&platform, "orders.new", "flaky-2");
    reaches(&platform, "done:flaky-2", 1);
    assert_eq!(number(&platform, "tried:flaky-2"), 3);
    for body in ["fail", "trap"] {
        publish(&platform, "orders.new", body);
        // Three tries, then three more as a dead letter, which is not put away again.
        reaches(&platform, &format!("tried:{body}"), 6);
        publish(&platform, "orders.new", &format!("after-{body}"));
        reaches(&platform, &format!("done:after-{body}"), 1);
        assert_eq!((number(&platform, &format!("tried:{body}")), number(&platform, &format!("done:{body}"))), (6, 0));
    }
    assert_eq!(number(&platform, "tried:unheard"), 0);
    platform.logged(&["worker"], "dead-letter.worker.main.default.orders.new").unwrap();

    assert_eq!(text(&platform, "sender.localhost", "/ask?subject=orders.price&body=hat"), "re: hat");
    let answer = text(&platform, "sender.localhost", "/ask?subject=nobody.there&body=hat");
    assert_eq!(answer, "nobody answers requests to `nobody.there`");
    let answer = text(&platform, "sender.localhost", "/ask?subject=orders.price&body=slow-1000&timeout=100");
    assert_eq!(answer, "no answer within 100 ms");
    for (path, why) in [
        ("/publish?subject=a%20b&body=x", "is not a subject"),
        ("/publish?subject=a.*&body=x", "is not a subject"),
        ("/large?subject=a&size=1048577", "at most 1048576 bytes"),
    ] {
        let answer = text(&platform, "sender.localhost", path);
        assert!(answer.contains(why), "{path}: {answer}");
    }
    assert_eq!(text(&platform, "sender.localhost", "/large?subject=a&size=1048576"), "sent");
}

#[test]
fn a_host_killed_while_it_handles_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(&dir.path().join("data"), &[]).unwrap();
    sender(dir.path(), "local");
    worker(dir.path(), "local", "subscriptions = \"orders.new\"");
    deploy(&platform, dir.path(), "worker");
    deploy(&platform, dir.path(), "sender");
    let mut again = 0;
    // All of them were handled before the kill where this machine stood still in between: that shows nothing.
    for round in 0..4 {
        let bodies: Vec<String> = (0..5).map(|n| format!("slow-20{n}{round}")).collect();
        bodies.iter().for_each(|body| publish(&platform, "orders.new", body));
        bodies.iter().for_each(|body| reaches(&platform, &format!("tried:{body}"), 1));
        for pid in platform.hosts() {
            Platform::signal(pid, Signal::KILL).unwrap();
        }
        for body in &bodies {
            reaches(&platform, &format!("done:{body}"), 1);
            again += u64::from(number(&platform, &format!("tried:{body}")) >= 2);
        }
        if again > 0 {
            return;
        }
    }
    panic!("none of them was tried again");
}

#[test]
fn durable_messages_survive_the_kill_of_everything() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let platform = Platform::start(&data, &[]).unwrap();
    sender(dir.path(), "durable");
    worker(dir.path(), "durable", "subscriptions = \"orders.new\", max-in-flight = \"2\"");
    deploy(&platform, dir.path(), "worker");
    deploy(&platform, dir.path(), "sender");
    for n in 0..8 {
        publish(&platform, "orders.new", &format!("slow-30{n}0"));
    }
    reaches(&platform, "tried:slow-3000", 1);
    platform.kill().unwrap();
    let platform = Platform::start(&data, &[]).unwrap();
    for n in 0..8 {
        reaches(&platform, &format!("done:slow-30{n}0"), 1);
    }
    // What was handled is not kept. The sum is written after the single ones, and before the broker hears of the last ones: as
    // many as are handled at once may come again.
    reaches(&platform, "done", 8);
    let done = number(&platform, "done");
    platform.kill().unwrap();
    let platform = Platform::start(&data, &[]).unwrap();
    publish(&platform, "orders.new", "last");
    reaches(&platform, "done:last", 1);
    reaches(&platform, "done", done + 1);
    let found = number(&platform, "done");
    assert!((done + 1..=done + 3).contains(&found), "{done} were handled, and one more: {found}");
}

#[test]
fn what_waits_in_the_queue_of_a_moved_link_survives_the_kill_of_everything() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let platform = Platform::start(&data, &[]).unwrap();
    sender(dir.path(), "durable");
    worker(dir.path(), "durable", "subscriptions = \"orders.new\", max-in-flight = \"1\"");
    deploy(&platform, dir.path(), "worker");
    deploy(&platform, dir.path(), "sender");
    for n in 0..6 {
        publish(&platform, "orders.new", &format!("slow-200{n}"));
    }
    reaches(&platform, "tried:slow-2000", 1);
    platform.ok(&["link", "set", "worker", "wasmcloud:messaging=local"]).unwrap();
    platform.kill().unwrap();
    let platform = Platform::start(&data, &[]).unwrap();
    assert_eq!(number(&platform, "done:slow-2005"), 0, "it waited when all was killed");
    for n in 0..6 {
        reaches(&platform, &format!("done:slow-200{n}"), 1);
    }
}

#[test]
fn deploys_and_a_moved_link_lose_no_message() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(&dir.path().join("data"), &[]).unwrap();
    sender(dir.path(), "local");
    worker(dir.path(), "local", "subscriptions = \"orders.new\"");
    deploy(&platform, dir.path(), "worker");
    deploy(&platform, dir.path(), "sender");
    let sent = std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            for n in 0..40_u64 {
                let path = format!("/burst?subject=orders.new&from={}&to={}", n * 25, (n + 1) * 25);
                assert_eq!(text(&platform, "sender.localhost", &path), "sent");
            }
            1000
        });
        for tries in 6..9 {
            worker(dir.path(), "local", &format!("subscriptions = \"orders.new\", max-tries = \"{tries}\""));
            deploy(&platform, dir.path(), "worker");
        }
        sending.join().unwrap()
    });
    for n in (0..sent).step_by(50) {
        reaches(&platform, &format!("done:n{n}"), 1);
    }
    reaches(&platform, "done", sent);
    // Slow ones wait in the old broker while the link moves to the other one.
    worker(dir.path(), "local", "subscriptions = \"orders.new\", max-in-flight = \"1\"");
    deploy(&platform, dir.path(), "worker");
    for n in 0..6 {
        publish(&platform, "orders.new", &format!("slow-20{n}"));
    }
    worker(dir.path(), "durable", "subscriptions = \"orders.new\", max-in-flight = \"1\"");
    deploy(&platform, dir.path(), "worker");
    for n in 0..6 {
        reaches(&platform, &format!("done:slow-20{n}"), 1);
    }
}

#[test]
fn core_nats_loses_no_message_to_deploys_and_to_a_move_of_the_apps_data() {
    let nats = Nats::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(&dir.path().join("data"), &[]).unwrap();
    platform.ok(&["provider", "add", "bus", "--type", "messaging-nats", "--url", &nats.url()]).unwrap();
    let redis = Redis::start().unwrap();
    platform.ok(&["provider", "add", "cache", "--type", "keyvalue-redis", "--url", &redis.url()]).unwrap();
    sender(dir.path(), "bus");
    worker(dir.path(), "bus", "subscriptions = \"orders.new\"");
    deploy(&platform, dir.path(), "worker");
    deploy(&platform, dir.path(), "sender");
    let going = std::sync::atomic::AtomicBool::new(true);
    let sent = std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut sent = 0_u64;
            while going.load(std::sync::atomic::Ordering::SeqCst) {
                let path = format!("/burst?subject=orders.new&from={sent}&to={}", sent + 2);
                assert_eq!(text(&platform, "sender.localhost", &path), "sent");
                sent += 2;
                std::thread::sleep(Duration::from_millis(5));
            }
            sent
        });
        for tries in 6..9 {
            worker(dir.path(), "bus", &format!("subscriptions = \"orders.new\", max-tries = \"{tries}\""));
            deploy(&platform, dir.path(), "worker");
        }
        // `memory` is of one host: messages that wait in another one go there.
        for provider in ["cache", "memory", "embedded"] {
            let moved = platform.ok(&["link", "set", "worker", &format!("wasi:keyvalue={provider}"), "--copy-data"]);
            assert_eq!(moved.unwrap()["phase"], "done");
        }
        going.store(false, std::sync::atomic::Ordering::SeqCst);
        sending.join().unwrap()
    });
    reaches(&platform, "done", sent);
    assert_eq!(number(&platform, "done"), sent, "each once");
}

#[test]
fn a_stream_of_nats_carries_messages_over_killed_hosts_and_refuses_what_it_does_not_keep() {
    let nats = Nats::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(&dir.path().join("data"), &[]).unwrap();
    let settings = ["--set", "stream=ORDERS", "--set", "subjects=orders.>", "--set", "retention=interest"];
    let add = ["provider", "add", "stream", "--type", "messaging-jetstream", "--url", &nats.url()];
    platform.ok(&[&add[..], &settings].concat()).unwrap();
    sender(dir.path(), "stream");
    worker(dir.path(), "stream", "subscriptions = \"invoices.*\"");
    let refused = platform.cli(&["deploy", dir.path().join("worker").to_str().unwrap()]).unwrap();
    let said = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
    assert!(!refused.status.success() && said.contains("`ORDERS` does not keep messages of `invoices.*`"), "{said}");
    worker(dir.path(), "stream", "subscriptions = \"orders.*\", max-tries = \"3\"");
    deploy(&platform, dir.path(), "worker");
    deploy(&platform, dir.path(), "sender");

    publish(&platform, "orders.new", "first");
    reaches(&platform, "done:first", 1);
    assert_eq!(text(&platform, "sender.localhost", "/burst?subject=orders.new&from=0&to=100"), "sent");
    reaches(&platform, "done", 101);
    publish(&platform, "orders.new", "flaky-2");
    reaches(&platform, "done:flaky-2", 1);
    assert_eq!(number(&platform, "tried:flaky-2"), 3);
    publish(&platform, "orders.new", "fail");
    reaches(&platform, "tried:fail", 3);
    platform.logged(&["worker"], "dead-letter.worker.main.default.orders.new").unwrap();
    let answer = text(&platform, "sender.localhost", "/publish?subject=invoices.new&body=x");
    assert!(answer.contains("`ORDERS` does not keep messages of `invoices.new`"), "{answer}");
    assert_eq!(text(&platform, "sender.localhost", "/ask?subject=orders.price&body=hat"), "re: hat");
    let answer = text(&platform, "sender.localhost", "/ask?subject=nobody.there&body=hat");
    assert_eq!(answer, "nobody answers requests to `nobody.there`");

    for n in 0..5 {
        publish(&platform, "orders.new", &format!("slow-20{n}0"));
    }
    for n in 0..5 {
        reaches(&platform, &format!("tried:slow-20{n}0"), 1);
    }
    for pid in platform.hosts() {
        Platform::signal(pid, Signal::KILL).unwrap();
    }
    for n in 0..5 {
        let (key, found) = (format!("done:slow-20{n}0"), number(&platform, &format!("tried:slow-20{n}0")));
        // The server waits half a minute for a word of a host that is gone.
        until(Duration::from_secs(60), || number(&platform, &key) >= 1).unwrap_or_else(|_| panic!("{key}: {found}"));
    }
}
