//! The one module with `unsafe`: maps compiled code into the process.
#![allow(unsafe_code, reason = "mapping compiled code trusts its bytes; see `map` for why that holds")]

use std::fs::File;
use std::os::fd::AsRawFd;

use wasmtime::Engine;
use wasmtime::component::Component;

/// Maps compiled code from an open file. The pages stay shared with every process that maps the same file.
///
/// The file must have been authenticated by whoever opened it: the node compares its MAC under the node's own key
/// before it hands the file over. The engine checks its version and settings once more.
pub(crate) fn map(engine: &Engine, file: &File) -> wasmtime::Result<Component> {
    // By descriptor, not by name: the name may since belong to another file.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: the bytes were written by our own compiler and their MAC was checked by the node (function contract);
    // cache files are written under a temporary name, renamed and never changed afterwards.
    unsafe { Component::deserialize_file(engine, path) }
}
