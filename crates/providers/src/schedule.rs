//! How a component is called by the clock. Its exports are found by name: `sidereal:schedule/handler` or `wasi:cli/run`,
//! in whichever version it was built against.

use std::sync::Arc;

use model::schedule::Entrance;
use runtime::wasmtime::component::{ComponentNamedList, Instance, Lift, Lower, TypedFunc};
use runtime::{Ctx, Fault, Workload, wasmtime};

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The component says so; its words, cut.
    #[error("the component failed: {0}")]
    Component(String),
    /// The call failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// The longest text of a component that is kept, characters.
const MAX_WORDS: usize = 500;

/// Calls `run` of the instance `export` for one due time, within the limits of a call.
///
/// # Errors
/// Why the run failed.
pub async fn run(
    work: &Arc<Workload>,
    entrance: Entrance,
    export: String,
    schedule: String,
    due_ms: u64,
) -> Result<(), RunError> {
    let said = work
        .invoke(move |store, instance| {
            Box::pin(async move {
                match entrance {
                    Entrance::Handler => {
                        let run: TypedFunc<(String, u64), (Result<(), String>,)> = find(store, &instance, &export)?;
                        Ok(run.call_async(store, (schedule, due_ms)).await?.0)
                    }
                    Entrance::Command => {
                        let run: TypedFunc<(), (Result<(), ()>,)> = find(store, &instance, &export)?;
                        let said = run.call_async(store, ()).await?.0;
                        Ok(said.map_err(|()| "it returned an error; its output may say which".to_owned()))
                    }
                }
            })
        })
        .await;
    match said {
        Ok(said) => said
            .map_err(|words| RunError::Component(words.chars().take(MAX_WORDS).flat_map(char::escape_debug).collect())),
        // How a program that is done may end.
        Err(Fault::Exit { code: 0 }) if entrance == Entrance::Command => Ok(()),
        Err(fault) => Err(fault.into()),
    }
}

fn find<P, R>(store: &mut wasmtime::Store<Ctx>, instance: &Instance, export: &str) -> wasmtime::Result<TypedFunc<P, R>>
where
    P: ComponentNamedList + Lower,
    R: ComponentNamedList + Lift,
{
    let missing = || wasmtime::format_err!("the component exports no `run` in {export}");
    let outer = instance.get_export_index(&mut *store, None, export).ok_or_else(missing)?;
    let run = instance.get_export_index(&mut *store, Some(&outer), "run").ok_or_else(missing)?;
    instance.get_typed_func(&mut *store, run)
}
