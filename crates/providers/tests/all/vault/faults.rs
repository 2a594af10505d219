//! A Vault that is sealed, slow, denied or none, and settings that are none.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_vault_is_said_to_be_sealed_and_works_again_when_it_is_not() {
    let rig = rigs().await.remove(0);
    let fake = rig.fake.as_ref().unwrap();
    let mount = rig.mount("2");
    let kv = rig.kv("shop", &mount, Version::V2, rig.root_login(), None);
    kv.set("b", "k", b"1".to_vec()).await.unwrap();
    fake.seal(true);
    let sealed = kv.get("b", "k").await.unwrap_err();
    assert!(matches!(&sealed, BackendError::Unavailable(why) if why.contains("sealed")), "{sealed:?}");
    let newcomer = rig.vault(rig.root_login(), None);
    assert!(matches!(newcomer.check().await.unwrap_err(), VaultError::Sealed(_)));
    fake.seal(false);
    assert_eq!(kv.get("b", "k").await.unwrap(), Some(b"1".to_vec()), "its token is as good as before");
    let start = Instant::now();
    while let Err(cause) = newcomer.check().await {
        assert!(start.elapsed() < Duration::from_secs(60), "{cause}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_vault_is_said_to_be_slow_and_keeps_its_token() {
    let rig = rigs().await.remove(0);
    let fake = rig.fake.as_ref().unwrap();
    let mount = rig.mount("2");
    let kv = rig.kv("shop", &mount, Version::V2, rig.root_login(), None);
    kv.set("b", "k", b"1".to_vec()).await.unwrap();
    // Much longer than is waited for: else both may be over when the machine comes to look at them.
    fake.state().delay = Duration::from_secs(30);
    let start = Instant::now();
    let slow = futures::future::join_all((0..10).map(|_| kv.get("b", "k"))).await;
    assert!(slow.iter().all(|slow| matches!(slow, Err(BackendError::TimedOut { ms: 4000 }))), "{slow:?}");
    assert!(start.elapsed() < Duration::from_secs(30), "they wait together: {:?}", start.elapsed());
    fake.state().delay = Duration::ZERO;
    let start = Instant::now();
    while let Err(cause) = kv.get("b", "k").await {
        assert!(start.elapsed() < Duration::from_secs(60), "{cause}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(fake.asked("lookup-self"), 1, "no new login");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_granted_is_denied() {
    let rig = rigs().await.remove(0);
    *rig.dialer.refuse.lock().unwrap() = Some(DialError::Denied("10.0.0.1 (private) is not granted".into()));
    let login = || Arc::new(Login::Token(Hidden::new("t".to_owned())));
    let denied = vault_at("http://10.0.0.1:8200", login(), None, &rig.dialer).check().await.unwrap_err();
    assert_eq!(denied.to_string(), "10.0.0.1 (private) is not granted");
}

#[tokio::test]
async fn what_is_not_vault_is_said_to_be_none() {
    let login = || Arc::new(Login::Token(Hidden::new("hvs.hunter2".to_owned())));
    for (answer, words) in [
        ("hello", "does not speak HTTP"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "not JSON"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "another shape"),
        ("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", "status 302"),
        ("HTTP/1.1 307 Elsewhere\r\nlocation: http://b\r\ncontent-length: 0\r\n\r\n", "standby"),
        ("HTTP/1.1 429 Slow\r\ncontent-length: 0\r\n\r\n", "rate limit"),
        ("HTTP/1.1 500 Oops\r\ncontent-length: 36\r\n\r\n{\"errors\":[\"what is hvs.hunter2 ?\"]}", "withheld"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", "more than"),
    ] {
        let server = Scripted::start(answer).await;
        let vault = vault_at(&server.url(), login(), None, &Direct::to(server.address));
        let said = vault.check().await.unwrap_err();
        assert!(said.to_string().contains(words), "{answer}: {said}");
        assert!(!format!("{said} {said:?}").contains("hunter2"), "{said:?}");
    }
    let server = Scripted::endless("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "1000\r\n", 0x1000).await;
    let vault = vault_at(&server.url(), login(), None, &Direct::to(server.address));
    assert!(matches!(vault.check().await.unwrap_err(), VaultError::TooLarge(_)));
    let server = Scripted::start("").await;
    let vault = vault_at(&server.url(), login(), None, &Direct::to(server.address));
    assert!(matches!(vault.check().await.unwrap_err(), VaultError::Slow { ms: 4000, .. }));
}

#[tokio::test]
async fn settings_that_could_be_paths_elsewhere_are_refused() {
    let login = Arc::new(Login::Token(Hidden::new("t".to_owned())));
    let dialer = Direct::to("127.0.0.1:1".parse().unwrap());
    for bad in ["..", "secret/../sys", "a//b", "a?b", "%2e%2e", ""] {
        let vault = || Settings { url: "http://v", ca: None, namespace: None, auth_mount: None, login: login.clone() };
        let names = ("acme".parse().unwrap(), "shop".parse().unwrap(), "store".parse().unwrap());
        let settings = |vault, mount, prefix| kv::Settings { vault, mount, prefix, version: Version::V2 };
        for settings in [
            settings(vault(), Some(bad), None),
            settings(vault(), None, Some(bad)),
            settings(Settings { namespace: Some(bad), ..vault() }, None, None),
            settings(Settings { auth_mount: Some(bad), ..vault() }, None, None),
        ] {
            assert!(VaultKv::new(&names.0, &names.1, &names.2, &settings, dialer.clone()).is_err(), "{bad}");
        }
    }
}
