//! `wasi:logging`: messages with a level and a context, into the component's log and within its budget.

use runtime::wasmtime::StoreContextMut;
use runtime::wasmtime::component::{ComponentType, Lift, Linker};
use runtime::{Capability, Ctx, LogStreamKind};

#[derive(Debug, Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "made from what a guest passes, by the derived code")]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
    #[component(name = "critical")]
    Critical,
}

impl From<Level> for LogStreamKind {
    fn from(level: Level) -> Self {
        match level {
            Level::Trace => Self::Trace,
            Level::Debug => Self::Debug,
            Level::Info => Self::Info,
            Level::Warn => Self::Warn,
            Level::Error => Self::Error,
            Level::Critical => Self::Critical,
        }
    }
}

/// The capability `wasi:logging`, with and without its draft version.
#[derive(Debug, Clone, Copy, Default)]
pub struct Logging;

const NAMES: &[&str] = &["wasi:logging/logging@0.1.0-draft", "wasi:logging/logging"];

impl Capability for Logging {
    fn interfaces(&self) -> &'static [&'static str] {
        NAMES
    }

    fn link(&self, linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
        for name in NAMES {
            linker.instance(name)?.func_wrap(
                "log",
                |mut ctx: StoreContextMut<'_, Ctx>, (level, context, message): (Level, String, String)| {
                    ctx.data_mut().log(level.into(), &context, message.as_bytes());
                    Ok(())
                },
            )?;
        }
        Ok(())
    }
}
