//! The ways to log in, and what is asked for at each.

use super::*;

/// A statement signed by Nomad, as it were.
fn jwt(key: &ed25519_dalek::SigningKey, claims: &Value) -> Hidden {
    use ed25519_dalek::Signer as _;
    let head = BASE64URL_NOPAD.encode(br#"{"alg":"EdDSA","typ":"JWT"}"#);
    let signed = format!("{head}.{}", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()));
    let signature = BASE64URL_NOPAD.encode(&key.sign(signed.as_bytes()).to_bytes());
    Hidden::new(format!("{signed}.{signature}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_logs_in_with_its_signed_identity() {
    for rig in rigs().await {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let mut der = data_encoding::HEXLOWER.decode(b"302a300506032b6570032100").unwrap();
        der.extend(key.verifying_key().as_bytes());
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----", BASE64.encode(&der));
        let auth = fresh("jwt");
        rig.admin("POST", &format!("sys/auth/{auth}"), json!({ "type": "jwt" }));
        let config = json!({ "jwt_validation_pubkeys": [pem], "jwt_supported_algs": ["EdDSA"] });
        rig.admin("POST", &format!("auth/{auth}/config"), config);
        let role = json!({
            "role_type": "jwt", "bound_audiences": ["vault.io"], "user_claim": "nomad_job_id", "token_ttl": 60,
        });
        rig.admin("POST", &format!("auth/{auth}/role/workloads"), role);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let claims = |audience: &str, exp: u64| json!({ "aud": audience, "nomad_job_id": "sidereal", "sub": "global:default:sidereal", "iat": now - 60, "nbf": now - 60, "exp": exp });
        let login = |jwt: Hidden, role: &str| Login::Jwt { role: Some(role.to_owned()), jwt };
        let good = jwt(&key, &claims("vault.io", now + 600));
        rig.vault(login(good.clone(), "workloads"), Some(&auth)).check().await.unwrap();
        let forged = jwt(&ed25519_dalek::SigningKey::from_bytes(&[8; 32]), &claims("vault.io", now + 600));
        for (what, jwt, role) in [
            ("another audience", jwt(&key, &claims("elsewhere", now + 600)), "workloads"),
            ("expired", jwt(&key, &claims("vault.io", now - 3600)), "workloads"),
            ("signed by another", forged, "workloads"),
            ("another role", good, "others"),
        ] {
            let refused = rig.vault(login(jwt.clone(), role), Some(&auth)).check().await.unwrap_err();
            assert!(matches!(refused, VaultError::LoginRefused { method: "jwt", .. }), "{what}: {refused:?}");
            assert!(!format!("{refused} {refused:?}").contains(jwt.expose()), "{refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_refused_is_not_tried_for_every_call() {
    for rig in rigs().await {
        let (auth, login) = rig.approle(json!({ "token_ttl": 60 }));
        let Login::AppRole { role_id, .. } = login else { panic!("an AppRole is one") };
        let wrong = Login::AppRole { role_id, secret_id: Hidden::new("hunter2".to_owned()) };
        let vault = rig.vault(wrong, Some(&auth));
        for _ in 0..50 {
            let refused = vault.check().await.unwrap_err();
            assert!(matches!(refused, VaultError::LoginRefused { method: "approle", .. }), "{refused:?}");
            assert!(!format!("{refused} {refused:?}").contains("hunter2"));
        }
        if let Some(fake) = &rig.fake {
            assert_eq!(fake.asked(&format!("{auth}/login")), 1);
        }
        let elsewhere = rig.vault(rig.approle(json!({})).1, Some("nowhere")).check().await.unwrap_err();
        assert!(matches!(elsewhere, VaultError::NoMount(_) | VaultError::LoginRefused { .. }), "{elsewhere:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_set_anew_is_used_at_the_next_login() {
    for rig in rigs().await {
        let [first, second] = [0; 2].map(|_| rig.token(json!({ "ttl": 600, "policies": [] })));
        let held = Arc::new(std::sync::Mutex::new(Hidden::new(first.clone())));
        let vault = vault_at(&rig.url(), Arc::new(Changing(held.clone())), None, &rig.dialer);
        vault.check().await.unwrap();
        *held.lock().unwrap() = Hidden::new(second);
        rig.admin("POST", "auth/token/revoke", json!({ "token": first }));
        assert_eq!(get(&vault, "/v1/auth/token/lookup-self").await.unwrap(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secrets_of_a_provider_log_in_and_are_asked_for_at_every_login() {
    for rig in rigs().await {
        let held = Keeper::new();
        let from = |settings: &[&str], mount: Option<&str>| {
            let named =
                |setting: &&str| ((*setting).to_owned(), SecretRef::new(setting.replace('_', "-").parse().unwrap()));
            let named = settings.iter().map(named).collect();
            let login = FromSecrets::new(Credentials::new("shop".parse().unwrap(), named, held.clone()), None);
            vault_at(&rig.url(), Arc::new(login), mount, &rig.dialer)
        };
        let missing = from(&["token"], None).check().await.unwrap_err();
        assert!(
            matches!(&missing, VaultError::NoCredential { cause, .. } if cause.contains("secret set token")),
            "{missing:?}"
        );

        let [first, second] = [0; 2].map(|_| rig.token(json!({ "ttl": 600, "policies": [] })));
        // As from a file, with the line break of an editor.
        held.set("token", &format!("{first}\n"));
        let vault = from(&["token"], None);
        vault.check().await.unwrap();
        held.set("token", &second);
        rig.admin("POST", "auth/token/revoke", json!({ "token": first }));
        assert_eq!(get(&vault, "/v1/auth/token/lookup-self").await.unwrap(), 200);

        let (auth, login) = rig.approle(json!({ "token_ttl": 60 }));
        let Login::AppRole { role_id, secret_id } = login else { panic!("an AppRole is one") };
        held.set("role-id", role_id.expose());
        held.set("secret-id", secret_id.expose());
        from(&["role_id", "secret_id"], Some(&auth)).check().await.unwrap();
        let half = from(&["role_id"], Some(&auth)).check().await.unwrap_err();
        assert!(matches!(half, VaultError::NoCredential { passing: false, .. }), "{half:?}");
    }
}
