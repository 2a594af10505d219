//! A tenant's room: keys, objects and databases share it, a write beyond it changes nothing, and what is removed gives it back.

use std::sync::Arc;

use model::sql::{Answer as Rows, Call, SqlError, Statement, Value};
use model::{AppName, ProviderName, TenantName};
use store::data::{Answer, DataEngine, Fault, Op};
use store::folder::{Folder, FolderError, Scope, Trash};
use store::room::Room;
use store::sql::Databases;

const KIB: u64 = 1 << 10;

fn names() -> (TenantName, AppName, ProviderName) {
    ("t".parse().unwrap(), "a".parse().unwrap(), "p".parse().unwrap())
}

fn room(most: u64) -> Arc<Room> {
    let room = Arc::new(Room::default());
    room.set(Some(most));
    room
}

async fn call(engine: &DataEngine, tenant: &str, op: Op) -> Result<Answer, Fault> {
    let (_, app, provider) = names();
    engine.call(&tenant.parse().unwrap(), &app, &provider, "b", op).await
}

fn set(key: &str, size: usize) -> Op {
    Op::Set { key: key.into(), value: vec![7; size] }
}

#[tokio::test]
async fn keys_take_room_and_give_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let engine = DataEngine::open(dir.path().join("data.redb")).unwrap();
    let tenant = names().0;
    call(&engine, "t", set("before", 10_000)).await.unwrap();
    call(&engine, "other", set("before", 10_000)).await.unwrap();
    let room = room(64 * KIB);
    engine.track(&tenant, &room).await.unwrap();
    let begun = room.used();
    assert!((10_000..10_100).contains(&begun), "what was there is counted, and nothing of others: {begun}");

    call(&engine, "t", set("k", 50_000)).await.unwrap();
    let full = call(&engine, "t", set("more", 10_000)).await.unwrap_err();
    assert!(matches!(full, Fault::OverQuota(_)) && full.to_string().starts_with("over quota"), "{full}");
    assert_eq!(call(&engine, "t", Op::Exists { key: "more".into() }).await, Ok(Answer::Bool(false)));
    call(&engine, "other", set("k", 1 << 20)).await.unwrap();
    // In place, and smaller: always. Larger: as far as there is room.
    call(&engine, "t", set("k", 50_000)).await.unwrap();
    call(&engine, "t", set("k", 40_000)).await.unwrap();
    call(&engine, "t", set("more", 10_000)).await.unwrap();
    assert!(matches!(call(&engine, "t", set("k", 50_000)).await, Err(Fault::OverQuota(_))));
    // All or none: the second alone would fit.
    let pairs = vec![("x".to_owned(), vec![1; 9000]), ("y".to_owned(), vec![1; 100])];
    let many = call(&engine, "t", Op::SetMany { pairs }).await;
    assert!(matches!(many, Err(Fault::OverQuota(_))), "{many:?}");
    assert_eq!(call(&engine, "t", Op::Exists { key: "y".into() }).await, Ok(Answer::Bool(false)));
    // The same key twice counts once.
    let pairs = vec![("x".to_owned(), vec![1; 3000]), ("x".to_owned(), vec![1; 2000])];
    let used = room.used();
    call(&engine, "t", Op::SetMany { pairs }).await.unwrap();
    assert!((2000..2100).contains(&(room.used() - used)), "{}", room.used() - used);
    let swap = Op::CompareAndSet { key: "more".into(), expected: None, value: vec![1; 60_000] };
    assert_eq!(call(&engine, "t", swap).await, Ok(Answer::Bool(false)), "what is not done takes nothing");
    let swap = Op::CompareAndSet { key: "new".into(), expected: None, value: vec![1; 60_000] };
    assert!(matches!(call(&engine, "t", swap).await, Err(Fault::OverQuota(_))));

    let keys = ["k", "more", "x", "x", "nothing"].map(str::to_owned).into();
    call(&engine, "t", Op::DeleteMany { keys }).await.unwrap();
    call(&engine, "t", Op::Delete { key: "nothing".into() }).await.unwrap();
    assert_eq!(room.used(), begun);
    let increment = Op::Increment { key: "n".into(), delta: 1 };
    assert_eq!(call(&engine, "t", increment).await, Ok(Answer::Number(1)));
    engine.purge(&tenant, &names().1).await.unwrap();
    assert_eq!(room.used(), 0);
    // Counted anew, it is the same.
    call(&engine, "t", set("k", 5000)).await.unwrap();
    let (used, again) = (room.used(), Arc::new(Room::default()));
    drop(engine);
    let engine = DataEngine::open(dir.path().join("data.redb")).unwrap();
    engine.track(&tenant, &again).await.unwrap();
    assert_eq!(again.used(), used);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counting_while_others_write_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = DataEngine::open(dir.path().join("data.redb")).unwrap();
    let (tenant, room) = (names().0, Arc::new(Room::default()));
    let writing: Vec<_> = (0..8)
        .map(|lane| {
            let engine = engine.clone();
            tokio::spawn(async move {
                for n in 0..50 {
                    let key = format!("{lane}-{}", n % 20);
                    let op = if n % 7 == 3 { Op::Delete { key } } else { set(&key, 100 + n * lane) };
                    call(&engine, "t", op).await.unwrap();
                }
            })
        })
        .collect();
    engine.track(&tenant, &room).await.unwrap();
    for lane in writing {
        lane.await.unwrap();
    }
    let (counted, again) = (room.used(), Arc::new(Room::default()));
    engine.track(&tenant, &again).await.unwrap();
    assert_eq!(counted, again.used());
}

#[test]
fn objects_take_room_while_they_are_written_and_when_they_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    let (tenant, app, provider) = names();
    let scope = Scope { tenant: &tenant, app: &app, provider: &provider };
    let put = |name: &str, size: u64| {
        let mut partial = folder.write(scope, "c", name)?;
        for _ in 0..size / KIB {
            partial.write(&[7; KIB as usize])?;
        }
        partial.finish()
    };
    folder.create(scope, "c").unwrap();
    put("before", 6 * KIB).unwrap();
    let room = room(160 * KIB);
    folder.track(&tenant, &room).unwrap();
    assert_eq!(room.used(), (8 + 4) * KIB, "whole blocks, and the container's own file");

    put("one", 60 * KIB).unwrap();
    let after_one = room.used();
    assert_eq!(after_one, (12 + 64) * KIB);
    let refused = put("two", 100 * KIB).unwrap_err();
    assert!(matches!(refused, FolderError::OverQuota(_)), "{refused}");
    assert_eq!(room.used(), after_one, "nothing of it stays");
    assert_eq!(folder.object(scope, "c", "two").unwrap(), None);
    // One that is on its way holds its room.
    let mut partial = folder.write(scope, "c", "slow").unwrap();
    (0..30).for_each(|_| partial.write(&[1; KIB as usize]).unwrap());
    assert!(matches!(put("three", 60 * KIB), Err(FolderError::OverQuota(_))));
    drop(partial);
    put("three", 60 * KIB).unwrap();
    // In the place of another one: while it is written both are there.
    put("three", 10 * KIB).unwrap();
    put("three", 10 * KIB).unwrap();
    assert_eq!(room.used(), after_one + 12 * KIB);
    assert!(matches!((0..100).try_for_each(|n| folder.create(scope, &n.to_string())), Err(FolderError::OverQuota(_))));
    for n in 0..100 {
        folder.delete(scope, &n.to_string()).unwrap().empty();
    }
    folder.remove(scope, "c", &["three".into(), "nothing".into(), "three".into()]).unwrap();
    assert_eq!(room.used(), after_one);
    folder.clear(scope, "c").unwrap().empty();
    assert_eq!(room.used(), 4 * KIB);
    folder.purge(&tenant, &app).map(Trash::empty).unwrap();
    assert_eq!(room.used(), 0);
}

fn statement(sql: &str, params: Vec<Value>) -> Statement {
    Statement { sql: sql.to_owned(), params }
}

#[tokio::test]
async fn a_database_grows_as_far_as_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let sql = Databases::new(dir.path());
    let (tenant, app, _) = names();
    let run = async |provider: &str, text: &str, bytes: usize| {
        let params = if bytes == 0 { Vec::new() } else { vec![Value::Bytes(vec![7; bytes])] };
        sql.call(&tenant, &app, &provider.parse().unwrap(), Call::Execute(statement(text, params))).await
    };
    run("p", "CREATE TABLE t (x BLOB)", 0).await.unwrap();
    run("p", "INSERT INTO t VALUES ($1)", 30_000).await.unwrap();
    let room = room(256 * KIB);
    sql.track(&tenant, &room).unwrap();
    run("q", "CREATE TABLE t (x BLOB)", 0).await.unwrap();
    run("p", "UPDATE t SET x = x", 0).await.unwrap();
    let begun = room.used();
    assert!((40 * KIB..80 * KIB).contains(&begun), "{begun}");
    let full = async |text: &str, bytes| match run("q", text, bytes).await {
        Err(SqlError::TooLarge(why)) => assert!(why.starts_with("over quota"), "{why}"),
        other => panic!("{other:?}"),
    };
    let mut rows = 0;
    while run("q", "INSERT INTO t VALUES ($1)", 20_000).await.is_ok() {
        rows += 1;
        assert!(rows < 20, "it never ends");
    }
    assert!(rows > 3 && room.used() <= 256 * KIB, "{rows} {}", room.used());
    full("INSERT INTO t VALUES ($1)", 40_000).await;
    full("INSERT INTO t SELECT x FROM t", 0).await;
    let count = Call::Query(statement("SELECT count(*) FROM t", Vec::new()));
    let counted = sql.call(&tenant, &app, &"q".parse().unwrap(), count).await.unwrap();
    let Rows::Rows(counted) = counted else { panic!("{counted:?}") };
    assert_eq!(counted.rows, [vec![Value::Int64(rows)]], "what was refused changed nothing");
    // Of the same room, the other database has nothing either; what is removed can be used again in its place.
    assert!(matches!(run("p", "INSERT INTO t VALUES ($1)", 30_000).await, Err(SqlError::TooLarge(_))));
    run("q", "DELETE FROM t", 0).await.unwrap();
    run("q", "INSERT INTO t VALUES ($1)", 20_000).await.unwrap();
    room.set(None);
    run("q", "INSERT INTO t VALUES ($1)", 1 << 20).await.unwrap();
    sql.purge(&tenant, &app).unwrap();
    assert_eq!(room.used(), 0);
}
