//! What a body is made into: few bytes that ask for much are counted before anything is filled in, copied or compared.

use api::client::Require;
use api::control::{ConfigRequest, Plan};
use api::{Code, Problem};
use model::app::LockedApp;

use crate::guard::raw;
use crate::rig::{Rig, TOKEN, locked, name, refused};

/// The most memory that the process of the tests has had, bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// What an app is whose component has these as `config_from`, as a client may send it.
fn body(app: &LockedApp, names: impl Iterator<Item = String>) -> String {
    const PLACE: &str = r#""config":{}"#;
    let list: Vec<String> = names.map(|name| format!(r#"{{"name":"{name}"}}"#)).collect();
    let text = serde_json::to_string(app).unwrap();
    assert!(text.contains(PLACE));
    format!(r#"{{"app":{}}}"#, text.replacen(PLACE, &format!(r#"{PLACE},"config_from":[{}]"#, list.join(",")), 1))
}

async fn post(rig: &Rig, what: &str, body: &str) -> (u16, String) {
    let (status, _, answer) = raw(
        rig.addr,
        &format!(
            "POST /v1/tenants/t/apps/shop/{what} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {TOKEN}\r\n\
             content-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            rig.addr,
            body.len()
        ),
    )
    .await;
    (status, answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn configs_that_are_named_too_often_are_counted_and_not_filled_in() {
    let rig = Rig::new().await;
    let shop = locked("shop", &rig.artifact(1).await);
    // Filled in each time it would be 2 GiB: enough to be seen, and no more than a machine has.
    let values = [("k".to_owned(), "v".repeat(7000))].into();
    rig.client.put_config(&rig.tenant, &name("c"), &ConfigRequest { values }, Require::Absent).await.unwrap();
    let before = peak();
    for (count, names) in [
        (300_000, Box::new((0..300_000).map(|_| "c".to_owned())) as Box<dyn Iterator<Item = String>>),
        (240_000, Box::new((0..240_000).map(|n| format!("{n:x}")))),
    ] {
        let sent = body(&shop, names);
        assert!(sent.len() < api::control::MAX_JSON, "{}", sent.len());
        let what = format!("component `counter` names {count} shared configs; at most 8");
        let (status, answer) = post(&rig, "plan", &sent).await;
        let plan: Plan = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, plan.problems.len(), plan.changes.len()), (200, 1, 0), "{:?}", plan.problems);
        assert!(plan.problems[0].starts_with(&what), "{:?}", plan.problems);
        let (status, answer) = post(&rig, "revisions", &sent).await;
        let problem: Problem = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, problem.code, problem.findings.len()), (422, Code::ManifestInvalid, 0), "{problem:?}");
        assert!(problem.detail.starts_with(&what), "{problem:?}");
    }
    let more = peak() - before;
    assert!(more < 512 << 20, "it took {more} bytes");
    assert_eq!(refused(rig.client.app(&rig.tenant, &name("shop")).await).code, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_an_app_has_no_room_for_are_counted_and_not_filled_in() {
    let rig = Rig::new().await;
    for n in 0..8 {
        let values = (0..8).map(|k| (format!("k{k}"), "v".repeat(8000))).collect();
        let request = ConfigRequest { values };
        rig.client.put_config(&rig.tenant, &name(&format!("c{n}")), &request, Require::Absent).await.unwrap();
    }
    let mut shop = locked("shop", &rig.artifact(1).await);
    let component = shop.components.values_mut().next().unwrap();
    component.config_from = (0..8).map(|n| model::config::SharedConfig::named(name(&format!("c{n}")))).collect();
    for n in 1..64 {
        let another = shop.components.values().next().unwrap().clone();
        shop.components.insert(name(&format!("c{n}")), another);
    }
    let problem = refused(rig.put(&shop).await);
    assert_eq!(problem.code, Code::ManifestInvalid);
    // 64 components with 8 configs of 8 entries: 2 bytes of key and 8000 of value.
    assert!(problem.detail.contains("`shop` have 32776192 bytes; at most 1048576"), "{problem:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_are_too_many_are_said_once_each() {
    let rig = Rig::new().await;
    let mut shop = locked("shop", &rig.artifact(1).await);
    for component in shop.components.values_mut() {
        component.allow_hosts = vec!["x".to_owned(); 200_000];
    }
    shop.links[0].config = (0..100_000).map(|n| (format!("k{n}"), String::new())).collect();
    shop.routes[0].methods = vec!["x".to_owned(); 100_000];
    let problem = refused(rig.put(&shop).await);
    assert_eq!((problem.code, problem.findings.len()), (Code::ManifestInvalid, 3), "{problem:?}");
    for (finding, what) in problem.findings.iter().zip([
        "component `counter` names 200000 allowed hosts; at most 64",
        "a link of component `counter` has 100000 settings; at most 128",
        "a route names 100000 methods; at most 64",
    ]) {
        assert!(finding.starts_with(what), "{finding}");
    }
    // Too many components: what each of them has is not said beside.
    let mut shop = locked("shop", &rig.artifact(1).await);
    let one = shop.components.values().next().unwrap().clone();
    shop.components.extend((0..3000).map(|n| (name(&format!("c{n}")), one.clone())));
    let problem = refused(rig.put(&shop).await);
    assert_eq!((problem.code, problem.findings.len()), (Code::ManifestInvalid, 0), "{problem:?}");
    assert!(problem.detail.contains("at most 64 components, this one has 3001"), "{problem:?}");
}
