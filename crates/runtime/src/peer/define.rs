//! Puts the functions and resources of forwarded imports into a linker.

use std::sync::Arc;

use wasmtime::component::{Component, Linker, ResourceType};

use super::forward::{Target, drop_handle, forward, forward_concurrent};
use super::held::KIND;
use super::plan::plan;
use crate::ctx::Ctx;
use crate::error::LinkError;

/// Defines every import in `forwarded`. Who answers is in the [`super::Peers`] of each caller, so that one linked
/// component serves many apps.
pub(crate) fn define(linker: &mut Linker<Ctx>, component: &Component, forwarded: &[String]) -> Result<(), LinkError> {
    let interfaces = plan(component, component.engine(), forwarded)?;
    let failed = |e: wasmtime::Error| LinkError::Mismatch(format!("{e:#}"));
    for interface in interfaces {
        let mut instance = linker.instance(&interface.name).map_err(failed)?;
        for resource in &interface.resources {
            let kind = ResourceType::host_dynamic(KIND);
            instance.resource_async(resource, kind, |store, rep| Box::new(drop_handle(store, rep))).map_err(failed)?;
        }
        for function in interface.functions {
            let target = Arc::new(Target {
                interface: interface.name.clone(),
                function: function.name.clone(),
                handles: function.handles,
            });
            let defined = if function.concurrent {
                instance.func_new_concurrent(&function.name, move |accessor, _, params, results| {
                    let target = target.clone();
                    Box::pin(async move { forward_concurrent(accessor, &target, params, results).await })
                })
            } else {
                instance.func_new_async(&function.name, move |store, _, params, results| {
                    let target = target.clone();
                    Box::new(async move { forward(store, &target, params, results).await })
                })
            };
            defined.map_err(failed)?;
        }
    }
    Ok(())
}
