//! Key-value in Vault, of both versions.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn version_2_conforms() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let below = |part| format!("{mount}/{part}/sidereal/acme/shop/*");
        let policy = rig.policy(&[&below("data"), &below("metadata")]);
        let (auth, login) = rig.approle(json!({ "token_policies": [policy], "token_ttl": 60 }));
        let kv = rig.kv("shop", &mount, Version::V2, login, Some(&auth));
        kv.check().await.unwrap();
        conformance::run_with(&kv, V2).await.unwrap();
        let asked = rig.dialer.asked.lock().unwrap()[0].clone();
        assert_eq!(asked.caller, Caller::Provider("store".parse().unwrap()));
        let dials = rig.dialer.dials.load(SeqCst);
        assert!(dials <= 200, "connections are kept for thousands of calls: {dials}");

        // What another app has is out of its reach, by the policy and by the path.
        rig.kv("other", &mount, Version::V2, rig.root_login(), None).set("b", "k", b"1".to_vec()).await.unwrap();
        for bucket in ["b", "../other/b", "../../acme/other/b"] {
            assert_eq!(kv.get(bucket, "k").await.unwrap(), None);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn version_1_conforms_and_refuses_what_it_cannot() {
    for rig in rigs().await {
        let mount = rig.mount("1");
        let kv = rig.kv("shop", &mount, Version::V1, rig.root_login(), None);
        kv.check().await.unwrap();
        conformance::run_with(&kv, V1).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_that_is_mounted_is_told_from_the_one_that_is_set() {
    for rig in rigs().await {
        for (mounted, set) in [("1", Version::V2), ("2", Version::V1)] {
            let mount = rig.mount(mounted);
            let refused = rig.kv("shop", &mount, set, rig.root_login(), None).check().await.unwrap_err();
            assert!(refused.to_string().contains(&format!("version = \"{mounted}\"")), "{refused}");
        }
        let missing = rig.kv("shop", "nothing-here", Version::V2, rig.root_login(), None);
        let said = missing.get("b", "k").await.unwrap_err();
        assert!(said.to_string().contains("nothing mounted"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_count_together_and_over_what_a_person_deleted() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let hosts = [0; 2].map(|_| rig.kv("shop", &mount, Version::V2, rig.root_login(), None));
        let calls = (0..100).map(|n| hosts[n % 2].increment("b", "hot", 1));
        let mut sums: Vec<u64> = futures::future::try_join_all(calls).await.unwrap();
        sums.sort_unstable();
        assert!(sums.into_iter().eq(1..=100), "each sees another sum and none is lost");
        // `vault kv delete` keeps the count of versions, so the next write is not the first.
        rig.admin("DELETE", &format!("{mount}/data/sidereal/acme/shop/b/hot"), Value::Null);
        assert_eq!(hosts[0].get("b", "hot").await.unwrap(), None);
        assert_eq!(hosts[0].increment("b", "hot", 7).await.unwrap(), 7);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_people_set_are_read() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let path = format!("{mount}/data/sidereal/acme/shop/b/by-hand");
        rig.admin("POST", &path, json!({ "data": { "value": "hello" } }));
        let kv = rig.kv("shop", &mount, Version::V2, rig.root_login(), None);
        assert_eq!(kv.get("b", "by-hand").await.unwrap(), Some(b"hello".to_vec()));
        kv.set("b", "by-us", b"hello back".to_vec()).await.unwrap();
        let seen = rig.admin("GET", &format!("{mount}/data/sidereal/acme/shop/b/by-us"), Value::Null);
        assert_eq!(seen["data"]["data"], json!({ "text": "hello back" }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_or_a_key_that_takes_only_writes_by_version_is_written() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        rig.admin("POST", &format!("{mount}/config"), json!({ "cas_required": true }));
        let kv = rig.kv("shop", &mount, Version::V2, rig.root_login(), None);
        kv.check().await.unwrap();
        conformance::run_with(&kv, V2).await.unwrap();
        // Over what is no value of ours, what was deleted by hand, and by many at once.
        let path = format!("{mount}/data/sidereal/acme/shop/b/by-hand");
        let by_hand = |cas: u64| json!({ "data": { "password": "hunter2" }, "options": { "cas": cas } });
        rig.admin("POST", &path, by_hand(0));
        kv.set("b", "by-hand", b"1".to_vec()).await.unwrap();
        rig.admin("DELETE", &path, Value::Null);
        kv.set("b", "by-hand", b"2".to_vec()).await.unwrap();
        assert_eq!(kv.get("b", "by-hand").await.unwrap(), Some(b"2".to_vec()));
        let hosts = [0; 2].map(|_| rig.kv("shop", &mount, Version::V2, rig.root_login(), None));
        let sets = (0..20_usize).map(|n| hosts[n % 2].set("b", "hot", n.to_string().into_bytes()));
        futures::future::try_join_all(sets).await.unwrap();
        let last = kv.get("b", "hot").await.unwrap().unwrap();
        assert!(String::from_utf8(last).unwrap().parse::<u64>().unwrap() < 20);

        let mount = rig.mount("2");
        let meta = format!("{mount}/metadata/sidereal/acme/shop/b/careful");
        rig.admin("POST", &meta, json!({ "cas_required": true }));
        let kv = rig.kv("shop", &mount, Version::V2, rig.root_login(), None);
        for value in [b"1", b"2"] {
            kv.set("b", "careful", value.to_vec()).await.unwrap();
            assert_eq!(kv.get("b", "careful").await.unwrap(), Some(value.to_vec()));
        }
    }
}

/// RustyVault, a Vault of its own make: sealed when it starts, and a `kv` of version 1.
struct RustyVault {
    child: std::process::Child,
    rig: Rig,
    key: String,
    _dir: tempfile::TempDir,
}

impl RustyVault {
    fn start() -> Option<Self> {
        let beside =
            std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/servers/rusty_vault/bin/rvault");
        let program = std::env::var_os("RUSTY_VAULT_BIN").map_or(beside, Into::into);
        if !program.is_file() {
            crate::support::not_run("RustyVault. What was missing: the program `rvault` (RUSTY_VAULT_BIN)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let address = crate::ports::free();
        let (shown, config) = (dir.path().display(), dir.path().join("config.hcl"));
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let text = format!(
            "storage \"file\" {{\n path = \"{shown}/data\"\n}}\nlistener \"tcp\" {{\n address = \"{address}\"\n tls_disable = \"true\"\n}}\n\
             api_addr = \"http://{address}\"\nlog_level = \"error\"\npid_file = \"{shown}/pid\"\nwork_dir = \"{shown}/work\"\ndaemon = false\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut child = std::process::Command::new(program);
        let child = child.arg("server").arg("--config").arg(config);
        let child = child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        let init = json!({ "secret_shares": 1, "secret_threshold": 1 }).to_string();
        let made = loop {
            match plain_http(address, "PUT", "/v1/sys/init", ("x-vault-token", "none"), &init) {
                Some((200, made)) => break serde_json::from_str::<Value>(&made).unwrap(),
                _ => assert!(start.elapsed() < Duration::from_secs(60), "rvault does not answer at {address}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let (key, root) = (text(&made["keys"][0]), text(&made["root_token"]));
        let rig = Rig { fake: None, address, root, dialer: Direct::to(address) };
        Some(Self { child, rig, key, _dir: dir })
    }
}

impl Drop for RustyVault {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn version_1_conforms_on_rusty_vault() {
    let Some(server) = RustyVault::start() else { return };
    let rig = &server.rig;
    let kv = rig.kv("shop", "kv1", Version::V1, rig.root_login(), None);
    let sealed = kv.get("b", "k").await.unwrap_err();
    assert!(matches!(&sealed, BackendError::Unavailable(why) if why.contains("sealed")), "{sealed:?}");
    rig.admin("PUT", "sys/unseal", json!({ "key": server.key }));
    rig.admin("POST", "sys/mounts/kv1", json!({ "type": "kv" }));
    let start = Instant::now();
    while let Err(cause) = kv.check().await {
        assert!(start.elapsed() < Duration::from_secs(60), "not found again: {cause}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It takes requests of 256 KiB, which is less than Vault does.
    conformance::run_with(&kv, Promises { max_value: 196_596, ..V1 }).await.unwrap();
    let unknown = rig.vault(Login::Token(Hidden::new("hunter2".to_owned())), None).check().await;
    assert_eq!(unknown.unwrap_err(), VaultError::Expired);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_a_call_is_in_its_trace() {
    const CALL: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let rig = rigs().await.remove(0);
    let mount = rig.mount("2");
    let kv = rig.kv("shop", &mount, Version::V2, rig.root_login(), None);
    kv.set("b", "k", b"1".to_vec()).await.unwrap();
    crate::support::traced(CALL, kv.get("b", "k")).await.unwrap();
    let fake = rig.fake.as_ref().unwrap();
    let asked = fake.state().asked.clone();
    let [.., (_, before), (_, last)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((before.get("traceparent"), last["traceparent"].to_str().unwrap()), (None, CALL));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_people_wrote_cut_no_listing_short() {
    for rig in rigs().await {
        for version in ["1", "2"] {
            let mount = rig.mount(version);
            let of = if version == "2" { "data/" } else { "" };
            let kv_version = if version == "2" { Version::V2 } else { Version::V1 };
            let kv = rig.kv("shop", &mount, kv_version, rig.root_login(), None);
            let keys: Vec<String> = (0..1100).map(|n| format!("k{n:04}")).collect();
            // The last name of the first page: a key that is none of ours, and a folder.
            for (bucket, foreign) in [("file", "k0998.json"), ("folder", "k0998+/x")] {
                let written = stream::iter(&keys).map(|key| kv.set(bucket, key, b"1".to_vec())).buffer_unordered(32);
                written.try_collect::<Vec<()>>().await.unwrap();
                let body = json!({ "data": { "value": "by hand" }, "value": "by hand" });
                rig.admin("POST", &format!("{mount}/{of}sidereal/acme/shop/{bucket}/{foreign}"), body);
                let (mut found, mut cursor, mut pages) = (Vec::new(), None, 0);
                loop {
                    let page = kv.list_keys(bucket, cursor.as_deref()).await.unwrap();
                    found.extend(page.keys);
                    pages += 1;
                    cursor = page.cursor;
                    if cursor.is_none() {
                        break;
                    }
                    assert!(pages < 5, "it ends: {cursor:?}");
                }
                assert_eq!(found.len(), keys.len(), "version {version}, {bucket}, {pages} pages");
                assert_eq!(found, keys);
                assert!(pages == 2 || rig.fake.is_none(), "{pages}");
            }
        }
    }
}
