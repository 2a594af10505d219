//! A program that does what its arguments say, one after the other.
use guests::wasi::cli::{environment, exit, stderr, stdout};
use guests::wasi::clocks::monotonic_clock;
use guests::wasi::config::store;
use guests::wasi::io::streams::OutputStream;
use guests::wasi::logging::logging::{Level, log};

wit_bindgen::generate!({
    path: "../wit/p2",
    inline: "
        package sidereal:batch;
        world batch {
            import wasi:cli/stdin@0.2.12;
            export wasi:cli/run@0.2.12;
        }
    ",
    world: "sidereal:batch/batch",
    generate_all,
});

struct Batch;

impl exports::wasi::cli::run::Guest for Batch {
    fn run() -> Result<(), ()> {
        for step in environment::get_arguments().iter().skip(1) {
            let (what, rest) = step.split_once(':').unwrap_or((step, ""));
            let number = rest.parse::<u64>().unwrap_or(0);
            match what {
                "print" => write(&stdout::get_stdout(), format!("{rest}\n").as_bytes()),
                "raw" => write(&stdout::get_stdout(), rest.as_bytes()),
                "err" => write(&stderr::get_stderr(), format!("{rest}\n").as_bytes()),
                "log" => log(Level::Warn, "batch", rest),
                "args" => write(&stdout::get_stdout(), format!("{:?}\n", environment::get_arguments()).as_bytes()),
                "env" => write(&stdout::get_stdout(), format!("{:?}\n", environment::get_environment()).as_bytes()),
                "config" => write(&stdout::get_stdout(), format!("{:?}\n", store::get(rest)).as_bytes()),
                "stdin" => {
                    let read = wasi::cli::stdin::get_stdin().blocking_read(10);
                    write(&stdout::get_stdout(), format!("closed: {}\n", read.is_err()).as_bytes());
                }
                "exit" => exit::exit_with_code(u8::try_from(number).unwrap_or(1)),
                "fail" => return Err(()),
                "trap" => core::arch::wasm32::unreachable(),
                "spin" => {
                    let until = monotonic_clock::now() + number * 1_000_000;
                    while monotonic_clock::now() < until {
                        core::hint::black_box(());
                    }
                }
                "forever" => loop {
                    core::hint::black_box(());
                },
                "sleep" => monotonic_clock::subscribe_duration(number * 1_000_000).block(),
                "eat" => {
                    let mut eaten = Vec::new();
                    for _ in 0..number {
                        eaten.push(vec![1_u8; 1 << 20]);
                        core::hint::black_box(&eaten);
                    }
                }
                "flood" => {
                    let out = stdout::get_stdout();
                    for line in 0..number {
                        write(&out, format!("{line:07} {}\n", "x".repeat(56)).as_bytes());
                    }
                }
                _ => return Err(()),
            }
        }
        Ok(())
    }
}

fn write(stream: &OutputStream, bytes: &[u8]) {
    for part in bytes.chunks(4096) {
        stream.blocking_write_and_flush(part).expect("somebody reads");
    }
}

export!(Batch);
