//! Twin P: the `wasmtime serve` recipe. `twin-p COMPONENT [PORT]`; prints its address. A multi-threaded runtime, the
//! pooling allocator as it is by default, a fresh instance for every request.
#![forbid(unsafe_code)]

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sidereal_benches::guest::Guest;
use tokio::net::TcpListener;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or_else(|| wasmtime::format_err!("usage: twin-p COMPONENT [PORT]"))?;
    let port = args.next().map_or(Ok(0), |port| port.parse())?;

    let mut config = Config::new();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(PoolingAllocationConfig::new()));
    let guest = Guest::new(&Engine::new(&config)?, &std::fs::read(path)?)?;

    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("http://{}/", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let guest = guest.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let guest = guest.clone();
                async move { guest.serve(request).await }
            });
            // A client that hangs up is no matter.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
