//! Components that no compiler would write: cut, stuffed, nested, or something else altogether (row 13).

use crate::components::{append, assemble, custom_section, leb128};
use crate::mutate::Random;

/// Bytes, what is wrong with them, and whether they are as large as a component may be: those cost seconds.
pub struct Malformed {
    /// What is wrong.
    pub name: &'static str,
    /// Megabytes, or so much to compile that it takes long.
    pub large: bool,
    /// The bytes.
    pub bytes: fn() -> Vec<u8>,
}

/// All of them. None may run; each is refused with a reason, by whoever meets it first.
pub const ALL: &[Malformed] = &[
    Malformed { name: "empty", large: false, bytes: Vec::new },
    Malformed { name: "text", large: false, bytes: || b"#!/bin/sh\nexit 0\n".to_vec() },
    Malformed { name: "magic alone", large: false, bytes: || b"\0asm".to_vec() },
    Malformed { name: "core module", large: false, bytes: || b"\0asm\x01\0\0\0".to_vec() },
    Malformed { name: "version of the future", large: false, bytes: || b"\0asm\xff\0\x01\0".to_vec() },
    Malformed { name: "random", large: false, bytes: || noise(4096) },
    Malformed {
        name: "random behind a header",
        large: false,
        bytes: || [b"\0asm\x0d\0\x01\0".to_vec(), noise(4096)].concat(),
    },
    Malformed {
        name: "section longer than the file",
        large: false,
        bytes: || b"\0asm\x0d\0\x01\0\x01\xff\xff\xff\xff\x0f".to_vec(),
    },
    Malformed {
        name: "number without end",
        large: false,
        bytes: || b"\0asm\x0d\0\x01\0\x01\xff\xff\xff\xff\xff\xff\xff".to_vec(),
    },
    Malformed { name: "unknown section", large: false, bytes: || section(200, b"x") },
    Malformed { name: "custom section without a name", large: false, bytes: || section(0, b"\xff\xff\xff\x7f") },
    Malformed { name: "a billion types", large: false, bytes: || section(7, b"\xff\xff\xff\xff\x03") },
    Malformed { name: "a billion imports", large: false, bytes: || section(10, b"\xff\xff\xff\xff\x03") },
    Malformed {
        name: "cut in the middle",
        large: false,
        bytes: || {
            let mut whole = deep(3);
            whole.truncate(whole.len() / 2);
            whole
        },
    },
    Malformed { name: "ten thousand components in one another", large: false, bytes: || deep(10_000) },
    Malformed { name: "types in one another", large: false, bytes: nested_types },
    Malformed { name: "function that is no code", large: false, bytes: no_code },
    Malformed { name: "a million functions", large: true, bytes: || functions(1_000_000) },
    Malformed { name: "a million branches", large: true, bytes: branches },
    Malformed {
        name: "custom section of 60 MB",
        large: true,
        bytes: || {
            let mut c = assemble([]);
            custom_section(&mut c, "x", &vec![0; 60_000_000]);
            c
        },
    },
];

/// Large, and well-formed all the same: compiled or refused, and never more than the compiler's process may use.
pub fn large_custom_section() -> Vec<u8> {
    let mut component = assemble([]);
    custom_section(&mut component, "x", &vec![0; 40_000_000]);
    component
}

fn noise(length: usize) -> Vec<u8> {
    let mut random = Random::new(0x5eed);
    (0..length).map(|_| random.number() as u8).collect()
}

fn section(id: u8, data: &[u8]) -> Vec<u8> {
    let mut out = assemble([]);
    append(&mut out, id, data);
    out
}

fn deep(times: usize) -> Vec<u8> {
    let mut inner = assemble([]);
    for _ in 0..times {
        inner = section(4, &inner);
    }
    inner
}

/// A list of a list of a list …, by one type each.
fn nested_types() -> Vec<u8> {
    let mut types = Vec::new();
    leb128(&mut types, 5000);
    types.extend_from_slice(&[0x70, 0x7d]);
    for at in 0..4999 {
        types.push(0x70);
        leb128(&mut types, at);
    }
    section(7, &types)
}

fn module(types: &[u8], functions: &[u8], code: &[u8]) -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    append(&mut module, 1, types);
    append(&mut module, 3, functions);
    append(&mut module, 10, code);
    section(1, &module)
}

fn no_code() -> Vec<u8> {
    module(b"\x01\x60\0\0", b"\x01\0", b"\x01\x04\0\xff\xfe\x0b")
}

fn functions(count: usize) -> Vec<u8> {
    let (mut list, mut code) = (Vec::new(), Vec::new());
    leb128(&mut list, count);
    leb128(&mut code, count);
    list.extend(std::iter::repeat_n(0, count));
    code.extend(std::iter::repeat_n(*b"\x02\0\x0b", count).flatten());
    module(b"\x01\x60\0\0", &list, &code)
}

/// One function that is a table of a million branches out of a thousand blocks.
fn branches() -> Vec<u8> {
    let mut body = vec![0];
    body.extend(std::iter::repeat_n([0x02, 0x40], 1000).flatten());
    body.extend_from_slice(&[0x41, 0, 0x0e]);
    leb128(&mut body, 1_000_000);
    for at in 0..=1_000_000_usize {
        leb128(&mut body, at % 1000);
    }
    body.extend(std::iter::repeat_n(0x0b, 1001));
    let mut code = vec![1];
    leb128(&mut code, body.len());
    code.extend_from_slice(&body);
    module(b"\x01\x60\0\0", b"\x01\0", &code)
}
