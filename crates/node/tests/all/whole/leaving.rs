//! A revision that was replaced while calls of it were under way: what was promised of what runs holds of those, too.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, Full};
use model::claims::{Claims, LEEWAY};
use model::tenant::TenantSettings;
use model::{AppName, Digest, Revision};
use node::Node;
use store::keys::{self, RevisionRecord};

use super::deploys::send;
use super::{Rig, get, tenant};

/// Whoever signed what is signed here.
const ISSUER: &str = "the account";

/// When the tenant is told that the first revision must not run.
#[derive(Debug, Clone, Copy, PartialEq)]
enum When {
    /// Before it is replaced, and nobody says so of what serves.
    Before,
    After,
    /// Its claims end after that, and nobody says anything.
    Expires,
}

async fn revision(rig: &Rig, number: u64, build: &str, expires: Option<u64>) {
    rig.record("a", number, "good", "[]").await;
    let key = keys::revision(&tenant(), &"a".parse::<AppName>().unwrap(), Revision(number));
    let entry = rig.store.get(&key).await.unwrap().unwrap();
    let mut record: RevisionRecord = serde_json::from_slice(&entry.value).unwrap();
    let digest = Digest::of(build.as_bytes());
    rig.blobs.put(&digest, build.as_bytes()).unwrap();
    for (name, component) in &mut record.app.components {
        component.digest = digest;
        let claims = serde_json::json!({ "jti": build, "iat": 0, "iss": ISSUER, "sub": "M", "exp": expires,
            "wascap": { "hash": "" } });
        record.claims.insert(name.clone(), serde_json::from_value::<Claims>(claims).unwrap());
    }
    rig.put(&key, &record).await;
}

/// A call of the first revision that goes on until it is ended.
async fn stream(node: &Node) -> tokio::task::JoinHandle<bool> {
    let request = http::Request::get("/stream").header("host", "a.test").body(Full::default().boxed()).unwrap();
    let answer = send(node, false, request).await;
    tokio::spawn(async move { answer.into_body().collect().await.is_ok() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_calls_of_what_must_not_run_any_more_end_at_once() {
    for when in [When::Before, When::After, When::Expires] {
        let rig = Rig::new();
        let node = rig.start().await;
        let key = keys::tenant(&tenant());
        let trusted = TenantSettings { trust_anchors: vec![ISSUER.to_owned()], ..TenantSettings::default() };
        let revoked = TenantSettings { revoked: vec!["one".to_owned()], ..trusted.clone() };
        rig.put(&key, &trusted).await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        revision(&rig, 1, "one", (when == When::Expires).then_some(now + 10 - LEEWAY)).await;
        revision(&rig, 2, "two", None).await;
        rig.want("a", 1).await;
        rig.serving("a", 1).await;
        let call = stream(&node).await;
        rig.noted("stream a/1", 1).await;
        if when == When::Before {
            rig.put(&key, &revoked).await;
        }
        rig.want("a", 2).await;
        rig.serving("a", 2).await;
        if when == When::After {
            assert!(!call.is_finished(), "it may finish as long as it may run");
            rig.put(&key, &revoked).await;
        }
        // It is not asked to end before its hosts are told so: it takes fifteen minutes otherwise.
        rig.noted("drain a/1", 2).await;
        assert!(!call.await.unwrap(), "{when:?}: it was not cut off");
        let (status, text, _) = get(&node, "a", "/").await;
        assert!(status == 200 && text.starts_with("a/2/"), "{when:?}: {status} {text}");
        node.shutdown(Duration::from_secs(5)).await;
    }
}
