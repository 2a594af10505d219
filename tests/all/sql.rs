//! SQL through the whole platform: the same component on SQLite and on Postgres, each with data of its own, and no
//! acknowledged write lost whatever is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use sidereal_tests::http::Connection;
use sidereal_tests::platform::{Platform, write_app};
use sidereal_tests::postgres::{PASSWORD, Postgres};
use store::data::DataEngine;

use crate::blobstore::node_with;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataEngine::open(dir.path().join("data.redb")).unwrap();
    let messaging = node::messaging::Messaging::new(data.clone());
    let client = node_with(dir.path(), data, messaging).await;
    let sql = host::NodeSql::new(client, "shop".parse().unwrap(), "sqlite".parse().unwrap());
    providers::sql::conformance::run(&sql).await.unwrap();
    providers::sql::conformance::endless(&sql).await.unwrap();
}

fn deploy(platform: &Platform, dir: &std::path::Path, links: &str) {
    write_app(dir, "books", "sql-probe", &format!("[components.main.links]\n\"sidereal:sql\" = {links}")).unwrap();
    platform.ok(&["deploy", dir.to_str().unwrap()]).unwrap();
}

/// Status and text of one operation on the app.
fn ask(platform: &Platform, path: &str, body: &str) -> (u16, String) {
    let mut connection = Connection::open(platform.ingress).unwrap();
    let answer = connection.send("POST", "books.localhost", path, body.as_bytes()).unwrap();
    (answer.status, answer.body.trim_end().to_owned())
}

#[test]
fn an_app_keeps_tables_under_the_labels_of_its_links() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "2"]).unwrap();
    deploy(&platform, app.path(), "[{ provider = \"sqlite\" }, { label = \"same\", provider = \"sqlite\" }]");
    let ok = |text: &str| (200, text.to_owned());
    let made = "CREATE TABLE books (id BIGINT PRIMARY KEY, title TEXT NOT NULL, lent BOOLEAN)";
    assert_eq!(ask(&platform, "/execute/-", made), ok("0"));
    let add =
        "INSERT INTO books VALUES ($2, $1, $3)\tt:Dune\ti:1\tb:false\nINSERT INTO books VALUES (2, 'Emma', $1)\tn:";
    assert_eq!(ask(&platform, "/batch/same", add), ok("1 1"));
    let read = "SELECT * FROM books ORDER BY id";
    assert_eq!(ask(&platform, "/query/-", read), ok("id\ttitle\tlent\ni:1\tt:Dune\tb:false\ni:2\tt:Emma\tn:"));
    let again = ask(&platform, "/execute/default", "INSERT INTO books VALUES (1, 'Dune', NULL)");
    assert_eq!(again.0, 502);
    assert!(again.1.starts_with("constraint ConstraintKind::Unique"), "{}", again.1);
    let failed = ask(&platform, "/batch/-", "DELETE FROM books\nINSERT INTO nowhere VALUES (1)");
    assert!(failed.1.starts_with("invalid: "), "{}", failed.1);
    assert!(ask(&platform, "/query/-", read).1.contains("Dune"), "a batch is all or none");
    assert_eq!(ask(&platform, "/query/unknown", read), (502, "no-such-database".to_owned()));
    assert!(ask(&platform, "/execute/-", "ATTACH 'x' AS y").1.starts_with("denied: "));
    let tenants: Vec<_> = std::fs::read_dir(dir.path().join("sql")).unwrap().collect();
    assert!(tenants[0].as_ref().unwrap().path().join("books/sqlite.db").is_file());
}

#[test]
fn kill_9_loses_no_acknowledged_write() {
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut platform = Platform::start(dir.path(), &["--shards", "2"]).unwrap();
    deploy(&platform, app.path(), "\"sqlite\"");
    assert_eq!(ask(&platform, "/execute/-", "CREATE TABLE t (n BIGINT PRIMARY KEY)").0, 200);
    let mut next = 0_u64;
    let mut acknowledged = Vec::new();
    for _ in 0..3 {
        let stop = Arc::new(AtomicBool::new(false));
        let (address, stopped) = (platform.ingress, stop.clone());
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (first, stopped) = (next + writer * 1_000_000, stopped.clone());
                std::thread::spawn(move || {
                    let mut done = Vec::new();
                    let Ok(mut connection) = Connection::open(address) else { return done };
                    for n in first.. {
                        if stopped.load(SeqCst) {
                            break;
                        }
                        let sql = format!("INSERT INTO t VALUES ($1)\ti:{n}");
                        match connection.send("POST", "books.localhost", "/execute/-", sql.as_bytes()) {
                            Ok(answer) if answer.status == 200 => done.push(n),
                            Ok(answer) => panic!("{} {}", answer.status, answer.body),
                            Err(_) => break,
                        }
                    }
                    done
                })
            })
            .collect();
        let count = || ask(&platform, "/query/-", "SELECT count(*) FROM t");
        let before = count();
        sidereal_tests::platform::until(std::time::Duration::from_secs(60), || count() != before).unwrap();
        platform.kill().unwrap();
        stop.store(true, SeqCst);
        for writer in writers {
            acknowledged.extend(writer.join().unwrap_or_default());
        }
        next += 10_000_000;
        platform = Platform::start(dir.path(), &["--shards", "2"]).unwrap();
        let (status, there) = ask(&platform, "/query/-", "SELECT n FROM t");
        assert_eq!(status, 200, "{there}");
        let there: std::collections::HashSet<&str> = there.lines().collect();
        assert!(!acknowledged.is_empty());
        for n in &acknowledged {
            assert!(there.contains(format!("i:{n}").as_str()), "{n} was acknowledged and is not there");
        }
    }
}

#[test]
fn the_same_component_moves_from_sqlite_to_postgres_and_each_has_its_own_tables() {
    let server = Postgres::start();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    platform.secret("db-password", PASSWORD).unwrap();
    add_postgres(&platform, &server);
    deploy(&platform, app.path(), "\"sqlite\"");
    let ok = |text: &str| (200, text.to_owned());
    let made = "CREATE TABLE t (n BIGINT PRIMARY KEY, b BOOLEAN, y BYTEA, f DOUBLE PRECISION, s TEXT)";
    let add =
        |n: &str, s: &str| format!("INSERT INTO t VALUES ($1, $2, $3, $4, $5)\ti:{n}\tb:true\tx:00ff\tf:1.5\tt:{s}");
    let read = "SELECT * FROM t ORDER BY n";
    let row = |n: &str, s: &str| format!("n\tb\ty\tf\ts\ni:{n}\tb:true\tx:00ff\tf:1.5\tt:{s}");
    assert_eq!(ask(&platform, "/execute/-", made), ok("0"));
    assert_eq!(ask(&platform, "/execute/-", &add("1", "in sqlite")), ok("1"));
    assert_eq!(ask(&platform, "/query/-", read), ok(&row("1", "in sqlite")));

    platform.ok(&["link", "set", "books", "sidereal:sql=db"]).unwrap();
    let missing = ask(&platform, "/query/-", read);
    assert!(missing.1.starts_with("invalid: "), "{}", missing.1);
    assert_eq!(ask(&platform, "/execute/-", made), ok("0"));
    assert_eq!(ask(&platform, "/execute/-", &add("2", "in postgres")), ok("1"));
    assert_eq!(ask(&platform, "/query/-", read), ok(&row("2", "in postgres")));
    assert_eq!(server.psql(PASSWORD, "postgres", "SELECT s FROM t").unwrap(), "in postgres");

    platform.ok(&["link", "set", "books", "sidereal:sql=sqlite"]).unwrap();
    assert_eq!(ask(&platform, "/query/-", read), ok(&row("1", "in sqlite")));
    let providers = platform.ok(&["provider", "list"]).unwrap().to_string();
    assert!(providers.contains("sidereal:sql, wasmcloud:postgres"), "{providers}");
    assert!(!providers.contains(PASSWORD));
}

#[test]
fn a_component_of_wasmcloud_meets_its_postgres_and_no_sqlite() {
    let server = Postgres::start();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    platform.secret("db-password", PASSWORD).unwrap();
    add_postgres(&platform, &server);
    let links = |provider: &str| format!("[components.main.links]\n\"wasmcloud:postgres\" = \"{provider}\"");
    write_app(app.path(), "books", "pg-probe", &links("sqlite")).unwrap();
    let refused = platform.cli(&["deploy", app.path().to_str().unwrap()]).unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert!(said.contains("provider `sqlite` answers `sidereal:sql`"), "{said}");

    write_app(app.path(), "books", "pg-probe", &links("db")).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let ask = |path: &str| {
        let answer = platform.get("books.localhost", path).unwrap();
        (answer.status, answer.body.trim_end().to_owned())
    };
    assert_eq!(ask("/all"), (200, "same".to_owned()));
    let made =
        "/batch?sql=BEGIN;CREATE%20TABLE%20t%20(n%20INT,%20s%20TEXT);INSERT%20INTO%20t%20VALUES%20(1,'a');COMMIT";
    assert_eq!(ask(made), (200, "ok".to_owned()));
    let read = "/query?sql=SELECT%20n,%20s%20FROM%20t%20WHERE%20n%20%3E=%20$1%20ORDER%20BY%20n";
    let rows = ask(&format!("{read}&p=i:1"));
    assert_eq!(rows, (200, "n=PgValue::Int4(1)\ts=PgValue::Text(\"a\")".to_owned()));
    let (status, token) = ask("/prepare?sql=INSERT%20INTO%20t%20VALUES%20($1,%20$2)");
    assert_eq!(status, 200, "{token}");
    assert_eq!(ask(&format!("/exec?sql={token}&p=i:2%7Ct:b")), (200, "1".to_owned()));
    assert_eq!(ask(&format!("/exec?sql={token}&p=i:3%7Cn:")), (200, "1".to_owned()));
    let few = ask(&format!("/exec?sql={token}&p=i:3"));
    assert!(few.0 == 502 && few.1.contains("InvalidParams"), "{}", few.1);
    assert_eq!(ask("/exec?sql=unknown").1, "PreparedStatementExecError::UnknownPreparedQuery");
    assert!(ask("/query?sql=SELEC").1.contains("InvalidQuery"));
    assert!(ask("/query?sql=BEGIN").1.contains("Unexpected"));
    // A script that stays in the middle of a transaction leaves nothing of it.
    assert_eq!(ask("/batch?sql=BEGIN;DELETE%20FROM%20t").0, 200);
    assert_eq!(ask(&format!("{read}&p=i:1")).1.lines().count(), 3);
    // Nor is anything else of a session met by the next call, by whichever way it was left.
    let encoded = |sql: &str| sql.replace(' ', "%20");
    for leave in [
        "/batch?sql=CREATE TEMPORARY TABLE t (x TEXT); SET search_path = nowhere; SELECT pg_advisory_lock(1); LISTEN news",
        "/batch?sql=PREPARE theirs AS SELECT 1; SET default_transaction_read_only = on",
        "/query?sql=SELECT set_config('search_path', 'nowhere', false)",
        "/query?sql=SELECT count(pg_advisory_lock(2)::text)",
        "/query?sql=SELECT count(set_config('default_transaction_read_only', 'on', false))",
    ] {
        assert_eq!(ask(&encoded(leave)).0, 200, "{leave}");
        assert_eq!(ask(&format!("{read}&p=i:1")).1.lines().count(), 3, "{leave}");
        assert_eq!(ask(&encoded("/query?sql=UPDATE t SET s = s WHERE n = 1")).0, 200, "{leave}");
        let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
        let free = || server.psql(PASSWORD, "postgres", held).unwrap() == "0";
        sidereal_tests::platform::until(std::time::Duration::from_secs(20), free).unwrap();
    }
}

#[test]
fn a_component_of_wasmcloud_meets_its_postgres_behind_another_component() {
    let server = Postgres::start();
    let (dir, app) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let platform = Platform::start(dir.path(), &["--shards", "1"]).unwrap();
    platform.secret("db-password", PASSWORD).unwrap();
    add_postgres(&platform, &server);
    let links = |own: &str| {
        format!(
            "links.\"wasmcloud:postgres\" = {{ component = \"between\" }}\n\n[components.between]\n\
             source = \"between.wasm\"\n{own}"
        )
    };
    std::fs::copy(sidereal_tests::guest("pg-between"), app.path().join("between.wasm")).unwrap();
    write_app(app.path(), "books", "pg-probe", &links("links.\"wasmcloud:postgres\" = \"db\"")).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    let ask = |path: &str| {
        let answer = platform.get("books.localhost", &path.replace(' ', "%20")).unwrap();
        (answer.status, answer.body.trim_end().to_owned())
    };
    assert_eq!(ask("/all"), (200, "same".to_owned()));
    assert_eq!(ask("/batch?sql=CREATE TABLE t (n INT)"), (200, "ok".to_owned()));
    let (status, token) = ask("/prepare?sql=INSERT INTO t VALUES ($1)");
    assert_eq!(status, 200, "{token}");
    assert_eq!(ask(&format!("/exec?sql={token}&p=i:7")), (200, "1".to_owned()));
    assert_eq!(ask("/query?sql=SELECT n FROM t"), (200, "n=PgValue::Int4(7)".to_owned()));
    let (status, text) = ask("/query?sql=DROP TABLE t");
    assert!(status == 502 && text.contains("the go-between drops nothing"), "{text}");
    assert_eq!(server.psql(PASSWORD, "postgres", "SELECT n FROM t").unwrap(), "7");
    // It is moved past the component, and back, like to any other provider.
    platform.ok(&["link", "set", "books", "wasmcloud:postgres=db", "--component", "main"]).unwrap();
    assert_eq!(ask("/batch?sql=DROP TABLE t"), (200, "ok".to_owned()));
    // One that does not export the contract is refused, with what it does export.
    std::fs::copy(sidereal_tests::guest("hello"), app.path().join("between.wasm")).unwrap();
    write_app(app.path(), "books", "pg-probe", &links("")).unwrap();
    let refused = platform.cli(&["deploy", app.path().to_str().unwrap()]).unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert!(said.contains("imports `wasmcloud:postgres/query@0.1.1-draft` from component `between`"), "{said}");
}

fn add_postgres(platform: &Platform, server: &Postgres) {
    let add = ["provider", "add", "db", "--type", "sql-postgres", "--set", "username=postgres", "--set", "tls=off"];
    let secret = ["--secret", "password=db-password", "--url"];
    platform.ok(&[&add[..], &secret[..], &[server.url().as_str()]].concat()).unwrap();
}
