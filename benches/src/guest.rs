//! The least a program needs to call a `wasi:http` 0.2 component with wasmtime, shared by the twins.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Body;
use tokio::sync::oneshot;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, Result, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

/// What one instance has: no environment, no files, no way out.
pub struct State {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    table: ResourceTable,
    hooks: NoOutbound,
}

struct NoOutbound;

type Done = Box<dyn Future<Output = std::result::Result<(), Error>> + Send>;
type Sent = std::result::Result<(http::Response<WasiBody>, Done), Error>;

impl WasiHttpHooks for NoOutbound {
    fn send_request(
        &mut self,
        _request: http::Request<WasiBody>,
        _options: Option<RequestOptions>,
        _processed: Done,
    ) -> Box<dyn Future<Output = std::result::Result<(http::Response<WasiBody>, Done), Error>> + Send> {
        Box::new(async { Sent::Err(Error::HttpRequestDenied) })
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}

/// A component that is compiled and linked; every call gets an instance of its own.
#[derive(Clone)]
pub struct Guest {
    pre: Arc<ProxyPre<State>>,
}

impl Guest {
    /// Compiles and links a component. Fails if it is no `wasi:http` 0.2 component.
    pub fn new(engine: &Engine, bytes: &[u8]) -> Result<Self> {
        let mut linker = Linker::new(engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
        let component = Component::new(engine, bytes)?;
        Ok(Self { pre: Arc::new(ProxyPre::new(linker.instantiate_pre(&component)?)?) })
    }

    fn store(&self) -> Store<State> {
        let state = State {
            wasi: WasiCtx::builder().build(),
            http: WasiHttpCtx::new(),
            table: ResourceTable::new(),
            hooks: NoOutbound,
        };
        Store::new(self.pre.engine(), state)
    }

    /// Answers a request in a task of its own, as a server does: the head of the response comes as soon as it is there.
    pub async fn serve<B>(&self, request: http::Request<B>) -> Result<http::Response<HyperOutgoingBody>>
    where
        B: Body<Data = Bytes, Error: Into<Error>> + Send + 'static,
    {
        let mut store = self.store();
        let (sender, receiver) = oneshot::channel();
        let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
        let out = store.data_mut().http().new_response_outparam(sender)?;
        let pre = Arc::clone(&self.pre);
        let task = tokio::spawn(async move {
            let proxy = pre.instantiate_async(&mut store).await?;
            proxy.wasi_http_incoming_handler().call_handle(store, request, out).await
        });
        match receiver.await {
            Ok(response) => Ok(response?),
            Err(_) => {
                task.await??;
                Err(wasmtime::format_err!("the component made no response"))
            }
        }
    }

    /// One whole call on this task: instance, handler, body, drop. The number of body bytes.
    pub async fn call(&self) -> Result<usize> {
        let request = http::Request::get("http://localhost/").body(NoBody)?;
        let mut store = self.store();
        let (sender, receiver) = oneshot::channel();
        let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
        let out = store.data_mut().http().new_response_outparam(sender)?;
        let proxy = self.pre.instantiate_async(&mut store).await?;
        let handle = proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out);
        let body = async {
            let response = receiver.await??;
            wasmtime::ensure!(response.status() == 200, "the component answered {}", response.status());
            Ok::<_, wasmtime::Error>(response.into_body().collect().await?.to_bytes().len())
        };
        let (handled, length) = tokio::join!(handle, body);
        handled?;
        length
    }
}

/// An empty request body.
struct NoBody;

impl Body for NoBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<std::result::Result<hyper::body::Frame<Bytes>, Error>>> {
        std::task::Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}
