//! A program of WASI 0.3: prints its arguments, and ends as the last of them says.
wit_bindgen::generate!({
    path: "../wit/p3",
    inline: "
        package sidereal:batch;
        world batch {
            import wasi:cli/environment@0.3.0;
            import wasi:cli/exit@0.3.0;
            import wasi:cli/stdout@0.3.0;
            import wasi:clocks/monotonic-clock@0.3.0;
            export wasi:cli/run@0.3.0;
        }
    ",
    world: "sidereal:batch/batch",
    generate_all,
});

use wasi::cli::{environment, exit, stdout};
use wasi::clocks::monotonic_clock;

struct Batch;

impl exports::wasi::cli::run::Guest for Batch {
    async fn run() -> Result<(), ()> {
        let args = environment::get_arguments();
        let (mut text, contents) = wit_stream::new();
        let written = stdout::write_via_stream(contents);
        for line in args.iter().skip(1).chain(environment::get_environment().iter().map(|(name, _)| name)) {
            text.write_all(format!("{line}\n").into_bytes()).await;
            monotonic_clock::wait_for(1_000_000).await;
        }
        drop(text);
        let _ = written.await;
        match args.last().map(String::as_str) {
            Some("fail") => Err(()),
            Some("trap") => core::arch::wasm32::unreachable(),
            Some("exit") => {
                exit::exit_with_code(7);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

export!(Batch);
