//! What goes over a link of each contract is counted, each call once: how many, how they ended, how long they took; for
//! Prometheus and in `sidereal top`.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use sidereal_tests::http;
use sidereal_tests::platform::{Platform, until, write_app};
use sidereal_tests::postgres::{self, Postgres};

/// What was counted of one link.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    calls: u64,
    timed: u64,
    in_flight: u64,
    errors: BTreeMap<String, u64>,
}

impl Counted {
    fn of(calls: u64, errors: &[(&str, u64)]) -> Self {
        let errors = errors.iter().map(|(kind, number)| ((*kind).to_owned(), *number)).collect();
        Self { calls, timed: calls, in_flight: 0, errors }
    }
}

fn scrape(platform: &Platform) -> String {
    let url = platform.info["metrics"].as_str().unwrap();
    let address = url.strip_prefix("http://").unwrap().strip_suffix("/metrics").unwrap();
    http::get(address.parse().unwrap(), address, "/metrics").unwrap().body
}

/// The link of one app, component and contract, as it is told now.
fn counted(text: &str, app: &str, component: &str, contract: &str) -> Counted {
    let labels = [format!("app=\"{app}\""), format!("component=\"{component}\""), format!("contract=\"{contract}\"")];
    let mut found = Counted::default();
    for line in text.lines().filter(|line| labels.iter().all(|label| line.contains(label))) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let value = value.parse::<f64>().unwrap() as u64;
        let metric = series.split('{').next().unwrap();
        match metric {
            "sidereal_link_calls_total" => found.calls += value,
            "sidereal_link_call_duration_seconds_count" => found.timed += value,
            "sidereal_link_calls_in_flight" => found.in_flight += value,
            "sidereal_link_errors_total" if value > 0 => {
                let kind = series.split("kind=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
                *found.errors.entry(kind.to_owned()).or_default() += value;
            }
            _ => {}
        }
    }
    found
}

/// What is asked of an app, with the status of its answer.
type Asked = &'static [(&'static str, u16)];

/// One link: the app, its guest, its links, what is asked, the contract, and what is counted of it.
type Case = (&'static str, &'static str, String, Asked, &'static str, Counted);

fn link(contract: &str, more: &str) -> String {
    format!("[components.main.links]\n\"{contract}\" = {more}\n")
}

fn cases() -> Vec<Case> {
    let kv = "\"wasi:keyvalue\" = \"embedded\"\n";
    vec![
        (
            "keys",
            "kv-probe",
            link("wasi:keyvalue", "\"memory\""),
            &[("/set/default/k/v", 200), ("/get/default/k", 200), ("/increment/default/k/1", 502)],
            "wasi:keyvalue",
            Counted::of(3, &[("refused", 1)]),
        ),
        (
            "objects",
            "blob-probe",
            link("wasi:blobstore", "\"folder\""),
            // A container that is there is asked for once by each operation on it, and an upload ends with a call.
            &[("/create/c", 200), ("/fill/c/o/10", 200), ("/sum/c/o", 200), ("/sum/c/none", 502)],
            "wasi:blobstore",
            Counted::of(1 + 3 + 2 + 2, &[("refused", 1)]),
        ),
        (
            "sender",
            "messages",
            link("wasmcloud:messaging", "\"local\"") + kv,
            &[("/publish?subject=nobody.listens&body=a", 200), ("/ask?subject=nobody.answers&body=a", 500)],
            "wasmcloud:messaging",
            Counted::of(2, &[("refused", 1)]),
        ),
        (
            "worker",
            "messages",
            link("wasmcloud:messaging", "{ provider = \"durable\", subscriptions = \"orders.*\", max-tries = \"2\" }")
                + kv,
            // Sent, and handled; the second one is handled as often as it may be.
            &[("/publish?subject=orders.new&body=a", 200), ("/publish?subject=orders.new&body=fail", 200)],
            "wasmcloud:messaging",
            Counted::of(2 + 1 + 2, &[("refused", 2)]),
        ),
        (
            "secret",
            "secret-probe",
            link("wasmcloud:secrets", "[{ provider = \"secrets\", label = \"api-key\" }]") + kv,
            &[("/get/api-key", 200), ("/get/api-key", 200)],
            "wasmcloud:secrets",
            Counted::of(2, &[]),
        ),
        (
            "tables",
            "sql-probe",
            link("sidereal:sql", "\"sqlite\""),
            &[("/query/-?sql=SELECT%201", 200), ("/query/-?sql=SELEC", 502)],
            "sidereal:sql",
            Counted::of(2, &[("refused", 1)]),
        ),
        (
            "postgres",
            "pg-probe",
            link("wasmcloud:postgres", "\"db\""),
            &[("/query?sql=SELECT%201", 200), ("/batch?sql=SELECT%201", 200), ("/query?sql=SELEC", 502)],
            "wasmcloud:postgres",
            Counted::of(3, &[("refused", 1)]),
        ),
    ]
}

#[test]
fn every_call_over_a_link_of_each_contract_is_counted_once() {
    let database = Postgres::start();
    let (dir, apps) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(&dir.path().join("data"), &["--shards", "1"]).unwrap();
    platform.secret("api-key", "value").unwrap();
    platform.secret("db", postgres::PASSWORD).unwrap();
    let add = ["provider", "add", "db", "--type", "sql-postgres", "--set", "username=postgres", "--set", "tls=off"];
    let url = database.url();
    platform.ok(&[&add[..], &["--secret", "password=db", "--url", &url]].concat()).unwrap();
    let cases = cases();
    for (app, guest, rest, asked, ..) in &cases {
        write_app(&apps.path().join(app), app, guest, rest).unwrap();
        platform.ok(&["deploy", apps.path().join(app).to_str().unwrap()]).unwrap();
        for (path, status) in *asked {
            let answer = platform.get(&format!("{app}.localhost"), path).unwrap();
            assert_eq!(answer.status, *status, "{app}{path}: {}", answer.body);
        }
    }
    // A reading answers for a moment, and a message is handled after it was sent.
    for (app, _, _, _, contract, wanted) in &cases {
        let mut found = Counted::default();
        let same = until(Duration::from_secs(20), || {
            found = counted(&scrape(&platform), app, "main", contract);
            found == *wanted
        });
        assert!(same.is_ok(), "{app}: {found:?}, and it should be {wanted:?}");
    }
    // They stay so: nothing is counted twice, or late.
    std::thread::sleep(Duration::from_secs(2));
    let text = scrape(&platform);
    for (app, _, _, _, contract, wanted) in &cases {
        assert_eq!(counted(&text, app, "main", contract), *wanted, "{app}");
    }
    let top = platform.ok(&["top", "--interval", "250ms"]).unwrap();
    for (app, _, _, _, contract, _) in &cases {
        let links = top["links"].as_array().unwrap();
        assert!(links.iter().any(|link| link["app"] == *app && link["contract"] == *contract), "{app}: {top}");
    }
}

#[test]
fn calls_from_component_to_component_are_counted_where_they_are_made() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    for name in ["shop", "pricing"] {
        fs::copy(sidereal_tests::guest(name), app.path().join(format!("{name}.wasm"))).unwrap();
    }
    fs::write(app.path().join("app.toml"), crate::components::SHOP).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let get = |host: &str, path: &str| platform.get(host, path).unwrap().status;
    assert_eq!(get("shop.localhost", "/next?times=3"), 200);
    assert_eq!(get("shop.localhost", "/act?what=trap"), 500);

    // One that is a provider is called over the contract, and calls over links of its own.
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/prefix-keyvalue");
    for signer in ["../counter/signer.pub", "signer.pub"] {
        let key = fs::read_to_string(format!("{example}/{signer}")).unwrap();
        platform.ok(&["tenant-settings", "set", "--trust", key.trim()]).unwrap();
    }
    platform.ok(&["deploy", example]).unwrap();
    (0..5).for_each(|_| assert_eq!(get("prefix-keyvalue.localhost", "/"), 200));
    let each = |component: &str, contract: &str, app: &str| counted(&scrape(&platform), app, component, contract);
    let direct = || each("shop", "acme:pricing", "shop");
    until(Duration::from_secs(20), || direct() == Counted::of(4, &[("unavailable", 1)]))
        .unwrap_or_else(|_| panic!("{:?}", direct()));
    for component in ["counter", "prefixer"] {
        let kept = || each(component, "wasi:keyvalue", "prefix-keyvalue");
        until(Duration::from_secs(20), || kept() == Counted::of(5, &[]))
            .unwrap_or_else(|_| panic!("{component}: {:?}", kept()));
    }
}
