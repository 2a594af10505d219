//! External providers of objects, messages and secrets through the whole platform: deployed, killed under load, moved to and
//! from with their data, rotated, and refused where they do not answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sidereal_tests::http::Connection;
use sidereal_tests::load::Load;
use sidereal_tests::platform::{Platform, until, write_app};
use sidereal_tests::redis::Redis;
use sidereal_tests::workspace;

use crate::external::processes;
use crate::secrets::{Watch, events};

fn program(name: &str) -> PathBuf {
    workspace().join("examples/external-providers").join(name)
}

/// A platform whose apps may link to the program `name` as the provider `mine`.
fn start(dir: &Path, name: &str, contract: &str) -> Platform {
    let named = format!("mine={}", program(name).display());
    let platform = Platform::start(dir, &["--external", &named]).unwrap();
    let contract = format!("contract={contract}");
    platform
        .ok(&["provider", "add", "mine", "--type", "external", "--set", "program=mine", "--set", &contract])
        .unwrap();
    platform
}

/// Kills the process of the program, and waits for the next one.
fn kill(platform: &Platform, name: &str) {
    let victim = processes(platform.pid(), name)[0];
    Platform::signal(victim, Signal::KILL).unwrap();
    let killed = Instant::now();
    until(Duration::from_secs(10), || processes(platform.pid(), name).first().is_some_and(|pid| *pid != victim))
        .unwrap();
    println!("{name}: another process after {:?}", killed.elapsed());
}

fn text(platform: &Platform, host: &str, path: &str) -> (u16, String) {
    let answer = platform.get(host, path).unwrap();
    (answer.status, answer.body.trim().to_owned())
}

#[test]
fn objects_are_kept_by_a_program_killed_and_moved_to_it_and_back() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = start(dir.path(), "objects.py", "wasi:blobstore");
    let rest = "limits = { wall = \"5m\", cpu = \"60s\" }\n\
                [components.main.links]\n\
                \"wasi:blobstore\" = [{ provider = \"mine\" }, { label = \"kept\", provider = \"folder\" }]";
    write_app(app.path(), "blobs", "blob-probe", rest).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let ok = |text: &str| (200, text.to_owned());
    let ask = |path: &str| text(&platform, "blobs.localhost", path);
    for (path, expected) in [
        ("/create/photos", "photos"),
        ("/fill/photos/a%2Fb/5000000", "ok"),
        ("/sum/photos/a%2Fb", "5000000"),
        ("/stat/photos/a%2Fb", "photos a/b 5000000"),
        ("/create/kept", "kept"),
        ("/copy/photos/a%2Fb/kept/copy", "ok"),
        ("/copy/kept/copy/photos/back", "ok"),
        ("/move/photos/back/photos/moved", "ok"),
        ("/list/photos", "a/b\nmoved"),
        ("/delete/photos/moved", "ok"),
        ("/exists/nothing", "false"),
    ] {
        assert_eq!(ask(path), ok(expected), "{path}");
    }

    let load = Load::start(platform.ingress, "blobs.localhost", "/fill/photos/live/5000", 2, Duration::from_millis(20));
    load.wait(20);
    for _ in 0..2 {
        kill(&platform, "objects.py");
        load.wait(10);
    }
    let report = load.stop();
    println!("{} objects, failures: {:?}", report.good, report.failures);
    assert!(report.failures.len() < 20, "{:?}", report.failures);
    assert_eq!(ask("/sum/photos/a%2Fb"), ok("5000000"));
    assert_eq!(ask("/sum/photos/live"), ok("5000"));

    // A container that a link names moves, there and back, while it is written to.
    for n in 0..20 {
        assert_eq!(ask(&format!("/fill/kept/o{n}/{}", n * 1000)), ok("ok"));
    }
    let load = Load::start(platform.ingress, "blobs.localhost", "/fill/kept/live/5000", 2, Duration::from_millis(20));
    load.wait(10);
    for to in ["mine", "folder"] {
        let link = format!("wasi:blobstore#kept={to}");
        let moved = platform.ok(&["link", "set", "blobs", &link, "--copy-data=remove"]).unwrap();
        assert_eq!(moved["phase"], "done", "{moved}");
        load.wait(10);
        assert_eq!(ask("/sum/kept/o19"), ok("19000"), "{to}");
        assert_eq!(ask("/sum/kept/copy"), ok("5000000"), "{to}");
    }
    let report = load.stop();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    // Which containers there are the contract does not say, so all of them do not move.
    let refused = platform.cli(&["link", "set", "blobs", "wasi:blobstore#default=folder", "--copy-data"]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("give the link a `container`"), "{said}");
}

#[test]
fn tables_are_kept_by_a_program_that_is_killed() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = start(dir.path(), "database.py", "sidereal:sql");
    write_app(app.path(), "books", "sql-probe", "[components.main.links]\n\"sidereal:sql\" = \"mine\"").unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let ask = |path: &str, body: &str| {
        let answer = Connection::open(platform.ingress).unwrap().send("POST", "books.localhost", path, body.as_bytes());
        let answer = answer.unwrap();
        (answer.status, answer.body.trim_end().to_owned())
    };
    let ok = |text: &str| (200, text.to_owned());
    assert_eq!(ask("/execute/-", "CREATE TABLE books (id BIGINT PRIMARY KEY, title TEXT, lent BOOLEAN)"), ok("0"));
    let add =
        "INSERT INTO books VALUES ($2, $1, $3)\tt:Dune\ti:1\tb:false\nINSERT INTO books VALUES (2, 'Emma', $1)\tn:";
    assert_eq!(ask("/batch/-", add), ok("1 1"));
    let read = "SELECT * FROM books ORDER BY id";
    assert_eq!(ask("/query/-", read), ok("id\ttitle\tlent\ni:1\tt:Dune\tb:false\ni:2\tt:Emma\tn:"));
    assert!(ask("/execute/-", "INSERT INTO books VALUES (1, 'Dune', NULL)").1.starts_with("constraint"));
    assert!(ask("/execute/-", "ATTACH 'x' AS y").1.starts_with("denied: "), "what is refused is refused before it");
    kill(&platform, "database.py");
    until(Duration::from_secs(20), || ask("/query/-", read).0 == 200).unwrap();
    assert!(ask("/query/-", read).1.contains("Emma"), "what was answered is on disk");
    // The same component, on the database of the platform.
    platform.ok(&["link", "set", "books", "sidereal:sql=sqlite"]).unwrap();
    assert!(ask("/query/-", read).1.starts_with("invalid: "));
}

#[test]
fn messages_go_through_a_program_and_none_is_lost_when_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let platform = start(&dir.path().join("data"), "messages.py", "wasmcloud:messaging");
    let app = |name: &str, link: &str| {
        let rest =
            format!("\n[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"\n\"wasmcloud:messaging\" = {link}\n");
        write_app(&dir.path().join(name), name, "messages", &rest).unwrap();
        platform.ok(&["deploy", dir.path().join(name).to_str().unwrap()]).unwrap();
    };
    // One app, since each app has a process, and so a broker, of its own.
    app("worker", "{ provider = \"mine\", subscriptions = [\"orders.*\", \"dead-letter.>\"], max-tries = \"3\" }");
    let ask = |path: &str| text(&platform, "worker.localhost", path).1;
    let number = |key: &str| ask(&format!("/number?key={key}")).parse::<u64>().unwrap_or(0);
    let reaches = |key: &str, least: u64| {
        until(Duration::from_secs(30), || number(key) >= least)
            .unwrap_or_else(|_| panic!("{key} is {} and not {least}", number(key)));
    };
    assert_eq!(ask("/burst?subject=orders.new&from=0&to=100"), "sent");
    reaches("done", 100);
    assert_eq!(number("done"), 100, "each once");
    assert_eq!(ask("/publish?subject=orders.new&body=flaky-2"), "sent");
    reaches("done:flaky-2", 1);
    assert_eq!(number("tried:flaky-2"), 3);
    assert_eq!(ask("/publish?subject=orders.new&body=fail"), "sent");
    // Three tries, then three more as a dead letter, which is not put away again.
    reaches("tried:fail", 6);
    assert_eq!(ask("/ask?subject=orders.price&body=hat"), "re: hat");
    assert_eq!(ask("/ask?subject=nobody.there&body=hat"), "nobody answers requests to `nobody.there`");
    assert_eq!(ask("/ask?subject=orders.price&body=slow-1000&timeout=100"), "no answer within 100 ms");

    // Killed between what was acknowledged and what is handled.
    for n in 0..3 {
        assert_eq!(ask(&format!("/publish?subject=orders.new&body=slow-30{n}0")), "sent");
    }
    reaches("tried:slow-3020", 1);
    kill(&platform, "messages.py");
    for n in 0..3 {
        reaches(&format!("done:slow-30{n}0"), 1);
    }
    assert_eq!(ask("/publish?subject=orders.new&body=after"), "sent");
    reaches("done:after", 1);
}

#[test]
fn secrets_of_a_program_are_used_rotated_and_found_nowhere_else() {
    let mut watch = Watch::default();
    let (first, second, password) = (watch.canary(), watch.canary(), watch.canary());
    let redis = Redis::configured(&format!("requirepass {password}\n")).unwrap();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = start(dir.path(), "secrets.py", "wasmcloud:secrets");
    let url = redis.url();
    let add =
        ["provider", "add", "cache", "--type", "keyvalue-redis", "--url", &url, "--secret", "password=redis@mine"];
    platform.ok(&add).unwrap();
    let links = "[components.main.links]\n\"wasi:keyvalue\" = \"cache\"\n\
                 \"wasmcloud:secrets\" = [{ provider = \"mine\", label = \"api-key\", key = \"API_KEY\" }]";
    write_app(app.path(), "shop", "secret-probe", links).unwrap();
    let folder = app.path().to_str().unwrap();
    // A secret that is not there refuses the deploy, with its name.
    assert!(!watch.run(dir.path(), &["deploy", folder], None));
    let said =
        |watch: &Watch, what: &str| watch.said.iter().any(|(_, said)| String::from_utf8_lossy(said).contains(what));
    assert!(said(&watch, "is not kept by the external provider `mine`"), "{}", watch.last());
    let kept = dir.path().join("externals/local/shop/mine");
    let keep = |name: &str, value: &str| {
        let partial = kept.join(format!("{name}.partial"));
        fs::write(&partial, value).unwrap();
        fs::rename(&partial, kept.join(name)).unwrap();
    };
    keep("api-key", &first);
    keep("redis", &password);
    assert!(watch.run(dir.path(), &["deploy", folder], None), "{}", watch.last());
    let get = |path: &str| text(&platform, "shop.localhost", path);
    assert_eq!(get("/get/API_KEY"), (200, format!("string {first}")));
    assert_eq!(get("/get/redis").0, 404, "only what the link names");
    assert_eq!(get("/kv/default/n"), (200, "1".to_owned()), "the password of Redis comes from there too");
    keep("api-key", &second);
    assert_eq!(get("/get/API_KEY"), (200, format!("string {second}")), "the next call has the new value");
    kill(&platform, "secrets.py");
    until(Duration::from_secs(5), || get("/get/API_KEY") == (200, format!("string {second}"))).unwrap();
    fs::remove_file(kept.join("api-key")).unwrap();
    assert_eq!(get("/get/API_KEY"), (404, "not-found".to_owned()));

    for args in [&["status", "shop", "-o", "json"][..], &["logs", "shop"], &["provider", "list", "-o", "json"]] {
        watch.run(dir.path(), args, None);
    }
    assert!(said(&watch, "is not kept by the external provider"), "the log says which was asked for in vain");
    watch.hear("events", events(dir.path(), platform.info["api"].as_str().unwrap()));
    let own = processes(platform.pid(), "secrets.py");
    platform.hosts().into_iter().chain(own).chain([platform.pid()]).for_each(|pid| watch.process(pid));
    // What the program itself keeps is where an operator put it.
    fs::remove_dir_all(&kept).unwrap();
    watch.files(dir.path());
    let found = watch.found();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn what_a_program_does_not_answer_is_refused_at_deploy() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = start(dir.path(), "objects.py", "wasi:blobstore");
    let deploy = |rest: &str| {
        write_app(app.path(), "counter", "kv-counter", rest).unwrap();
        let out = platform.cli(&["deploy", app.path().to_str().unwrap()]).unwrap();
        assert!(!out.status.success());
        String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout)
    };
    let said = deploy("[components.main.links]\n\"wasi:keyvalue\" = \"mine\"");
    assert!(said.contains("provider-contract") && said.contains("provider `mine` answers `wasi:blobstore`"), "{said}");
    let own = |contract: &str| {
        format!(
            "[components.main.links]\n\"wasi:keyvalue\" = \"db\"\n[providers.db]\ntype = \"external\"\n\
             program = \"mine\"\ncontract = \"{contract}\""
        )
    };
    let said = deploy(&own("wasmcloud:postgres"));
    assert!(
        said.contains("provider-setting") && said.contains("do not answer `wasmcloud:postgres` in this version"),
        "{said}"
    );
    assert!(said.contains("`wasi:blobstore`") && said.contains("`wasmcloud:secrets`"), "it says which they do: {said}");
    // A program that answers another contract than it is declared for is never well.
    let said = deploy(&own("wasi:keyvalue"));
    assert!(said.contains("provider-unavailable"), "{said}");
    let listed = platform.ok(&["provider", "list", "--contracts"]).unwrap().to_string();
    assert!(listed.matches("external").count() >= 4, "{listed}");
}
