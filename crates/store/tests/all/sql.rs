//! What a SQLite database of the node promises beside the contract: a statement reaches nothing outside its file, a full
//! or damaged one is refused and kept, and what was acknowledged is there after any end.

use std::time::{Duration, Instant};

use model::sql::{Answer, Call, SqlError, Statement, Value};
use store::sql::Databases;

struct Whose(Databases, &'static str, &'static str, &'static str);

impl Whose {
    async fn call(&self, call: Call) -> Result<Answer, SqlError> {
        let Self(databases, tenant, app, provider) = self;
        databases.call(&tenant.parse().unwrap(), &app.parse().unwrap(), &provider.parse().unwrap(), call).await
    }

    async fn execute(&self, sql: &str) -> Result<u64, SqlError> {
        let call = Call::Execute(Statement { sql: sql.to_owned(), params: vec![] });
        let Answer::Changed(changed) = self.call(call).await? else { panic!("another answer") };
        Ok(changed)
    }

    async fn one(&self, sql: &str) -> Result<Value, SqlError> {
        let call = Call::Query(Statement { sql: sql.to_owned(), params: vec![] });
        let Answer::Rows(rows) = self.call(call).await? else { panic!("another answer") };
        Ok(rows.rows[0][0].clone())
    }
}

fn open(dir: &tempfile::TempDir) -> Whose {
    Whose(Databases::new(dir.path().join("sql")), "acme", "shop", "sqlite")
}

#[tokio::test]
async fn neither_tenants_nor_apps_nor_providers_meet() {
    let dir = tempfile::tempdir().unwrap();
    let mine = open(&dir);
    mine.execute("CREATE TABLE t (n BIGINT)").await.unwrap();
    for (tenant, app, provider) in [
        ("acme", "shop", "other"),
        ("acme", "other", "sqlite"),
        ("other", "shop", "sqlite"),
        ("shop", "acme", "sqlite"),
    ] {
        let other = Whose(mine.0.clone(), tenant, app, provider);
        let missing = other.one("SELECT count(*) FROM t").await.unwrap_err();
        assert!(matches!(missing, SqlError::Invalid(_)), "{missing:?}");
    }
    assert!(dir.path().join("sql/acme/shop/sqlite.db").is_file());
}

#[tokio::test]
async fn a_statement_reaches_nothing_outside_its_file_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (mine, outside) = (open(&dir), dir.path().join("outside.db"));
    let outside = outside.to_str().unwrap();
    mine.execute("CREATE TABLE t (n BIGINT)").await.unwrap();
    for sql in [
        format!("ATTACH '{outside}' AS o"),
        format!("VACUUM INTO '{outside}'"),
        "PRAGMA journal_mode = DELETE".to_owned(),
        "PRAGMA synchronous = OFF".to_owned(),
        "PRAGMA writable_schema = ON".to_owned(),
        "PRAGMA max_page_count = 1000000000".to_owned(),
        "PRAGMA temp_store_directory = '/'".to_owned(),
        "SELECT load_extension('x')".to_owned(),
        "SELECT fts3_tokenizer('x')".to_owned(),
        "CREATE TEMP TABLE left_behind (n BIGINT)".to_owned(),
        "CREATE TEMP VIEW left_behind AS SELECT 1".to_owned(),
        "CREATE VIRTUAL TABLE v USING dbstat".to_owned(),
        "EXPLAIN ATTACH 'x' AS y".to_owned(),
        "UPDATE sqlite_master SET sql = 'x'".to_owned(),
        "INSERT INTO sqlite_master VALUES ('table', 'x', 'x', 0, 'x')".to_owned(),
    ] {
        let refused = mine.execute(&sql).await.unwrap_err();
        assert!(matches!(refused, SqlError::Denied(_) | SqlError::Invalid(_)), "{sql}: {refused:?}");
    }
    assert!(!std::path::Path::new(outside).exists());
    assert_eq!(mine.one("PRAGMA user_version").await.unwrap(), Value::Int64(0));
    mine.execute("PRAGMA user_version = 7").await.unwrap();
    assert_eq!(mine.one("PRAGMA user_version").await.unwrap(), Value::Int64(7));
    assert_eq!(mine.one("SELECT name FROM pragma_table_info('t')").await.unwrap(), Value::Text("n".into()));
    mine.execute("CREATE VIRTUAL TABLE words USING fts5 (word)").await.unwrap();
    mine.execute("INSERT INTO words VALUES ('found')").await.unwrap();
    assert_eq!(mine.one("SELECT count(*) FROM words WHERE words MATCH 'found'").await.unwrap(), Value::Int64(1));
    // Text in double quotes is a name here, as in every other database.
    assert!(matches!(mine.one("SELECT \"text\"").await, Err(SqlError::Invalid(_))));
    let cast = Call::Query(Statement { sql: "SELECT $1::bigint".into(), params: vec![Value::Int64(1)] });
    let cast = mine.call(cast).await.unwrap_err();
    assert!(matches!(&cast, SqlError::Value(why) if why.contains("CAST")), "{cast:?}");
    let large = mine.one("SELECT zeroblob(1000000000)").await.unwrap_err();
    assert!(matches!(large, SqlError::TooLarge(_)), "{large:?}");
}

#[tokio::test]
async fn what_a_statement_sorts_is_bounded_and_never_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mine = open(&dir);
    mine.execute("CREATE TABLE t (n BIGINT)").await.unwrap();
    let greedy = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 100000)
                  SELECT zeroblob(15000000) FROM c ORDER BY random()";
    let refused = mine.one(greedy).await.unwrap_err();
    assert!(matches!(refused, SqlError::TooLarge(_)), "{refused:?}");
    assert_eq!(mine.one("SELECT count(*) FROM t").await, Ok(Value::Int64(0)), "others go on");
}

#[tokio::test]
async fn what_is_purged_is_gone_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let mine = open(&dir);
    let other = Whose(mine.0.clone(), "acme", "other", "sqlite");
    for one in [&mine, &other] {
        one.execute("CREATE TABLE t (n BIGINT)").await.unwrap();
    }
    for _ in 0..2 {
        mine.0.purge(&"acme".parse().unwrap(), &"shop".parse().unwrap()).unwrap();
        assert!(!dir.path().join("sql/acme/shop").exists());
    }
    assert!(matches!(mine.one("SELECT count(*) FROM t").await, Err(SqlError::Invalid(_))), "a new one is empty");
    assert_eq!(other.one("SELECT count(*) FROM t").await.unwrap(), Value::Int64(0));
}

#[tokio::test]
async fn a_slow_statement_holds_up_its_own_database_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let slow = open(&dir);
    let quick = Whose(slow.0.clone(), "acme", "other", "sqlite");
    quick.execute("CREATE TABLE t (n BIGINT)").await.unwrap();
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let began = Instant::now();
    // One that waits for it has written nothing by then; a machine that is very slow does not come to all of them.
    let (ended, written) = tokio::join!(slow.one(endless), async {
        let mut written = 0;
        while written < 20 && began.elapsed() < Duration::from_millis(model::sql::STATEMENT_MS) {
            quick.execute(&format!("INSERT INTO t VALUES ({written})")).await.unwrap();
            written += 1;
        }
        written
    });
    assert!(written >= 5, "the other one waited: {written}");
    assert!(matches!(ended, Err(SqlError::TimedOut { .. })), "{ended:?}");
    slow.execute("CREATE TABLE t (n BIGINT)").await.unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sql/acme/shop/sqlite.db");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let garbage = vec![0x5a; 8192];
    std::fs::write(&file, &garbage).unwrap();
    let mine = open(&dir);
    let refused = mine.execute("CREATE TABLE t (n BIGINT)").await.unwrap_err();
    assert!(matches!(&refused, SqlError::Unavailable(why) if why.contains("damaged")), "{refused:?}");
    assert_eq!(std::fs::read(&file).unwrap(), garbage);
}

#[tokio::test]
async fn another_owner_finds_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&dir);
    first.execute("CREATE TABLE t (n BIGINT)").await.unwrap();
    first.execute("INSERT INTO t VALUES (1)").await.unwrap();
    // Copied as a crash would leave it: the log is not written back.
    let copy = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("sql/acme/shop"), copy.path().join("sql/acme/shop"));
    std::fs::create_dir_all(&to).unwrap();
    for name in ["sqlite.db", "sqlite.db-wal"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
    assert_eq!(open(&copy).one("SELECT n FROM t").await.unwrap(), Value::Int64(1));
}

#[tokio::test]
async fn one_tenant_has_so_many_databases_open_and_the_oldest_idle_one_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let databases = open(&dir).0;
    let names: Vec<&'static str> = (0..40).map(|n| &*format!("shop-{n}").leak()).collect();
    // More than it may have open at once, one after the other: each is there when it is asked for again.
    for name in &names {
        let one = Whose(databases.clone(), "acme", name, "sqlite");
        one.execute("CREATE TABLE t (n BIGINT)").await.unwrap();
        one.execute("INSERT INTO t VALUES (7)").await.unwrap();
    }
    for name in &names {
        assert_eq!(Whose(databases.clone(), "acme", name, "sqlite").one("SELECT n FROM t").await, Ok(Value::Int64(7)));
    }
    // A thread that was told to leave is gone in a moment, and its file with it.
    let base = dir.path().join("sql/acme");
    let open_files = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|fd| fd.path().read_link().ok());
        let of_base = links.filter(|file| file.starts_with(&base) && file.extension().is_some_and(|end| end == "db"));
        // A file that was opened anew while it closed keeps a second descriptor until then.
        of_base.collect::<std::collections::BTreeSet<_>>().len()
    };
    let few = async {
        while open_files() > 32 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let closed = tokio::time::timeout(Duration::from_secs(60), few).await;
    assert!(closed.is_ok(), "closed databases let go of their files: {} are open", open_files());
}
