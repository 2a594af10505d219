//! Which keys a host gets: those of the apps of its tenant that run here, and what is told of a write.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_value_calls_of_two_tenants_never_meet() {
    let rig = Rig::new().await;
    let (one, two) = (running("one"), running("two"));
    let (first, second) = (rig.host(&one), rig.host(&two));
    let kv = |socket: NodeWay| Arc::new(KvClient::new(socket, Duration::from_secs(20)));
    let (first, second) = (kv(first.0), kv(second.0));

    let count = 2000;
    let started = Instant::now();
    let calls = (0..count).map(|_| {
        let first = first.clone();
        tokio::spawn(async move { first.call(&scope(), &increment("n")).await.unwrap() })
    });
    let mut seen: Vec<u64> = futures::future::join_all(calls)
        .await
        .into_iter()
        .map(|answer| match answer.unwrap() {
            KvAnswer::Number(number) => number,
            other => panic!("{other:?}"),
        })
        .collect();
    println!("{count} increments in {:?}", started.elapsed());
    seen.sort_unstable();
    assert_eq!(seen, (1..=count).collect::<Vec<u64>>(), "each increment is counted once");

    assert_eq!(second.call(&scope(), &KvOp::Get { key: "n".into() }).await.unwrap(), KvAnswer::Value(None));
    let value = first.call(&scope(), &KvOp::Get { key: "n".into() }).await.unwrap();
    assert_eq!(value, KvAnswer::Value(Some(count.to_string().into_bytes())));
    let fault = {
        let set = KvWrite::Set { key: "text".into(), value: b"abc".to_vec() }.into();
        first.call(&scope(), &set).await.unwrap();
        first.call(&scope(), &increment("text")).await.unwrap_err()
    };
    assert!(matches!(fault, KvError::Fault(KvFault::NotANumber(_))), "{fault}");
}

#[tokio::test]
async fn every_operation_is_mapped_to_itself() {
    let rig = Rig::new().await;
    let (socket, _server) = rig.host(&running("t"));
    let kv = KvClient::new(socket, Duration::from_secs(20));
    let pair = |key: &str, value: &str| (key.to_owned(), value.as_bytes().to_vec());
    let found = |key: &str, value: Option<&str>| (key.to_owned(), value.map(|v| v.as_bytes().to_vec()));
    let keys = |list: &[&str]| list.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    let table = [
        (KvWrite::Set { key: "a".into(), value: b"1".to_vec() }.into(), KvAnswer::Done),
        (KvOp::Get { key: "a".into() }, KvAnswer::Value(Some(b"1".to_vec()))),
        (KvOp::Exists { key: "a".into() }, KvAnswer::Bool(true)),
        (increment("a"), KvAnswer::Number(2)),
        (
            KvWrite::CompareAndSet { key: "a".into(), expected: Some(b"1".to_vec()), value: b"9".to_vec() }.into(),
            KvAnswer::Bool(false),
        ),
        (KvWrite::SetMany { pairs: vec![pair("b", "x"), pair("c", "y")] }.into(), KvAnswer::Done),
        (
            KvOp::GetMany { keys: keys(&["c", "z", "a"]) },
            KvAnswer::Values(vec![found("c", Some("y")), found("z", None), found("a", Some("2"))]),
        ),
        (KvOp::ListKeys { cursor: None, limit: 10 }, KvAnswer::Keys { keys: keys(&["a", "b", "c"]), cursor: None }),
        (KvWrite::DeleteMany { keys: keys(&["b", "c"]) }.into(), KvAnswer::Done),
        (KvWrite::Delete { key: "a".into() }.into(), KvAnswer::Done),
        (KvOp::Exists { key: "a".into() }, KvAnswer::Bool(false)),
    ];
    for (op, expected) in table {
        assert_eq!(kv.call(&scope(), &op).await.unwrap(), expected, "{op:?}");
    }
}

#[tokio::test]
async fn a_host_has_the_data_of_apps_that_run_here_and_of_no_others() {
    let rig = Rig::new().await;
    let (first, theirs) = rig.host(&running("t"));
    let kv = KvClient::new(first.clone(), Duration::from_secs(20));
    let calls = CallsClient::new(first, Duration::from_secs(20));
    let sql = |sql: &str| {
        let call = model::sql::Call::Execute(model::sql::Statement { sql: sql.to_owned(), params: vec![] });
        ServiceRequest::Sql(SqlRequest { provider: "sqlite".parse().unwrap(), call })
    };
    let blob = |op| ServiceRequest::Blob(BlobRequest { provider: "folder".parse().unwrap(), op });
    let create = || blob(BlobOp::Create { container: "c".into() });
    let (mine, invented): (AppName, AppName) = ("a".parse().unwrap(), "invented".parse().unwrap());
    kv.call(&scope(), &increment("n")).await.unwrap();
    for request in [sql("CREATE TABLE t (n BIGINT)"), create()] {
        calls.call(&mine, &request).await.unwrap();
        let refused = calls.call(&invented, &request).await.unwrap_err();
        assert!(refused.to_string().contains("no app `invented` of this tenant runs here"), "{refused}");
    }
    let refused = kv.call(&KvScope { app: invented.clone(), ..scope() }, &increment("n")).await.unwrap_err();
    assert!(refused.to_string().contains("no app `invented` of this tenant runs here"), "{refused}");
    for kept in ["sql/t", "objects/t"] {
        assert!(rig.dir.path().join(kept).join("a").exists(), "{kept}");
        assert!(!rig.dir.path().join(kept).join("invented").exists(), "{kept}");
    }
    drop(theirs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_tells_of_so_many_keys_and_no_more() {
    let rig = Rig::new().await;
    let (way, _theirs) = rig.host(&running("t"));
    let kv = KvClient::new(way, Duration::from_secs(20));
    let write = |tell| KvOp::Write { write: set("k"), tell };
    assert_eq!(kv.call(&scope(), &write(tells(16))).await.unwrap(), KvAnswer::Done, "nobody watches");
    let refused = kv.call(&scope(), &write(tells(17))).await.unwrap_err();
    assert!(matches!(refused, KvError::Fault(KvFault::TooLarge(_))), "{refused}");
    let nobody = KvTell { group: String::new(), keys: Vec::new(), trace: None };
    assert_eq!(kv.call(&scope(), &write(vec![nobody.clone(); MAX_TELL])).await.unwrap(), KvAnswer::Done);
    let refused = kv.call(&scope(), &write(vec![nobody; MAX_TELL + 1])).await.unwrap_err();
    assert!(matches!(refused, KvError::Lost(_)), "{refused}");
    // The queue holds ten thousand; what it is not told of is said.
    rig.services.messaging.declare(&"t".parse().unwrap(), &scope().app, &node::messaging::declared(&watching()));
    let told = kv.call(&scope(), &write(tells(16))).await.unwrap();
    let lost = vec![(WATCH.to_owned(), 16 * 1024 - 10_000)];
    assert_eq!(told, KvAnswer::Untold { answer: KvWritten::Done, lost });
}
