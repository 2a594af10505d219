//! The outermost sections of a component, taken apart and put together, with no library: what mutations cut at, and a
//! second opinion on what others read.

/// One section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section<'a> {
    /// What it is.
    pub id: u8,
    /// What it holds.
    pub data: &'a [u8],
}

impl<'a> Section<'a> {
    /// What a custom section of that name holds.
    pub fn custom(&self, name: &str) -> Option<&'a [u8]> {
        let (length, rest) = number(self.data).filter(|_| self.id == 0)?;
        let (found, data) = rest.split_at_checked(length)?;
        (found == name.as_bytes()).then_some(data)
    }
}

/// The sections of a component or module; those before the first that is not whole.
pub fn sections(bytes: &[u8]) -> Vec<Section<'_>> {
    let mut out = Vec::new();
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((&id, after)) = rest.split_first() {
        let Some((data, after)) = number(after).and_then(|(size, after)| after.split_at_checked(size)) else { break };
        out.push(Section { id, data });
        rest = after;
    }
    out
}

/// A component of these sections.
pub fn assemble<'a>(sections: impl IntoIterator<Item = Section<'a>>) -> Vec<u8> {
    let mut out = b"\0asm\x0d\0\x01\0".to_vec();
    for section in sections {
        append(&mut out, section.id, section.data);
    }
    out
}

/// Adds a section at the end.
pub fn append(to: &mut Vec<u8>, id: u8, data: &[u8]) {
    to.push(id);
    leb128(to, data.len());
    to.extend_from_slice(data);
}

/// Adds a custom section at the end.
pub fn custom_section(to: &mut Vec<u8>, name: &str, data: &[u8]) {
    let mut whole = Vec::with_capacity(name.len() + data.len() + 4);
    leb128(&mut whole, name.len());
    whole.extend_from_slice(name.as_bytes());
    whole.extend_from_slice(data);
    append(to, 0, &whole);
}

/// Writes a number as WebAssembly does.
pub fn leb128(to: &mut Vec<u8>, mut value: usize) {
    while value > 0x7f {
        to.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for (at, byte) in bytes.iter().take(5).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}
