//! Every backend does what the contract says; what Redis adds of its own: names, losses, refusals.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use model::SecretRef;
use providers::dial::{Caller, DialError};
use providers::keyvalue::redis::Login;
use providers::keyvalue::{Backend, BackendError, Memory, Redis, conformance};
use providers::secrets::Credentials;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

use crate::support::{Direct, RedisServer, Scripted, Vault};

fn redis_of(tenant: &str, app: &str, url: &str, dialer: Arc<Direct>) -> Redis {
    redis_as(tenant, app, url, login(None, &[], &Vault::new()), dialer)
}

pub(crate) fn redis_as(tenant: &str, app: &str, url: &str, login: Login, dialer: Arc<Direct>) -> Redis {
    Redis::new(&tenant.parse().unwrap(), &app.parse().unwrap(), &"store".parse().unwrap(), url, None, login, dialer)
        .unwrap()
}

/// A login with these settings as secrets, each named like its setting.
pub(crate) fn login(username: Option<&str>, secrets: &[&str], vault: &Arc<Vault>) -> Login {
    let secrets = secrets.iter().map(|name| ((*name).to_owned(), SecretRef::new(name.parse().unwrap())));
    let secrets = Credentials::new("shop".parse().unwrap(), secrets.collect(), vault.clone());
    Login { username: username.map(str::to_owned), secrets }
}

#[tokio::test]
async fn memory_conforms() {
    conformance::run(&Memory::new(64 << 20)).await.unwrap();
}

#[tokio::test]
async fn redis_conforms() {
    let server = RedisServer::start();
    let dialer = Direct::to(server.address);
    let redis = redis_of("acme", "shop", &server.url(), dialer.clone());
    redis.check().await.unwrap();
    conformance::run(&redis).await.unwrap();
    assert_eq!(dialer.dials.load(SeqCst), 1, "one connection carries everything");
    let asked = dialer.asked.lock().unwrap()[0].clone();
    assert_eq!((asked.host.as_str(), asked.port), ("127.0.0.1", server.address.port()));
    assert_eq!(asked.caller, Caller::Provider("store".parse().unwrap()));
}

#[tokio::test]
async fn the_suite_sees_a_backend_that_lies() {
    struct Liar(Memory);
    use providers::keyvalue::{Answer, Page};
    impl Backend for Liar {
        fn get<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, Option<Vec<u8>>> {
            self.0.get(bucket, key)
        }
        fn set<'a>(&'a self, bucket: &'a str, key: &'a str, value: Vec<u8>) -> Answer<'a, ()> {
            self.0.set(bucket, key, value)
        }
        fn delete<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, ()> {
            self.0.delete(bucket, key)
        }
        fn exists<'a>(&'a self, bucket: &'a str, key: &'a str) -> Answer<'a, bool> {
            self.0.exists(bucket, key)
        }
        fn list_keys<'a>(&'a self, bucket: &'a str, _: Option<&'a str>) -> Answer<'a, Page> {
            self.0.list_keys(bucket, None)
        }
        fn increment<'a>(&'a self, bucket: &'a str, key: &'a str, delta: u64) -> Answer<'a, u64> {
            self.0.increment(bucket, key, delta)
        }
        fn get_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, Vec<(String, Option<Vec<u8>>)>> {
            self.0.get_many(bucket, keys)
        }
        fn set_many<'a>(&'a self, bucket: &'a str, pairs: Vec<(String, Vec<u8>)>) -> Answer<'a, ()> {
            self.0.set_many(bucket, pairs)
        }
        fn delete_many<'a>(&'a self, bucket: &'a str, keys: Vec<String>) -> Answer<'a, ()> {
            self.0.delete_many(bucket, keys)
        }
    }
    let found = conformance::run(&Liar(Memory::new(64 << 20))).await.unwrap_err();
    assert!(found.to_string().contains("a listing ends"), "{found}");
}

#[tokio::test]
async fn neither_tenants_nor_apps_nor_buckets_meet_in_one_redis() {
    let server = RedisServer::start();
    let dialer = Direct::to(server.address);
    let one = redis_of("acme", "shop", &server.url(), dialer.clone());
    let others = [
        redis_of("acme", "shop-x", &server.url(), dialer.clone()),
        redis_of("acme-shop", "shop", &server.url(), dialer.clone()),
        redis_of("shop", "acme", &server.url(), dialer.clone()),
    ];
    one.set("b", "k", b"mine".to_vec()).await.unwrap();
    for other in &others {
        for bucket in ["b", "../shop/b", "acme/shop/b", "x/b", "*"] {
            assert_eq!(other.get(bucket, "k").await.unwrap(), None);
            other.delete(bucket, "k").await.unwrap();
            assert!(other.list_keys(bucket, None).await.unwrap().keys.is_empty());
        }
    }
    assert_eq!(one.get("b", "k").await.unwrap(), Some(b"mine".to_vec()));
}

#[tokio::test]
async fn many_callers_share_one_attempt_to_connect() {
    let dialer = Direct::to("127.0.0.1:1".parse().unwrap());
    let redis = redis_of("acme", "shop", "redis://nowhere.example", dialer.clone());
    let calls = futures::future::join_all((0..50).map(|_| redis.get("b", "k"))).await;
    assert!(calls.iter().all(|call| matches!(call, Err(BackendError::Unavailable(_)))));
    assert_eq!(dialer.dials.load(SeqCst), 1);
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let address = crate::ports::free();
    let _server = RedisServer::start_at(address, &["--requirepass", "right"]);
    let dialer = Direct::to(address);
    let url = format!("redis://{address}");
    let vault = Vault::new();
    let denied = redis_of("acme", "shop", &url, dialer.clone()).check().await.unwrap_err();
    assert!(matches!(denied, BackendError::Denied(_)), "no password: {denied:?}");
    let redis = redis_as("acme", "shop", &url, login(None, &["password"], &vault), dialer.clone());
    let missing = redis.check().await.unwrap_err();
    assert!(matches!(&missing, BackendError::Denied(why) if why.contains("secret set password")), "{missing:?}");
    for wrong in ["wrong-hunter2", "ri\r\nght", ""] {
        vault.set("password", wrong);
        let redis = redis_as("acme", "shop", &url, login(None, &["password"], &vault), dialer.clone());
        let denied = redis.check().await.unwrap_err();
        assert!(matches!(denied, BackendError::Denied(_)), "{wrong:?}: {denied:?}");
        assert!(!denied.to_string().contains("hunter2"), "{denied}");
    }
    vault.set("password", "right");
    redis_as("acme", "shop", &url, login(None, &["password"], &vault), dialer.clone()).check().await.unwrap();

    *dialer.refuse.lock().unwrap() = Some(DialError::Denied("10.0.0.1 (private) is not granted".into()));
    let denied = redis_of("acme", "shop", "redis://10.0.0.1", dialer).check().await.unwrap_err();
    assert!(matches!(denied, BackendError::Denied(_)), "{denied:?}");
}

#[tokio::test]
async fn what_a_server_repeats_of_a_login_is_not_told() {
    let (vault, dialled) = (Vault::new(), "127.0.0.1:1");
    vault.set("password", "hunter2");
    for (answer, code) in [
        ("-ERR unknown command `AUTH`, with args beginning with: `shop` `hunter2` \r\n", "(ERR)"),
        ("-WRONGPASS hunter2 is wrong\r\n", "(WRONGPASS)"),
        ("-hunter2 what is this\r\n", "refuses the login;"),
    ] {
        let server = Scripted::start(answer).await;
        let dialer = Direct::to(server.address);
        let login = login(Some("shop"), &["password"], &vault);
        let redis = redis_as("acme", "shop", &format!("redis://{dialled}"), login, dialer);
        let said = redis.check().await.unwrap_err();
        assert!(matches!(said, BackendError::Denied(_)) && said.to_string().contains(code), "{said}");
        assert!(!format!("{said} {said:?}").contains("hunter2"), "{said:?}");
    }
}

#[tokio::test]
async fn a_user_of_the_servers_own_list_logs_in() {
    let address = crate::ports::free();
    let _server = RedisServer::start_at(address, &["--user", "shop", "on", ">right", "~acme/*", "+@all"]);
    let (dialer, vault, url) = (Direct::to(address), Vault::new(), format!("redis://{address}/0"));
    vault.set("password", "right");
    vault.set("username", "shop");
    for login in [login(Some("shop"), &["password"], &vault), login(None, &["password", "username"], &vault)] {
        let redis = redis_as("acme", "shop", &url, login, dialer.clone());
        redis.set("b", "k", b"1".to_vec()).await.unwrap();
        let others =
            redis_as("umbrella", "shop", &url, self::login(Some("shop"), &["password"], &vault), dialer.clone());
        assert!(matches!(others.get("b", "k").await, Err(BackendError::Denied(_))), "its keys are its own");
    }
}

/// What the server counts as connections it took.
pub(crate) async fn tells(address: std::net::SocketAddr, password: &str, command: &str) -> String {
    let address = address.to_string();
    let (host, port) = address.rsplit_once(':').unwrap();
    let mut cli = tokio::process::Command::new("redis-cli");
    cli.args(["-h", host, "-p", port]).env("REDISCLI_AUTH", password).args(command.split(' '));
    String::from_utf8(cli.output().await.unwrap().stdout).unwrap()
}

#[tokio::test]
async fn a_password_that_is_set_anew_is_used_while_calls_go_on() {
    let address = crate::ports::free();
    let _server = RedisServer::start_at(address, &["--requirepass", "first"]);
    let (dialer, vault) = (Direct::to(address), Vault::new());
    vault.set("password", "first");
    let login = login(None, &["password"], &vault);
    let redis = Arc::new(redis_as("acme", "shop", &format!("redis://{address}"), login, dialer.clone()));
    redis.check().await.unwrap();

    let (stop, counter) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), redis.clone());
    let calls = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut count = 0;
            while !stop.load(SeqCst) {
                count += 1;
                assert_eq!(counter.increment("b", "n", 1).await.unwrap(), count, "no call fails or counts twice");
            }
            count
        }
    });
    // We know first, the server later: what there is goes on, and the new connection comes once it can.
    vault.set("password", "second");
    let start = Instant::now();
    while dialer.dials.load(SeqCst) < 3 {
        assert!(start.elapsed() < Duration::from_secs(60), "the new password is tried");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(tells(address, "first", "config set requirepass second").await.trim(), "OK");
    while vault.revealed.load(SeqCst) < 2
        || tells(address, "second", "client list").await.matches("cmd=evalsha").count() != 1
    {
        assert!(start.elapsed() < Duration::from_secs(60), "one connection is left, with the new password");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Those that were made with the old one are ended: nothing of ours is among them.
    let mut dials = 0;
    while dialer.dials.load(SeqCst) != dials {
        assert!(start.elapsed() < Duration::from_secs(90), "it comes to rest");
        dials = dialer.dials.load(SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.store(true, SeqCst);
    assert!(calls.await.unwrap() > 0);

    // The server first, and it ends our connection: the next one is made with what is set by then.
    assert_eq!(tells(address, "second", "config set requirepass third").await.trim(), "OK");
    tells(address, "third", "client kill type normal").await;
    let start = Instant::now();
    while !matches!(redis.get("b", "n").await, Err(BackendError::Denied(_))) {
        assert!(start.elapsed() < Duration::from_secs(60), "the old password is refused");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    vault.set("password", "third");
    let start = Instant::now();
    while let Err(cause) = redis.get("b", "n").await {
        assert!(start.elapsed() < Duration::from_secs(90), "{cause}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How often each of these commands was asked.
async fn asked(address: std::net::SocketAddr, commands: &[&str]) -> Vec<u64> {
    let stats = tells(address, "", "info commandstats").await;
    let count = |command: &&str| {
        let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")))?;
        line.split("calls=").nth(1)?.split(',').next()?.parse().ok()
    };
    commands.iter().map(|command| count(command).unwrap_or(0)).collect()
}

#[tokio::test]
async fn a_get_is_one_command_and_fetches_nothing_that_is_too_long() {
    let server = RedisServer::start();
    let redis = redis_of("acme", "shop", &server.url(), Direct::to(server.address));
    redis.set("b", "k", b"value".to_vec()).await.unwrap();
    for _ in 0..10 {
        assert_eq!(redis.get("b", "k").await.unwrap().as_deref(), Some(&b"value"[..]));
    }
    assert_eq!(redis.get("b", "none").await.unwrap(), None);
    // The script is loaded by the first; after that each is one command of the client, and two of the server's own.
    assert_eq!(asked(server.address, &["eval", "evalsha"]).await, [1, 11]);
    // Whoever writes to the same server may write more than a value has.
    let long = format!("eval redis.call('hset',KEYS[1],'long',string.rep('x',{})) 1 acme/shop/b", (8 << 20) + 1);
    let mut cli = tokio::process::Command::new("redis-cli");
    let (code, rest) = long.strip_prefix("eval ").unwrap().split_once(" 1 ").unwrap();
    cli.args(["-p", &server.address.port().to_string(), "eval", code, "1", rest]);
    assert!(cli.output().await.unwrap().status.success());
    let before = asked(server.address, &["hget"]).await;
    let said = redis.get("b", "long").await.unwrap_err();
    assert!(matches!(&said, BackendError::TooLarge(why) if why.contains("8388609")), "{said:?}");
    assert_eq!(asked(server.address, &["hget"]).await, before, "it is measured and not sent");
    // A server that forgot its scripts is told again.
    assert_eq!(tells(server.address, "", "script flush").await.trim(), "OK");
    assert_eq!(redis.get("b", "k").await.unwrap().as_deref(), Some(&b"value"[..]));
}

#[tokio::test]
async fn a_user_who_may_not_run_scripts_reads_in_two_commands() {
    let address = crate::ports::free();
    let _server =
        RedisServer::start_at(address, &["--user", "shop", "on", ">right", "~acme/*", "+@all", "-@scripting"]);
    let vault = Vault::new();
    vault.set("password", "right");
    let login = login(Some("shop"), &["password"], &vault);
    let redis = redis_as("acme", "shop", &format!("redis://{address}"), login, Direct::to(address));
    redis.set("b", "k", b"1".to_vec()).await.unwrap();
    for _ in 0..3 {
        assert_eq!(redis.get("b", "k").await.unwrap().as_deref(), Some(&b"1"[..]));
    }
    assert_eq!(asked(address, &["hstrlen", "hget"]).await, [3, 3]);
    assert_eq!(redis.increment("b", "k", 2).await, Ok(3));
    redis.set("b", "k", b"-5".to_vec()).await.unwrap();
    assert_eq!(redis.increment("b", "k", 2).await, Err(BackendError::NotANumber("k".into())));
    assert_eq!(redis.get("b", "k").await.unwrap().as_deref(), Some(&b"-5"[..]));
}

#[tokio::test]
async fn a_user_who_may_not_run_scripts_and_adds_first_adds() {
    let address = crate::ports::free();
    let _server =
        RedisServer::start_at(address, &["--user", "shop", "on", ">right", "~acme/*", "+@all", "-@scripting"]);
    let vault = Vault::new();
    vault.set("password", "right");
    let login = login(Some("shop"), &["password"], &vault);
    let redis = redis_as("acme", "shop", &format!("redis://{address}"), login, Direct::to(address));
    for sum in 1..4 {
        assert_eq!(redis.increment("b", "n", 1).await, Ok(sum));
    }
    assert_eq!(asked(address, &["hincrby"]).await, [3]);
}

/// Before a server: what a client says waits, after the first piece once it is `armed`, until it is let through.
async fn second_waits(server: std::net::SocketAddr) -> (std::net::SocketAddr, Arc<AtomicBool>, Arc<Notify>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, armed, through) =
        (listener.local_addr().unwrap(), Arc::<AtomicBool>::default(), Arc::<Notify>::default());
    let (is_armed, goes) = (armed.clone(), through.clone());
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = tokio::net::TcpStream::connect(server).await.unwrap().into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        let (mut piece, mut passed) = (vec![0; 64 << 10], false);
        while let Ok(count @ 1..) = from_client.read(&mut piece).await {
            if is_armed.load(SeqCst) && std::mem::replace(&mut passed, true) {
                goes.notified().await;
            }
            to_server.write_all(&piece[..count]).await.unwrap();
        }
    });
    (address, armed, through)
}

#[tokio::test]
async fn an_increment_that_is_refused_changes_nothing_that_another_one_writes() {
    let server = RedisServer::start();
    let (behind, armed, through) = second_waits(server.address).await;
    let other = redis_of("acme", "shop", &server.url(), Direct::to(server.address));
    let redis = Arc::new(redis_of("acme", "shop", &format!("redis://{behind}"), Direct::to(behind)));
    redis.increment("b", "warm", 1).await.unwrap();
    other.set("b", "n", b"-5".to_vec()).await.unwrap();
    armed.store(true, SeqCst);
    let asks = redis.clone();
    let refused = tokio::spawn(async move { asks.increment("b", "n", 3).await });
    let start = Instant::now();
    while !refused.is_finished() && other.get("b", "n").await.unwrap().as_deref() == Some(&b"-5"[..]) {
        assert!(start.elapsed() < Duration::from_secs(60), "it is asked");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    other.set("b", "n", b"100".to_vec()).await.unwrap();
    through.notify_one();
    assert_eq!(refused.await.unwrap(), Err(BackendError::NotANumber("n".into())));
    assert_eq!(other.get("b", "n").await.unwrap().as_deref(), Some(&b"100"[..]));
    // Also one that says its sum as text.
    other.set("b", "n", b"9007199254740993".to_vec()).await.unwrap();
    assert_eq!(other.increment("b", "n", 2).await, Ok(9_007_199_254_740_995));
}

#[tokio::test]
async fn a_url_that_is_none_is_refused_without_being_shown() {
    for url in
        ["", "redis:", "http://a", "unix:///run/redis.sock", "redis://user:hunter2@", "hunter2", "redis://u:hunter2@h"]
    {
        let dialer = Direct::to("127.0.0.1:1".parse().unwrap());
        let names = ("acme".parse().unwrap(), "shop".parse().unwrap(), "store".parse().unwrap());
        let login = login(None, &[], &Vault::new());
        let refused = match Redis::new(&names.0, &names.1, &names.2, url, None, login, dialer) {
            Err(refused) => refused.to_string(),
            Ok(_) => panic!("{url} was accepted"),
        };
        assert!(!refused.contains("hunter2"), "{refused}");
    }
}

#[tokio::test]
async fn redis_over_tls_conforms_and_proves_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let pem = |what: &str, der: &[u8]| {
        let base64 = data_encoding::BASE64.encode(der);
        let lines: Vec<_> = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", lines.join("\n"))
    };
    let cert = rcgen::generate_simple_self_signed(vec!["cache.example".to_owned()]).unwrap();
    let ca = pem("CERTIFICATE", cert.cert.der());
    let (cert_file, key_file) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert_file, &ca).unwrap();
    std::fs::write(&key_file, pem("PRIVATE KEY", &cert.signing_key.serialize_der())).unwrap();
    let address = crate::ports::free();
    // `--port` of before is taken back: nothing is answered without TLS.
    let (port, cert_file, key_file) =
        (address.port().to_string(), cert_file.display().to_string(), key_file.display().to_string());
    let more = [
        "--port",
        "0",
        "--tls-port",
        &port,
        "--tls-cert-file",
        &cert_file,
        "--tls-key-file",
        &key_file,
        "--tls-auth-clients",
        "no",
        "--requirepass",
        "first",
    ];
    let server = RedisServer::start_at(address, &more);
    let vault = Vault::new();
    vault.set("password", "first");
    let open = |url: &str, ca: Option<&str>| {
        let names = ("acme".parse().unwrap(), "shop".parse().unwrap(), "store".parse().unwrap());
        Redis::new(
            &names.0,
            &names.1,
            &names.2,
            url,
            ca,
            login(None, &["password"], &vault),
            Direct::to(server.address),
        )
    };
    let redis = open("rediss://cache.example/0", Some(&ca)).unwrap();
    redis.check().await.unwrap();
    conformance::run(&redis).await.unwrap();
    // Another name, another authority, and no TLS at all: nothing is sent, the password least of all.
    for (url, ca) in [("rediss://other.example", Some(ca.as_str())), ("rediss://cache.example", None)] {
        let refused = open(url, ca).unwrap().check().await;
        assert!(matches!(&refused, Err(BackendError::Unavailable(why)) if why.contains("TLS")), "{refused:?}");
    }
    assert!(open("redis://cache.example", None).unwrap().check().await.is_err());
    for (url, ca) in [("redis://cache.example", Some(ca.as_str())), ("rediss://cache.example", Some("nothing"))] {
        let refused = open(url, ca).err().map(|cause| cause.to_string());
        assert!(refused.as_deref().is_some_and(|why| why.contains("`ca`")), "{refused:?}");
    }
}
