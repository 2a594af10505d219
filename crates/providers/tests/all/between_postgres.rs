//! `wasmcloud:postgres` with a component between: what a Postgres answers is answered behind one, word for word, and what no
//! Postgres would answer is not believed.

use std::sync::Arc;

use providers::meter::{ErrorKind, LinkMeter};
use providers::share::Sharing;
use providers::sql::PostgresLink;
use runtime::Bindings;

use crate::behind::Behind;
use crate::postgres_server::{PASSWORD, Postgres};
use crate::support::{Direct, Guest};

/// A database of the server, as a link has it.
fn link(server: &Postgres) -> PostgresLink {
    let postgres = crate::sql::postgres_of("postgres", PASSWORD, server.addr, Direct::to(server.addr));
    PostgresLink::new(Arc::new(postgres), Arc::default(), Sharing::Alone)
}

fn probe(link: PostgresLink) -> Guest {
    Guest::new("pg-probe", Bindings::new().with(Arc::new(link)), None)
}

/// The component that asks, the one that it asks, and what the link between them counts.
fn behind(guest: &str, bindings: Bindings) -> (Guest, Guest, Arc<Behind>, Arc<LinkMeter>) {
    let between = Guest::new(guest, bindings, None);
    let (callee, meter) = (Behind::new(&between), Arc::<LinkMeter>::default());
    (probe(PostgresLink::component(callee.clone(), meter.clone())), between, callee, meter)
}

/// With what stands in no target of a request as its bytes.
fn encoded(text: &str) -> String {
    let one = |c: char| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '/' | '?' | '=' | '&' | '-' | ':' | '_' => c.to_string(),
        other => format!("%{:02X}", u32::from(other)),
    };
    text.chars().map(one).collect()
}

/// What a component of wasmCloud asks: every operation, every kind of error, and each value there and back. What was answered
/// is given back, so that two ways to the same contents can be compared.
async fn contract(guest: &Guest) -> Vec<(String, u16, String)> {
    let mut told = Vec::new();
    let mut ask = async |path: &str| {
        let (status, text) = guest.get(&encoded(path)).await;
        told.push((path.to_owned(), status, text.clone()));
        (status, text.trim_end().to_owned())
    };
    let ok = |text: &str| (200, text.to_owned());
    assert_eq!(ask("/all").await, ok("same"), "each value is the same there and back");
    let made =
        "/batch?sql=BEGIN;CREATE TABLE t (n INT PRIMARY KEY, s TEXT NOT NULL);INSERT INTO t VALUES (1,'a');COMMIT";
    assert_eq!(ask(made).await, ok("ok"));
    let read = "/query?sql=SELECT n, s FROM t WHERE n > $1 ORDER BY n&p=i:0";
    assert_eq!(ask(read).await, ok("n=PgValue::Int4(1)\ts=PgValue::Text(\"a\")"));
    let (status, token) = ask("/prepare?sql=INSERT INTO t VALUES ($1, $2)").await;
    assert_eq!(status, 200, "{token}");
    assert_eq!(ask(&format!("/exec?sql={token}&p=i:2|t:b")).await, ok("1"));
    assert_eq!(ask(&format!("/exec?sql={token}&p=i:3|t:c")).await, ok("1"), "in another instance of both");
    assert_eq!(ask(read).await.1.lines().count(), 3);
    let (_, again) = ask("/prepare?sql=INSERT INTO t VALUES ($1, $2)").await;
    assert_eq!(again, token, "the same text has the same token");
    for (path, expected) in [
        (format!("/exec?sql={token}&p=i:3"), "InvalidParams"),
        (format!("/exec?sql={token}&p=i:3|t:again"), "duplicate key"),
        (format!("/exec?sql={token}&p=i:4|n:"), "null value"),
        ("/exec?sql=unknown".to_owned(), "PreparedStatementExecError::UnknownPreparedQuery"),
        ("/prepare?sql=SELEC".to_owned(), "syntax error"),
        ("/query?sql=SELEC".to_owned(), "InvalidQuery"),
        ("/query?sql=SELECT * FROM nowhere".to_owned(), "InvalidQuery"),
        ("/query?sql=SELECT $1::int4".to_owned(), "InvalidParams"),
        ("/query?sql=BEGIN".to_owned(), "Unexpected"),
        ("/query?sql=SELECT generate_series(1, 10001)".to_owned(), "10000 rows"),
        ("/query?sql=SELECT repeat('x', 9000000)".to_owned(), "bytes"),
        ("/query?sql=SELECT int4range(1, 3)".to_owned(), "AS TEXT"),
        ("/batch?sql=SELECT 1; SELEC".to_owned(), "InvalidQuery"),
    ] {
        let (status, text) = ask(&path).await;
        assert!(status == 502 && text.contains(expected), "{path}: {status} {text}");
    }
    assert_eq!(ask(read).await.1.lines().count(), 3, "what was refused changed nothing");
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_before_a_postgres_keeps_the_contract() {
    let (one, other) = (Postgres::start(), Postgres::start());
    let direct = contract(&probe(link(&one))).await;
    let (guest, _between, callee, meter) = behind("pg-between", Bindings::new().with(Arc::new(link(&other))));
    let by_way_of_it = contract(&guest).await;
    for (direct, by_way_of_it) in direct.iter().zip(&by_way_of_it) {
        assert_eq!(direct, by_way_of_it, "the same answers, and the same words of every error");
    }
    assert!(callee.faults().is_empty(), "{:?}", callee.faults());
    assert_eq!(meter.trouble(), None, "what is refused is no trouble of the link");
    // It is asked, and not only passed by.
    let dropped = guest.get(&encoded("/query?sql=DROP TABLE t")).await;
    assert!(dropped.0 == 502 && dropped.1.contains("the go-between drops nothing"), "{}", dropped.1);
    let dropped = guest.get(&encoded("/batch?sql=SELECT 1;DROP TABLE t")).await;
    assert!(dropped.0 == 502 && dropped.1.contains("the go-between drops nothing"), "{}", dropped.1);
    let dropped = guest.get(&encoded("/prepare?sql=DROP TABLE t")).await;
    assert!(dropped.0 == 502 && dropped.1.contains("the go-between drops nothing"), "{}", dropped.1);
    assert_eq!(other.psql(PASSWORD, "postgres", "SELECT count(*) FROM t").unwrap(), "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_component_answers_in_the_place_of_a_postgres_has_the_limits_and_the_shape_of_an_answer() {
    let (guest, _between, _callee, meter) = behind("pg-between", Bindings::new());
    let ask = async |sql: &str| guest.get(&encoded(&format!("/query?sql={sql}"))).await;
    let most = ask(&format!("SELECT rows {}", model::sql::MAX_ROWS)).await;
    assert!(most.0 == 200 && most.1.trim_end().lines().count() == model::sql::MAX_ROWS, "as many as there may be");
    for (sql, expected) in [
        (format!("SELECT rows {}", model::sql::MAX_ROWS + 1), "ask for fewer"),
        (format!("SELECT bytes {}", model::sql::MAX_ANSWER + 1), "ask for fewer"),
        ("SELECT ragged".to_owned(), "other columns than its first row"),
    ] {
        let (status, text) = ask(&sql).await;
        assert!(status == 502 && text.contains("Unexpected") && text.contains(expected), "{sql}: {status} {text}");
    }
    assert_eq!(meter.trouble().map(|trouble| trouble.kind), Some(ErrorKind::Unavailable), "it is no Postgres");
    // Nor is one that does not have the interface; a deploy refuses it before.
    let (guest, _other, _callee, _meter) = behind("hello", Bindings::new());
    let (status, text) = guest.get("/query?sql=SELECT%201").await;
    assert!(status == 502 && text.contains("does not export `wasmcloud:postgres/query"), "{text}");
}
