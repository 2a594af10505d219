//! What a host gets that is no answer: its place, code, sockets, and the end of the node.

use super::*;

#[tokio::test]
async fn a_host_says_where_it_stands_on_one_connection() {
    let rig = Rig::new().await;
    let (mut first, server) = UnixStream::pair().unwrap();
    let client = Client { tenant: running("t"), shard: 0, info: Arc::new(ArcSwapOption::empty()) };
    let _served = AbortOnDrop(tokio::spawn(serve(server, client, rig.services.clone())));
    let (mut more, mut standing) = (bytes::BytesMut::new(), bytes::BytesMut::new());
    codec::encode(&Hello::More, &mut more).unwrap();
    codec::encode(&Hello::Standing, &mut standing).unwrap();
    first.write_all(&more).await.unwrap();
    let ended = async |stream: &mut UnixStream, within| {
        // What it says is not answered: all that can come is the end.
        matches!(tokio::time::timeout(within, stream.read_u8()).await, Ok(Err(_)))
    };
    let (short, long) = (Duration::from_millis(100), Duration::from_secs(60));
    let mut only = raw(&mut first).await;
    only.write_all(&standing).await.unwrap();
    assert!(!ended(&mut only, short).await);
    for _ in 0..100 {
        let mut another = raw(&mut first).await;
        another.write_all(&standing).await.unwrap();
        assert!(ended(&mut another, long).await, "it might move the group as often again");
    }
    only.write_all(&[api::services::Standing::Last.byte()]).await.unwrap();
    assert!(!ended(&mut only, short).await, "it goes on");
    drop(only);
    // The node learns of it by itself.
    let began = Instant::now();
    loop {
        let mut next = raw(&mut first).await;
        next.write_all(&standing).await.unwrap();
        if !ended(&mut next, short).await {
            break;
        }
        assert!(began.elapsed() < long, "its place stays taken");
    }
}

#[tokio::test]
async fn code_is_handed_out_for_what_the_tenant_runs_only() {
    let rig = Rig::new().await;
    let tenant = Tenant::new("t".parse().unwrap());
    let (socket, _server) = rig.host(&tenant);
    let files = FilesClient::new(socket);
    let (mine, other) = (Digest::of(b"mine"), Digest::of(b"other"));
    rig.blobs.put(&mine, b"mine").unwrap();
    rig.blobs.put(&other, b"other").unwrap();
    let app = format!(
        r#"{{"name":"a","components":{{"c":{{"digest":"{mine}","size":4,"world":"p2","imports":[],"exports":[]}}}}}}"#
    );
    let app: LockedApp = serde_json::from_str(&app).unwrap();
    let ask = |digest, world| FileRequest::Compiled { digest, world };
    assert!(files.request(&ask(mine, World::P2)).await.is_err(), "before it runs here");
    tenant.add(Arc::new(Prepared::of(Revision(1), &app).unwrap()));
    let being_made = |cause: &FileError| matches!(cause, FileError::Fault(FileFault::NotReady { soon: true, why }) if why.contains("compiled"));
    assert!(being_made(&files.request(&ask(mine, World::P2)).await.unwrap_err()), "nobody waits for it here");
    let ready = async || loop {
        match files.request(&ask(mine, World::P2)).await {
            Err(cause) if being_made(&cause) => tokio::time::sleep(Duration::from_millis(5)).await,
            answer => return answer.unwrap(),
        }
    };
    for _ in 0..3 {
        let (fd, address) = tokio::time::timeout(Duration::from_secs(60), ready()).await.unwrap();
        assert_eq!(address, None);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::fs::File::from(fd), &mut text).unwrap();
        assert_eq!(text, "code:mine");
    }
    assert!(files.request(&ask(other, World::P2)).await.is_err(), "another tenant's");
    assert!(files.request(&ask(mine, World::P3)).await.is_err(), "another engine's");
    tenant.remove(&"a".parse().unwrap(), Revision(1));
    assert!(files.request(&ask(mine, World::P2)).await.is_err(), "after it is gone");
}

#[tokio::test]
async fn a_dialled_socket_arrives_connected() {
    let rig = Rig::new().await;
    let tenant = Tenant::new("t".parse().unwrap());
    tenant.apply(&TenantSettings { egress: vec!["127.0.0.1".into()], ..TenantSettings::default() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hosts = [format!("http://127.0.0.1:{port}"), format!("http://127.0.0.2:{port}")];
    let component = serde_json::json!({"digest": Digest::of(b"x"), "size": 1, "world": "p2", "imports": [],
        "exports": [], "allow_hosts": hosts});
    let app = serde_json::json!({"name": "a", "components": {"c": component}});
    let app: LockedApp = serde_json::from_value(app).unwrap();
    tenant.add(Arc::new(Prepared::of(Revision(1), &app).unwrap()));
    let (socket, _server) = rig.host(&tenant);
    let files = FilesClient::new(socket);
    let dial = |host: &str| {
        FileRequest::Dial(Dial {
            app: "a".parse().unwrap(),
            caller: Caller::Component("c".parse().unwrap()),
            transport: model::egress::Transport::Tcp,
            host: host.into(),
            port,
        })
    };
    let (fd, address) = files.request(&dial("127.0.0.1")).await.unwrap();
    assert_eq!(address.unwrap().port(), port);
    let mut stream = std::net::TcpStream::from(fd);
    let (mut server, _) = listener.accept().await.unwrap();
    std::io::Write::write_all(&mut stream, b"hello").unwrap();
    // The node has the socket too: closing it alone would tell nobody.
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    let mut text = String::new();
    server.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    let refused = files.request(&dial("127.0.0.2")).await.unwrap_err();
    let api::services::client::FileError::Fault(FileFault::Denied { address, what }) = refused else {
        panic!("{refused}")
    };
    assert_eq!((address, what.as_str()), (format!("127.0.0.2:{port}"), "a loopback address"));
}

#[tokio::test]
async fn the_alive_connection_ends_with_the_node() {
    let rig = Rig::new().await;
    let (socket, server) = rig.host(&Tenant::new("t".parse().unwrap()));
    let held = socket.alive().await.unwrap();
    tokio::pin!(held);
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut held).await.is_err());
    server.abort();
    tokio::time::timeout(Duration::from_secs(60), held).await.unwrap();
}
