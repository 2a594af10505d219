//! The life of a token: renewed, replaced, lost, and not blamed for what policies do not allow.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_and_then_replaced_before_it_ends() {
    for rig in rigs().await {
        let (auth, login) = rig.approle(json!({ "token_ttl": 6, "token_max_ttl": 10 }));
        let vault = rig.vault(login, Some(&auth));
        let start = Instant::now();
        // Longer than the longest life of one token, and never without one.
        while start.elapsed() < Duration::from_secs(13) {
            vault.check().await.unwrap();
            assert_eq!(get(&vault, "/v1/auth/token/lookup-self").await.unwrap(), 200);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if let Some(fake) = &rig.fake {
            assert!(fake.asked("renew-self") >= 1, "renewed first");
            let logins = fake.asked(&format!("{auth}/login"));
            assert!((2..=5).contains(&logins), "logged in anew when a renewal gave little: {logins}");
            let state = fake.state();
            let (_, headers) = state.asked.iter().find(|(path, _)| path.ends_with("lookup-self")).unwrap();
            assert_eq!(
                (&headers["x-vault-namespace"], &headers["x-vault-request"]),
                (&"team/a".parse().unwrap(), &"true".parse().unwrap())
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_replaced_at_the_next_call() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let policy = rig.policy(&[&format!("{mount}/*")]);
        let (auth, login) = rig.approle(json!({ "token_policies": [policy], "token_ttl": 600 }));
        let kv = rig.kv("shop", &mount, Version::V2, login, Some(&auth));
        assert_eq!(kv.increment("b", "n", 1).await.unwrap(), 1);
        if let Some(fake) = &rig.fake {
            let token = fake.state().asked.last().unwrap().1["x-vault-token"].to_str().unwrap().to_owned();
            rig.admin("POST", "auth/token/revoke", json!({ "token": token }));
        }
        // Many at once: one of them logs in, and none sees an error.
        let calls = (0..20).map(|_| kv.increment("b", "n", 1));
        let sums: Vec<u64> = futures::future::try_join_all(calls).await.unwrap();
        assert_eq!(sums.into_iter().max(), Some(21));
        if let Some(fake) = &rig.fake {
            assert_eq!(fake.asked(&format!("{auth}/login")), 2);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_refused_keeps_no_revoked_token_in_use_for_others() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let policy = rig.policy(&[&format!("{mount}/*")]);
        let (first, second) = (rig.token(json!({ "policies": [policy] })), rig.token(json!({ "policies": [policy] })));
        let held = Arc::new(std::sync::Mutex::new(Hidden::new(first.clone())));
        let vault = vault_at(&rig.url(), Arc::new(Changing(held.clone())), None, &rig.dialer);
        rig.admin("POST", &format!("{mount}/data/k"), json!({ "data": { "v": "1" } }));
        let (good, forbidden) = (format!("/v1/{mount}/data/k"), "/v1/secret-of-others/data/k");
        assert_eq!(get(&vault, &good).await.unwrap(), 200);
        assert!(matches!(get(&vault, forbidden).await, Err(VaultError::Denied(_))));
        *held.lock().unwrap() = Hidden::new(second);
        rig.admin("POST", "auth/token/revoke", json!({ "token": first }));
        assert_eq!(get(&vault, &good).await.unwrap(), 200, "replaced at once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_token_that_has_ended_is_said_to_have_ended() {
    for rig in rigs().await {
        let token = rig.token(json!({ "ttl": 6, "renewable": false, "policies": [] }));
        let vault = rig.vault(Login::Token(Hidden::new(token.clone())), None);
        vault.check().await.unwrap();
        let start = Instant::now();
        let ended = loop {
            match get(&vault, "/v1/auth/token/lookup-self").await {
                Ok(_) => assert!(start.elapsed() < Duration::from_secs(60)),
                Err(ended) => break ended,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(ended, VaultError::RanOut(Box::new(VaultError::Expired)));
        let unknown = rig.vault(Login::Token(Hidden::new("hvs.hunter2".to_owned())), None);
        let refused = unknown.check().await.unwrap_err();
        assert_eq!(refused, VaultError::Expired);
        assert!(!format!("{refused} {refused:?}").contains("hunter2"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_policies_do_not_allow_is_denied_without_a_new_login_each_time() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let (auth, login) = rig.approle(json!({ "token_ttl": 60 }));
        let kv = rig.kv("shop", &mount, Version::V2, login, Some(&auth));
        kv.check().await.unwrap();
        for _ in 0..20 {
            let denied = kv.get("b", "k").await.unwrap_err();
            assert!(matches!(denied, BackendError::Denied(_)), "{denied:?}");
            assert!(denied.to_string().contains("policies"), "{denied}");
        }
        if let Some(fake) = &rig.fake {
            assert_eq!(fake.asked(&format!("{auth}/login")), 1);
            // Once for what is mounted there, and once for the key.
            assert_eq!(fake.asked("lookup-self"), 2, "a token that is good is not asked about again at once");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_not_look_itself_up_is_not_replaced_for_each_call_that_is_denied() {
    for rig in rigs().await {
        let mount = rig.mount("2");
        let path = |part| format!("{mount}/{part}/sidereal/acme/shop/open/*");
        let policy = rig.policy(&[&path("data"), &path("metadata")]);
        let role = |uses| {
            json!({
                "token_policies": [policy], "token_ttl": 600, "token_no_default_policy": true,
                "secret_id_num_uses": uses,
            })
        };
        let denied = |kv: Arc<VaultKv>, n: usize| async move {
            // Each another path: a component can name as many as it likes.
            let denied = kv.set("closed", &format!("k{n}"), b"1".to_vec()).await.unwrap_err();
            assert!(matches!(denied, BackendError::Denied(_)), "{denied:?}");
            denied.to_string()
        };
        let (auth, login) = rig.approle(role(0));
        let kv = Arc::new(rig.kv("shop", &mount, Version::V2, login, Some(&auth)));
        for n in 0..40 {
            let said = denied(kv.clone(), n).await;
            assert!(said.contains("policies"), "{said}");
        }
        assert_eq!(kv.increment("open", "n", 1).await.unwrap(), 1);
        if let Some(fake) = &rig.fake {
            assert_eq!(fake.asked(&format!("{auth}/login")), 1, "Vault shows it the mount: it is not to blame");
        }
        // What it logs in with is used up by the first login: a call that is denied takes nothing from those that are not.
        let (auth, login) = rig.approle(role(1));
        let kv = Arc::new(rig.kv("shop", &mount, Version::V2, login, Some(&auth)));
        assert_eq!(kv.increment("open", "n", 1).await.unwrap(), 2);
        for n in 0..5 {
            denied(kv.clone(), n).await;
            assert_eq!(kv.get("open", "n").await.unwrap(), Some(b"2".to_vec()), "the token is as good as before");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_token_that_may_not_look_itself_up_is_replaced_at_once_whatever_was_denied_before() {
    for rig in rigs().await {
        let (mount, others) = (rig.mount("2"), rig.mount("2"));
        let policy = rig.policy(&[&format!("{mount}/data/open/*")]);
        let role = json!({ "token_policies": [policy], "token_ttl": 600, "token_no_default_policy": true });
        let (auth, login) = rig.approle(role);
        let path = |mount: &str, name: &str| format!("/v1/{mount}/data/{name}/k");
        for name in ["open", "closed"] {
            rig.admin("POST", &path(&mount, name)["/v1/".len()..], json!({ "data": { "v": "1" } }));
        }
        // Denied on a mount where it may do something, and on one where it may do nothing; asked first, and asked after.
        for (denied, first) in [(&mount, true), (&mount, false), (&others, false)] {
            let vault = rig.vault(login.clone(), Some(&auth));
            if !first {
                assert_eq!(get(&vault, &path(&mount, "open")).await.unwrap(), 200);
            }
            for _ in 0..3 {
                let refused = get(&vault, &path(denied, "closed")).await;
                assert!(matches!(refused, Err(VaultError::Denied(_))), "{refused:?}");
            }
            let Some(fake) = &rig.fake else { continue };
            let logins = fake.asked(&format!("{auth}/login"));
            let token = fake.state().asked.last().unwrap().1["x-vault-token"].to_str().unwrap().to_owned();
            rig.admin("POST", "auth/token/revoke", json!({ "token": token }));
            assert_eq!(get(&vault, &path(&mount, "open")).await.unwrap(), 200, "replaced at once: {denied} {first}");
            assert_eq!(fake.asked(&format!("{auth}/login")), logins + 1, "{denied} {first}");
        }
    }
}
