//! What is this file, and what does it ask for? Reads a component's imports and exports without running or compiling it.
//!
//! Only the structure is read: function bodies are for the compiler, in its own process. Bytes are not trusted: sizes,
//! nesting and counts are bounded, and whatever is wrong becomes an [`InspectError`].

use wasmparser::{CanonicalFunction, CanonicalOption, Chunk, ComponentTypeRef, Encoding, Parser, Payload};

use crate::app::World;
use crate::claims::Claims;
use crate::interface::InterfaceId;

/// The largest component, bytes.
pub const MAX_COMPONENT: usize = 50 * 1024 * 1024;
/// The deepest nesting of modules and components in one another.
pub const MAX_DEPTH: usize = 32;
/// The most imports, and the most exports, of one component.
pub const MAX_NAMES: usize = 1024;

/// What a component is and asks for, read from its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentInfo {
    /// Which engine it needs.
    pub world: World,
    /// The interfaces it imports, in the order of the file.
    pub imports: Vec<InterfaceId>,
    /// The interfaces it exports, in the order of the file. Functions exported beside interfaces are not listed.
    pub exports: Vec<InterfaceId>,
    /// What the token says, **unverified**: for people only. Absent where there is none, or none that can be read.
    pub claims: Option<Claims>,
}

/// Why a file is not a component that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// The first bytes are not those of WebAssembly.
    #[error("not WebAssembly: the file does not begin with \\0asm")]
    NotWasm,
    /// A core module: cargo's output for `wasm32-unknown-unknown` or `wasm32-wasip1`, before it becomes a component.
    #[error(
        "a core WebAssembly module where a component is needed: build for wasm32-wasip2, or turn it into a component with `wasm-tools component new`"
    )]
    CoreModule,
    /// It ends in the middle of a section.
    #[error("the file ends in the middle of a section: {size} bytes is not all of it")]
    Truncated {
        /// Bytes there are.
        size: usize,
    },
    /// More bytes than allowed.
    #[error("{size} bytes is more than the {limit} bytes a component may have")]
    TooLarge {
        /// Bytes there are.
        size: usize,
        /// Bytes there may be.
        limit: usize,
    },
    /// Modules or components nested too deeply.
    #[error("components nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// Too many imports or exports.
    #[error("more than {MAX_NAMES} imports or exports")]
    TooMany,
    /// The bytes break the format.
    #[error("malformed WebAssembly at byte {offset}: {message}")]
    Malformed {
        /// Where, bytes from the start.
        offset: u64,
        /// What was expected.
        message: String,
    },
    /// An import that is no interface: a bare function, an instance by URL or hash, a nested component.
    #[error(
        "the import `{name}` is not an interface (namespace:package/interface): put the function into an interface of a WIT package"
    )]
    ImportNotInterface {
        /// The import, escaped.
        name: String,
    },
}

impl InspectError {
    fn malformed(offset: impl TryInto<u64>, message: impl Into<String>) -> Self {
        Self::Malformed { offset: offset.try_into().unwrap_or(u64::MAX), message: message.into() }
    }
}

impl From<wasmparser::BinaryReaderError> for InspectError {
    fn from(error: wasmparser::BinaryReaderError) -> Self {
        Self::malformed(error.offset(), error.message())
    }
}

/// Reads what a component imports and exports.
///
/// # Errors
/// When the bytes are not one whole component within the limits, or it imports something that is not an interface.
pub fn inspect(bytes: &[u8]) -> Result<ComponentInfo, InspectError> {
    let mut imports = Vec::new();
    let mut exports = Vec::new();
    let mut concurrent = false;
    walk(bytes, |depth, payload| {
        match payload {
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    let import = import?;
                    if let Some(id) = imported(import.name.name, import.ty)? {
                        push(&mut imports, id)?;
                    }
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    if let Ok(id) = export?.name.name.parse() {
                        push(&mut exports, id)?;
                    }
                }
            }
            Payload::ComponentCanonicalSection(section) => {
                for function in section {
                    concurrent |= needs_concurrency(&function?);
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    let world = if concurrent || imports.iter().chain(&exports).any(wasi_0_3) { World::P3 } else { World::P2 };
    Ok(ComponentInfo { world, imports, exports, claims: crate::claims::peek(bytes).ok().flatten() })
}

fn push(list: &mut Vec<InterfaceId>, id: InterfaceId) -> Result<(), InspectError> {
    if list.len() >= MAX_NAMES {
        return Err(InspectError::TooMany);
    }
    list.push(id);
    Ok(())
}

/// The interface an import names; `None` for types, which come with the interfaces that define them.
fn imported(name: &str, ty: ComponentTypeRef) -> Result<Option<InterfaceId>, InspectError> {
    let refuse =
        || InspectError::ImportNotInterface { name: name.chars().take(80).flat_map(char::escape_debug).collect() };
    match ty {
        ComponentTypeRef::Instance(_) => name.parse().map(Some).map_err(|_| refuse()),
        ComponentTypeRef::Type(wasmparser::TypeBounds::Eq(_)) => Ok(None),
        _ => Err(refuse()),
    }
}

fn wasi_0_3(id: &InterfaceId) -> bool {
    id.contract.namespace == "wasi" && id.version.as_ref().is_some_and(|v| (v.major, v.minor) == (0, 3))
}

/// Whether a function needs the engine with component-model async.
fn needs_concurrency(function: &CanonicalFunction) -> bool {
    match function {
        CanonicalFunction::Lift { options, .. } | CanonicalFunction::Lower { options, .. } => {
            options.iter().any(|option| matches!(option, CanonicalOption::Async | CanonicalOption::Callback(_)))
        }
        CanonicalFunction::ResourceNew { .. }
        | CanonicalFunction::ResourceDrop { .. }
        | CanonicalFunction::ResourceRep { .. } => false,
        _ => true,
    }
}

/// Calls `each` with every payload of a component and how deep it lies; 0 is the component itself. Bodies of functions
/// are skipped.
pub(crate) fn walk<'a>(
    bytes: &'a [u8],
    mut each: impl FnMut(usize, Payload<'a>) -> Result<(), InspectError>,
) -> Result<(), InspectError> {
    walk_any(bytes, |depth, payload| match &payload {
        Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => Err(InspectError::CoreModule),
        _ => each(depth, payload),
    })
}

/// As [`walk`], of a core module too.
pub(crate) fn walk_any<'a>(
    bytes: &'a [u8],
    mut each: impl FnMut(usize, Payload<'a>) -> Result<(), InspectError>,
) -> Result<(), InspectError> {
    if bytes.len() > MAX_COMPONENT {
        return Err(InspectError::TooLarge { size: bytes.len(), limit: MAX_COMPONENT });
    }
    if !bytes.starts_with(b"\0asm") {
        return Err(InspectError::NotWasm);
    }
    let truncated = || InspectError::Truncated { size: bytes.len() };
    let mut parser = Parser::new(0);
    let mut outer = Vec::new();
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).ok_or_else(truncated)?;
        // Told that it has seen the end only where the bytes do end, the parser asks for more when one is missing.
        let (consumed, payload) = match parser.parse(rest, rest.is_empty()) {
            Ok(Chunk::Parsed { consumed, payload }) => (consumed, payload),
            Ok(Chunk::NeedMoreData(_)) => return Err(truncated()),
            Err(_) if rest.is_empty() => return Err(truncated()),
            Err(error) => return Err(error.into()),
        };
        at += consumed;
        let depth = outer.len();
        match &payload {
            Payload::ModuleSection { parser: inner, .. } | Payload::ComponentSection { parser: inner, .. } => {
                if depth >= MAX_DEPTH {
                    return Err(InspectError::TooDeep);
                }
                outer.push(std::mem::replace(&mut parser, inner.clone()));
            }
            Payload::CodeSectionStart { size, .. } => {
                parser.skip_section();
                at += usize::try_from(*size).map_err(|_| truncated())?;
            }
            Payload::UnknownSection { id, range, .. } => {
                return Err(InspectError::malformed(range.start, format!("unknown section {id}")));
            }
            Payload::End(_) => {
                let Some(parent) = outer.pop() else {
                    each(depth, payload)?;
                    return Ok(());
                };
                parser = parent;
            }
            _ => {}
        }
        each(depth, payload)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn component(text: &str) -> Vec<u8> {
        wat::parse_str(text).unwrap()
    }

    const ALL: &str = r#"(component
        (import "wasi:http/types@0.2.12" (instance))
        (import "wasi:keyvalue/store@0.2.0-draft" (instance))
        (core module (func (export "run")))
        (component (import "acme:inner/thing" (instance)))
        (instance $handler)
        (export "wasi:http/incoming-handler@0.2.12" (instance $handler))
    )"#;

    #[test]
    fn imports_and_exports_are_those_of_the_outer_component() {
        let info = inspect(&component(ALL)).unwrap();
        assert_eq!(info.world, World::P2);
        let text = |ids: &[InterfaceId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(&info.imports), ["wasi:http/types@0.2.12", "wasi:keyvalue/store@0.2.0-draft"]);
        assert_eq!(text(&info.exports), ["wasi:http/incoming-handler@0.2.12"]);
        assert_eq!(info.claims, None);
    }

    #[test]
    fn wasi_0_3_and_async_functions_need_the_other_engine() {
        let by_name = r#"(component (import "wasi:http/types@0.3.0" (instance)))"#;
        assert_eq!(inspect(&component(by_name)).unwrap().world, World::P3);
        let by_function = "(component (core func (canon task.return)))";
        assert_eq!(inspect(&component(by_function)).unwrap().world, World::P3);
    }

    #[test]
    fn what_is_no_component_is_said_exactly() {
        assert_eq!(inspect(b""), Err(InspectError::NotWasm));
        assert_eq!(inspect(b"#!/bin/sh\n"), Err(InspectError::NotWasm));
        assert_eq!(inspect(&component("(module)")), Err(InspectError::CoreModule));
        let large = vec![0; MAX_COMPONENT + 1];
        assert!(matches!(inspect(&large), Err(InspectError::TooLarge { .. })));
        assert!(matches!(inspect(b"\0asm\xff\xff\xff\xff"), Err(InspectError::Malformed { .. })));
    }

    #[test]
    fn a_component_cut_anywhere_is_truncated_or_a_shorter_component() {
        let whole = component(ALL);
        for end in 4..whole.len() {
            match inspect(&whole[..end]) {
                Err(InspectError::Truncated { size }) => assert_eq!(size, end),
                Ok(_) => {}
                Err(other) => panic!("cut at {end}: {other}"),
            }
        }
    }

    #[test]
    fn an_import_that_is_no_interface_is_refused_by_name() {
        let error = inspect(&component(r#"(component (import "run" (func)))"#)).unwrap_err();
        assert_eq!(error, InspectError::ImportNotInterface { name: "run".into() });
        let nested = r#"(component (import "unlocked-dep=<acme:tool>" (component)))"#;
        assert!(matches!(inspect(&component(nested)), Err(InspectError::ImportNotInterface { .. })));
    }

    #[test]
    fn nesting_and_numbers_are_bounded() {
        let deep = format!("{}{}", "(component ".repeat(MAX_DEPTH + 2), ")".repeat(MAX_DEPTH + 2));
        assert_eq!(inspect(&component(&deep)), Err(InspectError::TooDeep));
        let many: String = (0..=MAX_NAMES).map(|n| format!(r#"(import "a:b/c{n}" (instance))"#)).collect();
        assert_eq!(inspect(&component(&format!("(component {many})"))), Err(InspectError::TooMany));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = inspect(&tail);
            let _ = inspect(&[b"\0asm\x0d\0\x01\0", tail.as_slice()].concat());
        }

        #[test]
        fn a_damaged_component_never_panics(at in 8_usize..200, byte in any::<u8>()) {
            let mut bytes = component(ALL);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = inspect(&bytes);
        }
    }
}
