//! One instance: a store, the component in it, and one call on it.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;

use wasmtime::component::{Instance as Exports, ResourceAny, Val};
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p3::bindings::Service;
use wasmtime_wasi_http::{WasiHttpView, p3};

use crate::call::Call;
use crate::ctx::Ctx;
use crate::engine::{Exported, Http};
use crate::fault::{During, Fault, classify};
use crate::outbound::HttpBody;
use crate::program::Told;
use crate::workload::Workload;

/// One instance of a workload.
pub(crate) struct Instance {
    store: Store<Ctx>,
    exports: Exports,
    /// Its HTTP handler, looked up by the first request.
    handler: Option<Handler>,
    pub(crate) served: u32,
}

/// What takes a request.
enum Handler {
    P2(Proxy),
    P3(Service),
}

/// What runs on an instance for [`Workload::invoke`].
pub type Invoked<'a, T> = Pin<Box<dyn Future<Output = wasmtime::Result<T>> + Send + 'a>>;

impl Instance {
    /// Makes an instance; its start code already runs on the budget of `call`.
    pub(crate) async fn new(work: &Workload, call: &Arc<Call>, told: Option<Arc<Told>>) -> Result<Self, Fault> {
        let limits = work.limits();
        let mut ctx = Ctx::new(limits, call.clone(), work.bindings().clone(), work.sinks());
        if let Some(told) = told {
            ctx.tell(&told).map_err(|error| Fault::Instantiate { message: format!("{error:#}") })?;
        }
        let mut store = Store::new(&work.linked().set.engine, ctx);
        store.limiter(|ctx| &mut ctx.limiter);
        store.set_hostcall_fuel(limits.hostcall_copy.as_usize());
        store.set_max_component_handles(limits.handles as usize);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|store| {
            Ok(if store.data().call.over_cpu() {
                UpdateDeadline::Interrupt
            } else {
                // tokio's yield, not a bare wake-up: timers and sockets are looked after before the guest goes on.
                UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now()))
            })
        });
        match work.linked().pre.instance.instantiate_async(&mut store).await {
            Ok(exports) => Ok(Self { store, exports, handler: None, served: 0 }),
            Err(error) => Err(classify(&error, &store.data().limiter, During::Instantiate)),
        }
    }

    /// Starts a further call on a reused instance.
    pub(crate) fn begin(&mut self, call: &Arc<Call>) {
        self.store.data_mut().begin(call.clone());
        self.store.set_epoch_deadline(1);
    }

    /// Runs one call to its end: the guest's answer goes to `call`, and the guest runs on until it returns. On an
    /// error the call is marked failed before anything of the instance goes away.
    pub(crate) async fn serve(
        &mut self,
        http: &Http,
        call: &Arc<Call>,
        request: http::Request<HttpBody>,
    ) -> Result<(), Fault> {
        self.served = self.served.saturating_add(1);
        let result = self.answer(http, call, request).await;
        self.store.data().end();
        let fault = match result {
            Ok(()) if call.has_head() => return Ok(()),
            Ok(()) => Fault::NoResponse,
            Err(Stop::Fault(fault)) => fault,
            Err(Stop::Engine(error)) => classify(&error, &self.store.data().limiter, During::Call),
        };
        call.fail(&fault);
        Err(fault)
    }

    async fn answer(&mut self, http: &Http, call: &Arc<Call>, request: http::Request<HttpBody>) -> Result<(), Stop> {
        let handler = match (&mut self.handler, http) {
            (Some(known), _) => known,
            (empty, Http::P2(indices)) => empty.insert(Handler::P2(indices.load(&mut self.store, &self.exports)?)),
            (empty, Http::P3(indices)) => empty.insert(Handler::P3(indices.load(&mut self.store, &self.exports)?)),
            (None, Http::None) => return Err(Stop::Fault(Fault::NoHandler)),
        };
        match handler {
            Handler::P2(proxy) => serve_p2(&mut self.store, proxy, call, request).await,
            Handler::P3(service) => serve_p3(&mut self.store, service, call, request).await,
        }
    }

    /// Runs one call of any of its exports to its end.
    pub(crate) async fn invoke<T, F>(&mut self, call: &Call, body: F) -> Result<T, Fault>
    where
        F: for<'a> FnOnce(&'a mut Store<Ctx>, Exports) -> Invoked<'a, T>,
    {
        self.served = self.served.saturating_add(1);
        let result = body(&mut self.store, self.exports).await;
        self.ended(call, result)
    }

    /// Runs one call of one export, by name, to its end.
    pub(crate) async fn call(
        &mut self,
        call: &Call,
        exports: &Exported,
        (interface, function): (&str, &str),
        params: &[Val],
        results: &mut [Val],
    ) -> Result<(), Fault> {
        self.served = self.served.saturating_add(1);
        let found = exports.get(interface, function).and_then(|at| self.exports.get_func(&mut self.store, at));
        let result = match found {
            Some(func) => func.call_async(&mut self.store, params, results).await,
            None => Err(wasmtime::format_err!("it has no function `{function}` in {interface}")),
        };
        self.ended(call, result)
    }

    /// Ends one of its resources.
    pub(crate) async fn drop_resource(&mut self, call: &Call, resource: ResourceAny) -> Result<(), Fault> {
        let result = resource.resource_drop_async(&mut self.store).await;
        self.ended(call, result)
    }

    fn ended<T>(&self, call: &Call, result: wasmtime::Result<T>) -> Result<T, Fault> {
        self.store.data().end();
        result.map_err(|error| {
            let fault = classify(&error, &self.store.data().limiter, During::Call);
            call.fail(&fault);
            fault
        })
    }
}

/// Why a call ended early: known already, or to be found out.
enum Stop {
    Fault(Fault),
    Engine(wasmtime::Error),
}

impl From<wasmtime::Error> for Stop {
    fn from(error: wasmtime::Error) -> Self {
        Stop::Engine(error)
    }
}

async fn serve_p2(
    store: &mut Store<Ctx>,
    proxy: &Proxy,
    call: &Arc<Call>,
    request: http::Request<HttpBody>,
) -> Result<(), Stop> {
    let scheme = if request.uri().scheme() == Some(&http::uri::Scheme::HTTPS) { Scheme::Https } else { Scheme::Http };
    let mut http = store.data_mut().http();
    let request = http
        .new_incoming_request(scheme, request)
        .map_err(|e| Stop::Fault(Fault::BadRequest { message: e.root_cause().to_string() }))?;
    let answer = call.clone();
    let out = http.new_response_outparam_from_callback(move |response| {
        answer.set_head(response.map_err(|code| Fault::Refused { message: format!("{code:?}") }));
    })?;
    proxy.wasi_http_incoming_handler().call_handle(store, request, out).await?;
    Ok(())
}

async fn serve_p3(
    store: &mut Store<Ctx>,
    service: &Service,
    call: &Arc<Call>,
    request: http::Request<HttpBody>,
) -> Result<(), Stop> {
    let (request, processed) = p3::Request::from_http(store.data_mut().http().hooks, request);
    store
        .run_concurrent(async |accessor| -> wasmtime::Result<()> {
            match service.handle(accessor, request).await? {
                Ok(response) => {
                    let head = accessor.with(|mut store| response.into_http(&mut store, processed))?;
                    call.set_head(Ok(head));
                }
                Err(code) => {
                    call.set_head(Err(Fault::Refused { message: format!("{code:?}") }));
                    call.body_read();
                }
            }
            // The body may come from a stream the guest only passed on: it flows while this store is driven, also
            // after the guest's last task has ended.
            poll_fn(|cx| {
                let guest = accessor.poll_no_interesting_tasks(cx);
                if call.poll_body_read(cx).is_ready() { guest } else { std::task::Poll::Pending }
            })
            .await;
            Ok(())
        })
        .await??;
    Ok(())
}
