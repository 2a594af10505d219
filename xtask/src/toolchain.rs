//! Where Debian puts what compiles Rust to WebAssembly. Two programs ask: one has it installed, the other calls it.

pub(crate) const DEBIAN_CARGO: &str = "/usr/bin/cargo";
pub(crate) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
pub(crate) const DEBIAN_SOURCE: &str = "/usr/lib/rustlib/src/rust/library/std";
/// Debian packages that together build components: file that shows a package is there, and the package.
pub(crate) const DEBIAN_PACKAGES: [(&str, &str); 4] = [
    (DEBIAN_RUSTC, "rustc-web"),
    (DEBIAN_CARGO, "cargo-web"),
    (DEBIAN_SOURCE, "rust-web-src"),
    ("/usr/bin/wasm-ld-22", "lld-22"),
];
