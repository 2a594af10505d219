//! Our buckets of keys and of objects in the hands of an official client of NATS, the one for Python (`nats-py`), where
//! it is installed: what either writes the other reads.

use std::path::Path;
use std::process::{Command, Stdio};

use futures::StreamExt;
use providers::blobstore::Backend as _;
use providers::http_out::{Tls, public_roots};
use providers::keyvalue::Backend as _;
use providers::keyvalue::nats::Settings;
use providers::nats::Login;
use providers::{blobstore, keyvalue};
use sha2::{Digest as _, Sha256};

use crate::nats_server::NatsServer;
use crate::support::Direct;

fn python() -> Command {
    Command::new("python3")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_we_write_an_official_client_reads_and_the_other_way_round() {
    let there = python().args(["-c", "import nats"]).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        println!("NOT RUN: our buckets in the hands of an official client. What was missing: `pip install nats-py`");
        return;
    }
    for server in [Some(NatsServer::start()), NatsServer::newer("")].into_iter().flatten() {
        let names = ("acme".parse().unwrap(), "shop".parse().unwrap(), "objects".parse().unwrap());
        let settings = Settings { url: &server.url(), replicas: None, jetstream_domain: None, login: Login::Nobody };
        let tls = Tls::new(public_roots()).unwrap();
        let dialer = Direct::to(server.address);
        let keys = keyvalue::Nats::new(&names.0, &names.1, &names.2, settings, tls, dialer).unwrap();
        keys.set("b", "user.1", b"ours".to_vec()).await.unwrap();
        keys.increment("b", "n", 41).await.unwrap();
        let objects = blobstore::nats::Nats::new(server.client(), None, &names.0, &names.1, &names.2, 1).unwrap();
        objects.create("c").await.unwrap();
        let content: Vec<u8> = (0..300_000_u32).map(|n| (n / 251 + n) as u8).collect();
        let mut upload = objects.write("c", "a/b ü").await.unwrap();
        for chunk in content.chunks(blobstore::CHUNK) {
            upload.write(chunk.to_vec().into()).await.unwrap();
        }
        upload.finish().await.unwrap();

        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/all/official.py");
        let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(&content));
        let url = server.url();
        let said = tokio::task::spawn_blocking(move || python().arg(script).args([url, digest]).output());
        let said = said.await.unwrap().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));

        assert_eq!(keys.get("b", "user.2").await.unwrap().as_deref(), Some(&b"theirs"[..]));
        assert_eq!(keys.get("b", "n").await.unwrap(), None);
        assert_eq!(objects.list("c", None).await.unwrap().names, ["theirs"]);
        assert_eq!(objects.object("c", "a/b ü").await.unwrap(), None);
        let mut reading = objects.read("c", "theirs", 0, u64::MAX).await.unwrap();
        let mut all = Vec::new();
        while let Some(chunk) = reading.chunks.next().await {
            all.extend_from_slice(&chunk.unwrap());
        }
        assert!(all.strip_prefix(&*content) == Some(&b"more"[..]), "{} bytes", all.len());
        assert!(objects.container("made").await.unwrap().is_some());
    }
}
