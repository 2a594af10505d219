//! What every component may import without a grant: WASI 0.2 and 0.3 with nothing behind the files, sockets as far as
//! they are granted, and `wasi:http`. Filled once per engine and shared by all components.

use model::World;
use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::{cli, clocks, filesystem, io, random};
use wasmtime_wasi::p3;
use wasmtime_wasi::random::WasiRandom;

use crate::ctx::Ctx;

/// The table alone, so that streams and pollables do not make the rest of WASI exist.
struct Table;

impl HasData for Table {
    type Data<'a> = &'a mut ResourceTable;
}

/// Adds everything an engine offers on its own.
pub(crate) fn add_wasi(linker: &mut Linker<Ctx>, world: World) -> wasmtime::Result<()> {
    add_p2(linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    if world == World::P3 {
        add_p3(linker)?;
        wasmtime_wasi_http::p3::add_to_linker(linker)?;
    }
    Ok(())
}

fn add_p2(l: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    io::error::add_to_linker::<Ctx, Table>(l, |c| &mut c.table)?;
    io::poll::add_to_linker::<Ctx, Table>(l, |c| &mut c.table)?;
    io::streams::add_to_linker::<Ctx, Table>(l, |c| &mut c.table)?;
    clocks::wall_clock::add_to_linker::<Ctx, WasiClocks>(l, Ctx::clocks)?;
    clocks::monotonic_clock::add_to_linker::<Ctx, WasiClocks>(l, Ctx::clocks)?;
    random::random::add_to_linker::<Ctx, WasiRandom>(l, |c| c.ctx().ctx.random())?;
    random::insecure::add_to_linker::<Ctx, WasiRandom>(l, |c| c.ctx().ctx.random())?;
    random::insecure_seed::add_to_linker::<Ctx, WasiRandom>(l, |c| c.ctx().ctx.random())?;
    cli::exit::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::environment::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::stdin::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::stdout::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::stderr::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::terminal_input::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::terminal_output::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::terminal_stdin::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::terminal_stdout::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    cli::terminal_stderr::add_to_linker::<Ctx, WasiCli>(l, Ctx::cli)?;
    // Present because components built with a standard library import them; no directory is granted, and sockets
    // only where the component's `allow-hosts` name them.
    filesystem::types::add_to_linker::<Ctx, WasiFilesystem>(l, Ctx::filesystem)?;
    filesystem::preopens::add_to_linker::<Ctx, WasiFilesystem>(l, Ctx::filesystem)?;
    crate::sockets::p2::add_to_linker(l)?;
    Ok(())
}

fn add_p3(l: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    p3::cli::add_to_linker(l)?;
    p3::clocks::add_to_linker(l)?;
    p3::filesystem::add_to_linker(l)?;
    p3::random::add_to_linker(l)?;
    crate::sockets::p3::add_to_linker(l)
}
