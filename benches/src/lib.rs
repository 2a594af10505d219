//! Whole-system load and the twins it is compared with. A figure without its twin from the same run says more about the
//! machine than about us.
//!
//! | Program | Is |
//! |---|---|
//! | `twin-p` | the `wasmtime serve` recipe: hyper, a multi-threaded runtime, the default pool, a fresh instance per request |
//! | `twin-m` | bare wasmtime: one thread, the best pool settings, no sockets |
//! | `twin-h` | bare hyper answering hello |
//! | `kv` | our key-value providers beside the bare clients of the same servers |
//!
//! [`load::run`] measures any of them, or us, over a socket.
#![forbid(unsafe_code)]

pub mod guest;
pub mod load;
pub mod processes;
