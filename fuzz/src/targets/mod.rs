//! The readers, one file each.

mod answers;
mod bodies;
mod component;
mod cron;
mod dataline;
mod egress;
mod frames;
mod head1;
mod head2;
mod lines;
mod manifest;
mod names;
mod token;

/// One reader of bytes that nobody vouches for.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, on the command line and of its folder in the corpus.
    pub name: &'static str,
    /// Reads the bytes; panics where something does not hold.
    pub run: fn(&[u8]),
    /// Inputs it begins with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// The longest input worth trying, bytes.
    pub longest: usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "answers", run: answers::run, seeds: answers::seeds, longest: 2048 },
    Target { name: "bodies", run: bodies::run, seeds: bodies::seeds, longest: 8192 },
    Target { name: "component", run: component::run, seeds: component::seeds, longest: 8192 },
    Target { name: "cron", run: cron::run, seeds: cron::seeds, longest: 128 },
    Target { name: "dataline", run: dataline::run, seeds: dataline::seeds, longest: 8192 },
    Target { name: "egress", run: egress::run, seeds: egress::seeds, longest: 256 },
    Target { name: "frames", run: frames::run, seeds: frames::seeds, longest: 64 << 10 },
    Target { name: "head1", run: head1::run, seeds: head1::seeds, longest: 2048 },
    Target { name: "head2", run: head2::run, seeds: head2::seeds, longest: 1024 },
    Target { name: "lines", run: lines::run, seeds: lines::seeds, longest: 8192 },
    Target { name: "manifest", run: manifest::run, seeds: manifest::seeds, longest: 4096 },
    Target { name: "names", run: names::run, seeds: names::seeds, longest: 128 },
    Target { name: "token", run: token::run, seeds: token::seeds, longest: 4096 },
];

/// Texts as inputs.
fn texts(list: &[&str]) -> Vec<Vec<u8>> {
    list.iter().map(|text| text.as_bytes().to_vec()).collect()
}
