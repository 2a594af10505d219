//! A program without a server: the clock calls its `run`. It fails where its config says so.
use guests::wasi::cli::stdout::get_stdout;
use guests::wasi::config::store;

wit_bindgen::generate!({
    path: "../wit/p2",
    inline: "
        package sidereal:command;
        world command {
            export wasi:cli/run@0.2.12;
        }
    ",
    world: "sidereal:command/command",
});

struct Command;

impl exports::wasi::cli::run::Guest for Command {
    fn run() -> Result<(), ()> {
        get_stdout().blocking_write_and_flush(b"the clock called\n").map_err(drop)?;
        match store::get("fail") {
            Ok(None) => Ok(()),
            _ => Err(()),
        }
    }
}

export!(Command);
