//! A component that is a program: `wasi:cli/run`, of WASI 0.2 or 0.3, run once with arguments, environment and outputs
//! of its own. Its instance is used for nothing else.

use std::fmt;
use std::future::poll_fn;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use wasmtime::Store;
use wasmtime::component::TypedFunc;
use wasmtime::error::Context as _;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use crate::call::Call;
use crate::ctx::Ctx;
use crate::drive::drive;
use crate::fault::Fault;
use crate::instance::Instance;
use crate::pipe::{Output, Pipe};
use crate::workload::Workload;

/// A folder that a component may use.
#[derive(Debug)]
pub struct Granted {
    /// The folder, open.
    pub dir: OwnedFd,
    /// What the component calls it.
    pub name: String,
    /// The component may change what is in it.
    pub writable: bool,
}

/// What a program is run with. Standard input is closed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// Its arguments; the first is what it is called.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
}

/// What a store is told of the program in it.
pub(crate) struct Told {
    program: Program,
    pipe: Pipe,
}

impl Told {
    /// Hands it all to the guest's WASI.
    pub(crate) fn give(&self, wasi: &mut WasiCtxBuilder) {
        let Program { args, env } = &self.program;
        wasi.args(args).envs(env);
        wasi.stdout(self.pipe.writer(Output::Stdout)).stderr(self.pipe.writer(Output::Stderr));
    }
}

/// Variables that every instance of a component finds in its environment: a binding. There are none but these; a program has its
/// own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment(pub Vec<(String, String)>);

/// Folders that every instance of a component may use: a binding. There are none but these.
#[derive(Debug, Default)]
pub struct Folders(pub Vec<Granted>);

impl Folders {
    /// Hands them to the guest's WASI, which keeps it inside them.
    pub(crate) fn give(&self, wasi: &mut WasiCtxBuilder) -> wasmtime::Result<()> {
        for Granted { dir, name, writable } in &self.0 {
            // The one name that an open folder has; what it is called on the machine is not known here.
            let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
            let perms = if *writable { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
            wasi.preopened_dir(path, name, perms).with_context(|| format!("the folder {name} cannot be opened"))?;
        }
        Ok(())
    }
}

/// What a running program writes. Dropping it makes the program's writes fail.
pub struct Written(Pipe);

impl Written {
    /// The next piece; `None` once the program has ended and everything was read.
    pub async fn next(&self) -> Option<(Output, Bytes)> {
        self.0.next().await
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Written")
    }
}

/// Ends the pipe however the program ends.
struct Ends(Pipe);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Workload {
    /// Runs the component's `run` of the instance `export` to its end, within the limits of a call, and gives what it writes.
    /// The run is what is returned first: it goes on only while that is polled, and ends when it is dropped. Its result is
    /// the exit code.
    pub fn run(
        self: &Arc<Self>,
        program: Program,
        export: String,
    ) -> (impl Future<Output = Result<i32, Fault>> + Send + use<>, Written) {
        let pipe = Pipe::default();
        let written = Written(pipe.clone());
        let work = self.clone();
        let run = async move {
            let _ends = Ends(pipe.clone());
            let call = Arc::new(Call::new(work.limits(), work.shared_meter()));
            let told = Arc::new(Told { program, pipe });
            let guest = async {
                let mut instance = Instance::new(&work, &call, Some(told)).await?;
                instance.invoke(&call, |store, exports| Box::pin(to_its_end(store, exports, export))).await
            };
            match drive(work.clone(), call.clone(), || guest).await {
                Ok(said) => Ok(said),
                Err(Fault::Exit { code }) => Ok(code),
                Err(fault) => Err(fault),
            }
        };
        (run, written)
    }
}

type Run = TypedFunc<(), (Result<(), ()>,)>;

async fn to_its_end(
    store: &mut Store<Ctx>,
    exports: wasmtime::component::Instance,
    export: String,
) -> wasmtime::Result<i32> {
    let missing = || wasmtime::format_err!("the component exports no `run` in {export}");
    let outer = exports.get_export_index(&mut *store, None, &export).ok_or_else(missing)?;
    let run = exports.get_export_index(&mut *store, Some(&outer), "run").ok_or_else(missing)?;
    let run: Run = exports.get_typed_func(&mut *store, run)?;
    let said = if export.starts_with("wasi:cli/run@0.3.") {
        let called = store.run_concurrent(async |accessor| -> wasmtime::Result<Result<(), ()>> {
            let said = run.call_concurrent(accessor, ()).await?.0;
            // What it started and does not wait for, for example the end of its output.
            poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
            Ok(said)
        });
        called.await??
    } else {
        run.call_async(&mut *store, ()).await?.0
    };
    Ok(i32::from(said.is_err()))
}
