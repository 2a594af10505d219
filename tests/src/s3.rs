//! An S3 server over a folder (`s3s-fs`), in this process. It can be told to stand still after so many answers.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio_util::sync::CancellationToken;

/// A server with one bucket, `bucket`; it ends when it is dropped.
pub struct S3 {
    /// Where it listens.
    pub addr: SocketAddr,
    root: tempfile::TempDir,
    left: Arc<AtomicUsize>,
    ended: CancellationToken,
}

impl S3 {
    /// Starts it on a thread of its own, for whoever has this access key.
    ///
    /// # Errors
    /// When it cannot listen or has no folder.
    pub fn start(key_id: &str, key: &str) -> anyhow::Result<Self> {
        let root = tempfile::tempdir()?;
        std::fs::create_dir(root.path().join("bucket"))?;
        let files = s3s_fs::FileSystem::new(root.path()).map_err(|cause| anyhow::anyhow!("{cause:?}"))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(key_id, key));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let server = Self {
            addr: listener.local_addr()?,
            root,
            left: Arc::new(AtomicUsize::new(usize::MAX)),
            ended: CancellationToken::new(),
        };
        let (left, ended) = (server.left.clone(), server.ended.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || runtime.block_on(ended.run_until_cancelled(serve(listener, service, left))));
        Ok(server)
    }

    /// `http://…`
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The folder of its bucket.
    pub fn bucket(&self) -> PathBuf {
        self.root.path().join("bucket")
    }

    /// So many more requests are answered; others wait until more are.
    pub fn answers(&self, left: usize) {
        self.left.store(left, SeqCst);
    }

    /// Whether it answers none now.
    pub fn stands_still(&self) -> bool {
        self.left.load(SeqCst) == 0
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

async fn serve(listener: TcpListener, service: S3Service, left: Arc<AtomicUsize>) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (service, left) = (service.clone(), left.clone());
        let answer = service_fn(move |request: Request<Incoming>| {
            let (service, left) = (service.clone(), left.clone());
            async move {
                take(&left).await;
                service.call(request.map(s3s::Body::from)).await
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}

async fn take(left: &AtomicUsize) {
    while left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
