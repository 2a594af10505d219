//! Programs of WASI 0.1: a core module becomes a component, by the adapter that belongs to the engine.

use api::{Code, Problem};
use bytes::Bytes;
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME as NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER as ADAPTER,
};
use wit_component::ComponentEncoder;

/// Whether these are the bytes of a core module.
pub fn is_module(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\0asm\x01\0\0\0")
}

/// The component that a module becomes. Whoever wrote the module may have found what the encoder does not stand: that is an answer
/// about the module, and ends nothing else.
///
/// # Errors
/// Where it is no program of WASI 0.1.
pub async fn component(module: Bytes) -> Result<Bytes, Problem> {
    let encoded = tokio::task::spawn_blocking(move || encode(&module)).await;
    encoded.unwrap_or_else(|_| Err(refused("the encoder failed"))).map(Bytes::from)
}

fn refused(why: &str) -> Problem {
    let what = format!("the core module cannot become a component: {}", why.chars().take(500).collect::<String>());
    Problem::new(Code::ArtifactInvalid, what)
        .help("a core module must be a program of WASI 0.1, with `_start`; or build for wasm32-wasip2")
}

fn encode(module: &[u8]) -> Result<Vec<u8>, Problem> {
    let adapted = ComponentEncoder::default()
        .validate(true)
        .module(module)
        .and_then(|encoder| encoder.adapter(NAME, ADAPTER))
        .and_then(|mut encoder| encoder.encode());
    adapted.map_err(|cause| {
        let why = cause.chain().map(|cause| cause.to_string().replace('\n', " ")).collect::<Vec<_>>().join(": ");
        refused(&why)
    })
}

#[cfg(test)]
mod tests {
    use model::component::inspect;

    use super::*;

    #[test]
    fn a_program_of_wasi_0_1_is_one_of_wasi_0_2() {
        let module = wat::parse_str(
            r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
                (memory (export "memory") 1) (func (export "_start") i32.const 3 call $exit))"#,
        )
        .unwrap();
        assert!(is_module(&module));
        let adapted = encode(&module).unwrap();
        assert!(!is_module(&adapted));
        let info = inspect(&adapted).unwrap();
        assert!(info.exports.iter().any(|export| export.to_string().starts_with("wasi:cli/run@0.2.")), "{info:?}");
        for (text, why) in [
            ("(module)", "memory"),
            (r#"(module (import "env" "f" (func)) (memory (export "memory") 1) (func (export "_start")))"#, "env"),
            (
                r#"(module (import "wasi_snapshot_preview1" "nonsense" (func)) (memory (export "memory") 1)
                    (func (export "_start")))"#,
                "nonsense",
            ),
        ] {
            let refused = encode(&wat::parse_str(text).unwrap()).unwrap_err();
            assert!(refused.detail.contains(why), "{text}: {refused}");
        }
    }
}
