//! `wasi:config`: the values of the manifest's `config`, read-only, the same for every call of a revision.

use std::collections::BTreeMap;

use runtime::wasmtime::StoreContextMut;
use runtime::wasmtime::component::{ComponentType, Lift, Linker, Lower};
use runtime::{Capability, Ctx};

/// What one component's `wasi:config` answers: a binding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigValues(pub BTreeMap<String, String>);

/// The contract's error. Values are in memory: nothing here ever fails.
#[derive(Debug, Clone, ComponentType, Lift, Lower)]
#[component(variant)]
enum ConfigError {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

/// The capability `wasi:config`, under every name it has had. The interfaces differ in nothing but their names.
#[derive(Debug, Clone, Copy, Default)]
pub struct Config;

const NAMES: &[&str] =
    &["wasi:config/store@0.2.0-rc.1", "wasi:config/store@0.2.0-draft", "wasi:config/runtime@0.2.0-draft"];

impl Capability for Config {
    fn interfaces(&self) -> &'static [&'static str] {
        NAMES
    }

    fn link(&self, linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
        for name in NAMES {
            let mut interface = linker.instance(name)?;
            interface.func_wrap("get", |ctx: StoreContextMut<'_, Ctx>, (key,): (String,)| {
                let values = ctx.data().binding::<ConfigValues>();
                let value = values.and_then(|values| values.0.get(&key).cloned());
                Ok((Ok::<_, ConfigError>(value),))
            })?;
            interface.func_wrap("get-all", |ctx: StoreContextMut<'_, Ctx>, (): ()| {
                let values = ctx.data().binding::<ConfigValues>();
                let all = values.map(|values| values.0.clone().into_iter().collect()).unwrap_or_default();
                Ok((Ok::<Vec<(String, String)>, ConfigError>(all),))
            })?;
        }
        Ok(())
    }
}
