//! `sidereal:sql` on a real Postgres, and what a server adds of its own: losses, refusals, secrets, garbage.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use model::SecretRef;
use model::sql::{Answer, Call, SqlError, Statement, Value};
use providers::dial::DialError;
use providers::secrets::Credentials;
use providers::share::Sharing;
use providers::sql::{Backend, Database, Postgres, conformance};

use crate::postgres_server::{PASSWORD, Postgres as Server};
use crate::support::{Direct, Scripted, Vault};

fn settings(url: &str, more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut config = crate::support::config(&[("url", url), ("username", "postgres")]);
    config.extend(crate::support::config(more));
    config
}

fn postgres(url: &str, more: &[(&str, &str)], vault: &Arc<Vault>, dialer: Arc<Direct>) -> Postgres {
    let (tenant, app, provider) = ("acme".parse().unwrap(), "shop".parse().unwrap(), "db".parse().unwrap());
    let secrets = [("password".to_owned(), SecretRef::new("password".parse().unwrap()))].into();
    let secrets = Credentials::new("shop".parse().unwrap(), secrets, vault.clone());
    Postgres::new(&tenant, &app, &provider, &settings(url, more), secrets, dialer).unwrap()
}

/// Without TLS, as a role with its password.
pub(crate) fn postgres_of(role: &str, password: &str, at: std::net::SocketAddr, dialer: Arc<Direct>) -> Postgres {
    let url = format!("postgres://{at}/postgres");
    postgres(&url, &[("tls", "off"), ("username", role)], &vault(password), dialer)
}

fn vault(password: &str) -> Arc<Vault> {
    let vault = Vault::new();
    vault.set("password", password);
    vault
}

fn plain(server: &Server) -> Postgres {
    postgres(&server.url(), &[("tls", "off")], &vault(PASSWORD), Direct::to(server.addr))
}

fn statement(sql: &str, params: &[Value]) -> Statement {
    Statement { sql: sql.to_owned(), params: params.to_vec() }
}

pub(crate) async fn execute(database: &Postgres, sql: &str) -> Result<u64, SqlError> {
    match database.call(Call::Execute(statement(sql, &[]))).await? {
        Answer::Changed(count) => Ok(count),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn rows(database: &Postgres, sql: &str, params: &[Value]) -> Result<Vec<Vec<Value>>, SqlError> {
    match database.call(Call::Query(statement(sql, params))).await? {
        Answer::Rows(rows) => Ok(rows.rows),
        other => panic!("{other:?}"),
    }
}

/// Asks until there is an answer.
async fn found_again(database: &Postgres) {
    let start = Instant::now();
    while let Err(cause) = rows(database, "SELECT 1", &[]).await {
        assert!(start.elapsed() < Duration::from_secs(60), "not found again: {cause}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn slow_statements_of_one_link_leave_connections_to_another() {
    let server = Server::start();
    let database: Arc<dyn Backend> = Arc::new(plain(&server));
    let link = || Database::new(database.clone(), Arc::default(), Sharing::among(2));
    let (slow, other) = (link(), link());
    // One that waits for the slow ones does so every time; one that does not may be late, where the machine stands still for a while.
    for round in 0.. {
        let all = (0..database.connections().unwrap() + 4).map(|_| {
            let slow = slow.clone();
            tokio::spawn(async move { slow.query("SELECT pg_sleep(3)::text".to_owned(), vec![]).await })
        });
        let all: Vec<_> = all.collect();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let answered = other.query("SELECT 1".to_owned(), vec![]).await.is_ok();
        let soon = answered && all.iter().all(|one| !one.is_finished());
        let mut well = true;
        for one in all {
            well &= one.await.unwrap().is_ok();
        }
        if soon && well {
            break;
        }
        assert!(round < 3, "it waited for one of the slow ones: {soon}, or one of them failed: {well}");
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_costs_another_link_no_connection() {
    let server = Server::start();
    let dialer = Direct::to(server.addr);
    let database: Arc<dyn Backend> = Arc::new(plain_with(&server, dialer.clone()));
    let link = || Database::new(database.clone(), Arc::default(), Sharing::among(2));
    let (slow, other) = (link(), link());
    let sleep = |seconds: f32| format!("SELECT pg_sleep({seconds})::text");
    let both = tokio::join!(slow.query(sleep(0.5), vec![]), other.query(sleep(0.5), vec![]));
    both.0.and(both.1).unwrap();
    // Both are at rest.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(dialer.dials.load(SeqCst), 2);
    tokio::time::timeout(Duration::from_millis(1200), slow.query(sleep(20.0), vec![])).await.unwrap_err();
    other.query("SELECT 1".to_owned(), vec![]).await.unwrap();
    assert_eq!(dialer.dials.load(SeqCst), 2, "it has the connection that was at rest");
}

#[tokio::test]
async fn postgres_conforms() {
    let server = Server::start();
    let database = plain(&server);
    database.check().await.unwrap();
    conformance::run(&database).await.unwrap();
    conformance::endless(&database).await.unwrap();
}

#[tokio::test]
async fn every_type_with_a_plain_text_is_read_and_others_say_how() {
    let server = Server::start();
    let database = plain(&server);
    let text = |text: &str| Value::Text(text.to_owned());
    for (sql, expected) in [
        ("SELECT 1.10::numeric", text("1.10")),
        (
            "SELECT 123456789012345678901234567890.000000000001::numeric",
            text("123456789012345678901234567890.000000000001"),
        ),
        ("SELECT -0.00001::numeric", text("-0.00001")),
        ("SELECT 100000000::numeric", text("100000000")),
        ("SELECT '2026-02-28'::date", text("2026-02-28")),
        ("SELECT '0044-03-15 BC'::date", text("0044-03-15 BC")),
        ("SELECT '12:34:56.7'::time", text("12:34:56.7")),
        ("SELECT '2026-02-28 12:34:56.789'::timestamp", text("2026-02-28 12:34:56.789")),
        ("SELECT '2026-02-28 12:00+02'::timestamptz", text("2026-02-28 10:00:00+00:00")),
        ("SELECT 'infinity'::timestamp", text("infinity")),
        ("SELECT 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'::uuid", text("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
        ("SELECT '{\"a\": 1}'::jsonb", text("{\"a\": 1}")),
        ("SELECT 'x'::char(3)", text("x  ")),
        ("SELECT 7::smallint", Value::Int64(7)),
        ("SELECT 0.5::real", Value::Float64(0.5)),
    ] {
        assert_eq!(rows(&database, sql, &[]).await, Ok(vec![vec![expected]]), "{sql}");
    }
    let range = rows(&database, "SELECT int4range(1, 3)", &[]).await.unwrap_err();
    assert!(matches!(&range, SqlError::Value(why) if why.contains("AS TEXT")), "{range:?}");
    let made = "CREATE TABLE t (d DATE, n NUMERIC(10, 2), u UUID, j JSONB, s SMALLINT, z TIMESTAMPTZ)";
    execute(&database, made).await.unwrap();
    let insert = "INSERT INTO t VALUES ($1, $2, $3, $4, $5, $6) RETURNING n, s, z";
    let uuid = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
    let given = [text("2026-02-28"), text("1.5"), text(uuid), text("{}"), Value::Int64(7), text("2026-02-28 00:00")];
    let expected = vec![vec![text("1.50"), Value::Int64(7), text("2026-02-28 00:00:00+00:00")]];
    assert_eq!(rows(&database, insert, &given).await, Ok(expected));
    let large = rows(&database, "SELECT $1::smallint", &[Value::Int64(100_000)]).await.unwrap_err();
    assert!(matches!(large, SqlError::Value(_)), "{large:?}");
}

#[tokio::test]
async fn a_table_that_changed_is_read_anew() {
    let server = Server::start();
    let database = plain(&server);
    execute(&database, "CREATE TABLE t (a BIGINT)").await.unwrap();
    execute(&database, "INSERT INTO t VALUES (1)").await.unwrap();
    assert_eq!(rows(&database, "SELECT * FROM t", &[]).await.unwrap()[0].len(), 1);
    execute(&database, "ALTER TABLE t ADD COLUMN b BIGINT").await.unwrap();
    assert_eq!(rows(&database, "SELECT * FROM t", &[]).await.unwrap()[0].len(), 2);
}

#[tokio::test]
async fn connections_are_few_and_nothing_is_left_on_them() {
    let server = Server::start();
    let dialer = Direct::to(server.addr);
    let database = postgres(&server.url(), &[("tls", "off")], &vault(PASSWORD), dialer.clone());
    let slow = (0..20).map(|_| rows(&database, "SELECT 1 FROM pg_sleep(0.05)", &[]));
    assert!(futures::future::join_all(slow).await.iter().all(Result::is_ok));
    assert!(dialer.dials.load(SeqCst) <= 8, "{} connections", dialer.dials.load(SeqCst));
    let open =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sidereal acme/shop/db' AND state <> 'idle'";
    // A connection is cleared after its answer.
    let start = Instant::now();
    while server.psql(PASSWORD, "postgres", open).unwrap() != "0" {
        assert!(start.elapsed() < Duration::from_secs(60), "a transaction stays open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A caller that gives up in the middle of a transaction leaves none behind, and no half of it.
    execute(&database, "CREATE TABLE t (n BIGINT)").await.unwrap();
    let batch = ["INSERT INTO t VALUES (1)", "SELECT pg_sleep(5)", "INSERT INTO t VALUES (2)"];
    let batch = Call::Batch(batch.map(|sql| statement(sql, &[])).to_vec());
    assert!(tokio::time::timeout(Duration::from_millis(500), database.call(batch)).await.is_err());
    assert_eq!(rows(&database, "SELECT count(*) FROM t", &[]).await, Ok(vec![vec![Value::Int64(0)]]));
    let start = Instant::now();
    while server.psql(PASSWORD, "postgres", open).unwrap() != "0" {
        assert!(start.elapsed() < Duration::from_secs(60), "a transaction stays open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(rows(&database, "SELECT count(*) FROM t", &[]).await, Ok(vec![vec![Value::Int64(0)]]));
}

#[tokio::test]
async fn a_row_larger_than_any_answer_is_not_gathered() {
    let server = Server::start();
    let database = plain(&server);
    let large = rows(&database, "SELECT repeat('x', 100000000)", &[]).await.unwrap_err();
    assert!(matches!(large, SqlError::TooLarge(_)), "{large:?}");
    found_again(&database).await;
}

#[tokio::test]
async fn a_server_that_crashed_is_found_again_with_every_acknowledged_write() {
    let mut server = Server::start();
    let database = plain(&server);
    execute(&database, "CREATE TABLE t (n BIGINT)").await.unwrap();
    execute(&database, "INSERT INTO t VALUES (1)").await.unwrap();
    server.crash();
    let start = Instant::now();
    for _ in 0..100 {
        let lost = execute(&database, "INSERT INTO t VALUES (2)").await.unwrap_err();
        assert!(matches!(lost, SqlError::Unavailable(_)), "{lost:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(60), "a dead server costs nothing per call");
    server.restart();
    found_again(&database).await;
    assert_eq!(rows(&database, "SELECT n FROM t", &[]).await, Ok(vec![vec![Value::Int64(1)]]));
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let server = Server::start();
    let dialer = Direct::to(server.addr);
    let wrong = postgres(&server.url(), &[("tls", "off")], &vault("wrong-canary"), dialer.clone());
    let denied = wrong.check().await.unwrap_err();
    assert!(matches!(denied, SqlError::Denied(_)), "{denied:?}");
    assert!(!format!("{denied:?} {denied}").contains("canary"), "{denied:?}");
    let none = postgres(&server.url(), &[("tls", "off")], &Vault::new(), dialer.clone()).check().await.unwrap_err();
    assert!(matches!(&none, SqlError::Denied(why) if why.contains("secret set")), "{none:?}");
    let nowhere = format!("postgres://{}/nowhere", server.addr);
    let missing = postgres(&nowhere, &[("tls", "off")], &vault(PASSWORD), dialer.clone()).check().await.unwrap_err();
    assert!(matches!(&missing, SqlError::Unavailable(why) if why.contains("nowhere")), "{missing:?}");
    let clear = postgres(&server.url(), &[], &vault(PASSWORD), dialer.clone()).check().await.unwrap_err();
    assert!(matches!(&clear, SqlError::Denied(why) if why.contains("tls")), "{clear:?}");
    *dialer.refuse.lock().unwrap() = Some(DialError::Denied("a private address".to_owned()));
    let policy = plain_with(&server, dialer).check().await.unwrap_err();
    assert!(matches!(policy, SqlError::Denied(_)), "{policy:?}");
    let database = plain(&server);
    execute(&database, "CREATE ROLE poor LOGIN PASSWORD 'poor'").await.unwrap();
    execute(&database, "CREATE TABLE rich (n BIGINT)").await.unwrap();
    let poor =
        postgres(&server.url(), &[("tls", "off"), ("username", "poor")], &vault("poor"), Direct::to(server.addr));
    let denied = rows(&poor, "SELECT * FROM rich", &[]).await.unwrap_err();
    assert!(matches!(denied, SqlError::Denied(_)), "{denied:?}");
}

fn plain_with(server: &Server, dialer: Arc<Direct>) -> Postgres {
    postgres(&server.url(), &[("tls", "off")], &vault(PASSWORD), dialer)
}

#[tokio::test]
async fn a_new_password_is_used_while_calls_go_on() {
    let server = Server::start();
    let (vault, dialer) = (vault(PASSWORD), Direct::to(server.addr));
    let database = postgres(&server.url(), &[("tls", "off")], &vault, dialer.clone());
    database.check().await.unwrap();
    assert_eq!(dialer.dials.load(SeqCst), 1);
    // We are told first: the connection there is stays.
    vault.set("password", "another");
    for _ in 0..10 {
        rows(&database, "SELECT 1", &[]).await.unwrap();
    }
    server.psql(PASSWORD, "postgres", "ALTER ROLE postgres PASSWORD 'another'").unwrap();
    let pid = async || rows(&database, "SELECT pg_backend_pid()", &[]).await.unwrap();
    let (start, before) = (Instant::now(), pid().await);
    while pid().await == before {
        assert!(start.elapsed() < Duration::from_secs(60), "the old connection is still used");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rows(&database, "SELECT 1", &[]).await.unwrap();
}

#[tokio::test]
async fn over_tls_the_server_proves_its_name() {
    let made = rcgen::generate_simple_self_signed(["db.example".to_owned()]).unwrap();
    let pem = |what: &str, der: &[u8]| {
        let text = data_encoding::BASE64.encode(der);
        format!("-----BEGIN {what}-----\n{text}\n-----END {what}-----\n")
    };
    let certificate = pem("CERTIFICATE", made.cert.der());
    let key = pem("PRIVATE KEY", &made.signing_key.serialize_der());
    let server = Server::with(Some((&certificate, &key)));
    let (vault, dialer) = (vault(PASSWORD), Direct::to(server.addr));
    let url = format!("postgres://db.example:{}/postgres", server.addr.port());
    let database = postgres(&url, &[("ca", &certificate)], &vault, dialer.clone());
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(rows(&database, encrypted, &[]).await, Ok(vec![vec![Value::Boolean(true)]]));
    for (url, more) in [
        (url.clone(), vec![]),
        (format!("postgres://other.example:{}/postgres", server.addr.port()), vec![("ca", certificate.as_str())]),
    ] {
        let refused = postgres(&url, &more, &vault, dialer.clone()).check().await.unwrap_err();
        assert!(matches!(&refused, SqlError::Unavailable(why) if why.contains("TLS")), "{refused:?}");
    }
}

#[tokio::test]
async fn garbage_and_silence_end_in_time() {
    for answer in
        ["HTTP/1.1 400 Bad Request\r\n\r\n", "R\0\0\0\u{8}\0\0\0\0Z\0\0\0\u{5}Xgarbage, and more of it", "\u{0}"]
    {
        let server = Scripted::start(answer).await;
        let url = format!("postgres://{}/postgres", server.address);
        let database = postgres(&url, &[("tls", "off")], &vault(PASSWORD), Direct::to(server.address));
        let start = Instant::now();
        let lost = rows(&database, "SELECT 1", &[]).await.unwrap_err();
        assert!(matches!(lost, SqlError::Unavailable(_) | SqlError::TimedOut { .. }), "{answer:?}: {lost:?}");
        assert!(start.elapsed() < Duration::from_secs(60));
    }
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let url = format!("postgres://{address}/postgres");
    let database = postgres(&url, &[("tls", "off")], &vault(PASSWORD), Direct::to(address));
    let start = Instant::now();
    let calls = futures::future::join_all((0..50).map(|_| rows(&database, "SELECT 1", &[]))).await;
    assert!(calls.iter().all(Result::is_err));
    assert!(start.elapsed() < Duration::from_secs(90), "{:?}", start.elapsed());
}
