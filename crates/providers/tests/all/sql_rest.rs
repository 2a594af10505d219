//! Nothing that one call leaves on a connection to a real Postgres is met by the next, whatever way it got there.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use model::sql::{SqlError, Value};
use providers::sql::Postgres;

use crate::postgres_server::{PASSWORD, Postgres as Server};
use crate::sql::{execute, postgres_of, rows};
use crate::support::Direct;

async fn one(database: &Postgres, sql: &str) -> Value {
    rows(database, sql, &[]).await.unwrap_or_else(|cause| panic!("{sql}: {cause}"))[0][0].clone()
}

fn run(sql: &str) -> String {
    format!("DO $do$ BEGIN {sql}; END $do$")
}

#[tokio::test]
async fn what_a_call_leaves_is_undone_and_the_connection_is_used_again() {
    let server = Server::start();
    let dialer = Direct::to(server.addr);
    let database = postgres_of("postgres", PASSWORD, server.addr, dialer.clone());
    execute(&database, "CREATE SEQUENCE q").await.unwrap();
    let pid = one(&database, "SELECT pg_backend_pid()").await;
    let text = |text: &str| Value::Text(text.to_owned());
    let setting = |name: &str| format!("SELECT coalesce(current_setting('{name}', true), '')");
    let none = Value::Int64(0);
    for (leave, look, expected) in [
        ("SELECT set_config('shop.customer', 'somebody', false)".to_owned(), setting("shop.customer"), text("")),
        ("SELECT set_config('work_mem', '128kB', false)".to_owned(), setting("work_mem"), text("4MB")),
        (run("SET statement_timeout = 0"), setting("statement_timeout"), text("10s")),
        (run("SET timezone = 'Asia/Tokyo'"), setting("timezone"), text("UTC")),
        (run("SET default_transaction_read_only = on"), setting("default_transaction_read_only"), text("off")),
        (
            "SELECT pg_advisory_lock(7), pg_advisory_lock(7), pg_advisory_lock_shared(8)".to_owned(),
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'".to_owned(),
            none.clone(),
        ),
        (run("EXECUTE 'LISTEN news'"), "SELECT count(*) FROM pg_listening_channels()".to_owned(), none.clone()),
        (
            run("EXECUTE 'DECLARE kept CURSOR WITH HOLD FOR SELECT 1'"),
            "SELECT count(*) FROM pg_cursors WHERE name = 'kept'".to_owned(),
            none.clone(),
        ),
    ] {
        rows(&database, &leave, &[]).await.unwrap_or_else(|cause| panic!("{leave}: {cause}"));
        assert_eq!(one(&database, &look).await, expected, "{leave}");
        assert_eq!(one(&database, "SELECT pg_backend_pid()").await, pid, "{leave}: the connection is kept");
    }
    assert_eq!(one(&database, "SELECT nextval('q')").await, Value::Int64(1));
    let last = rows(&database, "SELECT lastval()", &[]).await.unwrap_err();
    assert!(matches!(last, SqlError::Invalid(_)), "{last:?}");
    assert_eq!(dialer.dials.load(SeqCst), 1, "calls one after the other need one connection");
}

#[tokio::test]
async fn a_connection_where_names_mean_something_else_is_closed() {
    let server = Server::start();
    let database = postgres_of("postgres", PASSWORD, server.addr, Direct::to(server.addr));
    for sql in [
        "CREATE TABLE books (title TEXT)",
        "INSERT INTO books VALUES ('ours')",
        "CREATE SCHEMA other",
        "CREATE TABLE other.books (title TEXT)",
        "INSERT INTO other.books VALUES ('theirs')",
        "CREATE ROLE other",
    ] {
        execute(&database, sql).await.unwrap();
    }
    let read = "SELECT title || ' ' || current_user FROM books";
    for leave in [
        "CREATE TEMPORARY TABLE books AS SELECT 'theirs'::text AS title".to_owned(),
        "SELECT 'theirs'::text AS title INTO TEMPORARY books".to_owned(),
        "SELECT set_config('search_path', 'other', false)".to_owned(),
        run("SET search_path = other"),
        "SELECT set_config('role', 'other', false)".to_owned(),
        "SELECT set_config('session_authorization', 'other', false)".to_owned(),
        run("EXECUTE 'PREPARE theirs AS SELECT 1'"),
        run("EXECUTE 'DEALLOCATE ALL'"),
        // Every statement that the platform may have prepared is another one now.
        run("EXECUTE 'DEALLOCATE ALL'; \
             FOR n IN 0..99 LOOP EXECUTE 'PREPARE s' || n || ' AS SELECT ''theirs''::text'; END LOOP"),
    ] {
        let pid = one(&database, "SELECT pg_backend_pid()").await;
        assert_eq!(one(&database, read).await, Value::Text("ours postgres".to_owned()));
        rows(&database, &leave, &[]).await.unwrap_or_else(|cause| panic!("{leave}: {cause}"));
        assert_eq!(one(&database, read).await, Value::Text("ours postgres".to_owned()), "{leave}");
        let theirs = "SELECT count(*) FROM pg_prepared_statements WHERE from_sql";
        assert_eq!(one(&database, theirs).await, Value::Int64(0), "{leave}");
        assert_ne!(one(&database, "SELECT pg_backend_pid()").await, pid, "{leave}: the connection is closed");
    }
}

#[tokio::test]
async fn what_a_call_holds_ends_with_it_though_nobody_calls_again() {
    let server = Server::start();
    let database = postgres_of("postgres", PASSWORD, server.addr, Direct::to(server.addr));
    rows(&database, "SELECT pg_advisory_lock(7)", &[]).await.unwrap();
    rows(&database, &run("EXECUTE 'LISTEN news'"), &[]).await.unwrap();
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    let start = Instant::now();
    while server.psql(PASSWORD, "postgres", held).unwrap() != "0" {
        assert!(start.elapsed() < Duration::from_secs(60), "the lock is held by nobody's call");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What it costs, for whoever asks: `cargo test … -- --ignored --nocapture what_clearing_costs`.
#[tokio::test]
#[ignore = "prints figures and asserts none"]
async fn what_clearing_costs() {
    let server = Server::start();
    let database = postgres_of("postgres", PASSWORD, server.addr, Direct::to(server.addr));
    for at_once in [1, 8, 32] {
        let (start, mut calls) = (Instant::now(), 0_u32);
        while start.elapsed() < Duration::from_secs(3) {
            let all = (0..at_once).map(|_| rows(&database, "SELECT 1", &[]));
            assert!(futures::future::join_all(all).await.iter().all(Result::is_ok));
            calls += at_once;
        }
        println!("{at_once} at once: {:.0}/s", f64::from(calls) / start.elapsed().as_secs_f64());
    }
}
