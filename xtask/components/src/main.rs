//! Builds the components of `guests/` and of `examples/`. A program of its own, which `cargo xtask` calls: what reads and
//! signs WebAssembly is compiled once, with the product, and not before everything else for `cargo xtask` as well.
#![forbid(unsafe_code)]

mod examples;
mod guests;
#[path = "../../src/toolchain.rs"]
mod toolchain;

use std::path::Path;

use anyhow::{Context as _, bail};

/// `components ROOT guests` builds what tests and benches run into `target/guests`; `components ROOT all` builds and signs the
/// artifacts of `examples/` as well that have drifted, and prints what there is.
fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [root, what] = arguments.as_slice() else { bail!("called by `cargo xtask guests`, with the repository") };
    let root = Path::new(root).canonicalize().context("the repository")?;
    let all = match what.to_str() {
        Some("guests") => false,
        Some("all") => true,
        _ => bail!("`guests`, or `all`"),
    };
    let built = guests::build(&root, &root.join("target/guests"))?;
    if !all {
        return Ok(());
    }
    for path in built {
        println!("{} {}", path.display(), std::fs::metadata(&path)?.len());
    }
    for (example, built) in examples::refresh(&root)? {
        println!("{example} {}", if built { "built and signed: commit it" } else { "as it should be" });
    }
    Ok(())
}
