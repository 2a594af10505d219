//! What a host of a tenant or an app that is suspended still gets: nothing, and what it has of the node comes back.

use super::*;

#[tokio::test]
async fn a_host_of_a_suspended_tenant_gets_neither_data_nor_secrets() {
    let rig = Rig::new().await;
    let tenant = Tenant::new("t".parse().unwrap());
    let app = r#"{"name":"a","components":{},
        "providers":{"cache":{"type":"keyvalue-redis","config":{"url":"redis://cache"},"secrets":{"password":{"secret":"s"}}}},
        "links":[{"component":"c","contract":"wasi:keyvalue","label":"default","provider":"cache"}]}"#;
    let locked: LockedApp = serde_json::from_str(app).unwrap();
    tenant.add(Arc::new(Prepared::of(Revision(1), &locked).unwrap()));
    let (way, _server) = rig.host(&tenant);
    let kv = KvClient::new(way.clone(), Duration::from_secs(20));
    let calls = CallsClient::new(way, Duration::from_secs(20));
    let app: AppName = "a".parse().unwrap();
    let blob = |op| ServiceRequest::Blob(BlobRequest { provider: "folder".parse().unwrap(), op });
    let requests = [
        ServiceRequest::Secret(SecretRequest::Reveal { secret: "s".parse().unwrap() }),
        blob(BlobOp::Create { container: "c".into() }),
    ];
    kv.call(&scope(), &increment("n")).await.unwrap();
    for request in &requests {
        calls.call(&app, request).await.unwrap();
    }
    tenant.apply(&TenantSettings { suspended: Some("a test".into()), ..TenantSettings::default() });
    kv.call(&scope(), &increment("n")).await.unwrap_err();
    for request in &requests {
        let refused = calls.call(&app, request).await.unwrap_err();
        assert!(refused.to_string().contains("suspended"), "{request:?}: {refused}");
    }
    tenant.apply(&TenantSettings::default());
    assert_eq!(kv.call(&scope(), &increment("n")).await.unwrap(), KvAnswer::Number(2), "nothing was written meanwhile");
    for request in &requests {
        calls.call(&app, request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_a_suspended_app_has_come_back_untried() {
    let rig = Rig::new().await;
    let tenant = Tenant::new("t".parse().unwrap());
    let text = format!(
        r#"{{"name":"a","components":{{"w":{{"digest":"{}","size":1,"world":"p2","imports":[],"exports":[]}}}},
            "links":[{{"component":"w","contract":"wasmcloud:messaging","label":"default","provider":"durable",
                       "config":{{"subscriptions":"orders"}}}},
                     {{"component":"w","contract":"wasi:keyvalue","label":"kv","provider":"embedded",
                       "config":{{"watch":"*"}}}}]}}"#,
        Digest::of(b"w")
    );
    let locked: LockedApp = serde_json::from_str(&text).unwrap();
    tenant.add(Arc::new(Prepared::of(Revision(1), &locked).unwrap()));
    rig.services.messaging.declare(&tenant.name, &locked.name, &node::messaging::declared(&locked));
    let calls = Arc::new(CallsClient::new(rig.host(&tenant).0, Duration::from_secs(20)));
    let ask = |request| {
        let (calls, app) = (calls.clone(), locked.name.clone());
        async move { calls.call(&app, &ServiceRequest::Messaging(request)).await }
    };
    let suspend = |suspended: bool| {
        let suspended = suspended.then(|| "a test".to_owned());
        tenant.apply(&TenantSettings { suspended, ..TenantSettings::default() });
    };
    let broker = BrokerKind::Durable;
    let tell = |group: &str| {
        let message = WireMessage { subject: "orders".into(), body: b"x".to_vec(), reply_to: None, trace: None };
        MessagingRequest::Tell { broker, group: group.into(), messages: vec![message] }
    };
    let take = |group: &str| ask(MessagingRequest::Take { broker, group: group.into(), max: 8 });
    let taken = |answer| match answer {
        Ok(ServiceAnswer::Messaging(MessagingAnswer::Taken(taken))) => {
            taken.iter().map(|one: &Handed| (one.delivery, one.tries)).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let away = Settled::PutAway { subject: Some("orders".into()) };
    for (group, outcome) in [("w.default", Settled::GivenBack), ("watch.w.kv", Settled::GivenBack), ("w.default", away)]
    {
        ask(tell(group)).await.unwrap();
        let out = taken(take(group).await);
        let [(delivery, 1)] = out[..] else { panic!("{out:?}") };
        suspend(true);
        take(group).await.unwrap_err();
        ask(tell(group)).await.unwrap_err();
        let settle = |delivery, outcome| MessagingRequest::Settle { broker, group: group.into(), delivery, outcome };
        ask(settle(delivery, outcome)).await.unwrap();
        suspend(false);
        let out = taken(take(group).await);
        let [(delivery, 1)] = out[..] else { panic!("{group}: {out:?}") };
        ask(settle(delivery, Settled::Done)).await.unwrap();
    }
    // Nothing is handed to one that waited when it was suspended.
    let mut waits = Box::pin(take("w.default"));
    assert!(futures::poll!(&mut waits).is_pending());
    let waits = tokio::spawn(waits);
    // What it is asked later on the same connection, it answers later.
    ask(tell("watch.w.kv")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    suspend(true);
    let mine = rig.services.messaging.holder(&tenant.name);
    rig.services.messaging.answer(&tenant.name, &locked.name, &mine, tell("w.default")).await.unwrap();
    assert_eq!(taken(waits.await.unwrap()), []);
    suspend(false);
    let out = taken(take("w.default").await);
    assert!(matches!(out[..], [(_, 1)]), "{out:?}");
}
