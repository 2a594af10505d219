//! Changes inputs at random, the same way for the same seed on every machine: what fails is found again by its seed.

/// Random numbers from a seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts at a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 where there is none.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.number() % end as u64) as usize }
    }
}

/// Bytes that mean something to one reader or another.
const TOKENS: [&[u8]; 40] = [
    b"\0",
    b"\xff",
    b"\r\n",
    b"\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b".",
    b"..",
    b"/",
    b"%2e",
    b"%00",
    b"@",
    b"[",
    b"]",
    b"{",
    b"}",
    b"\"",
    b"'",
    b"\\",
    b"*",
    b"-",
    b"0",
    b"-1",
    b"18446744073709551616",
    b"\xe2\x82\xac",
    b"\xf0\x9f\x92\xa9",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 1\r\n",
    b"Host: a\r\n",
    b"\0asm",
    b"\x80\x80\x80\x80\x0f",
    b"\xff\xff\xff\xff\x0f",
    b"::ffff:127.0.0.1",
    b"0x7f",
    b"null",
    b"[[",
];

/// One to eight changes of `input`; pieces of `other` may be put into it. Never longer than `limit` bytes.
pub fn mutate(input: &[u8], other: &[u8], limit: usize, random: &mut Random) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..1 << random.below(4) {
        change(&mut out, other, random);
    }
    out.truncate(limit);
    out
}

fn change(out: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(out.len());
    let some = 1 + random.below((out.len() - at).clamp(1, 32));
    let end = (at + some).min(out.len());
    match random.below(10) {
        0 if at < out.len() => out[at] ^= 1 << random.below(8),
        1 if at < out.len() => out[at] = random.number() as u8,
        2 if at < out.len() => out[at] = out[at].wrapping_add(1).wrapping_sub(2 * (random.number() as u8 & 1)),
        3 => drop(out.drain(at..end)),
        4 => out.insert(at, random.number() as u8),
        5 => {
            let piece = out[at..end].to_vec();
            let to = random.below(out.len() + 1);
            out.splice(to..to, piece);
        }
        6 => {
            let token = TOKENS[random.below(TOKENS.len())];
            out.splice(at..at, token.iter().copied());
        }
        7 => {
            let token = TOKENS[random.below(TOKENS.len())];
            let end = (at + token.len()).min(out.len());
            out.splice(at..end, token.iter().copied());
        }
        8 if !other.is_empty() => {
            let from = random.below(other.len());
            let piece = &other[from..(from + 1 + random.below(64)).min(other.len())];
            out.splice(at..end, piece.iter().copied());
        }
        9 if out.len() > 1 && random.below(8) == 0 => out.truncate(at),
        _ => out.push(random.number() as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_inputs() {
        let run = |seed| {
            let mut random = Random::new(seed);
            (0..200).map(|_| mutate(b"name = \"a\"", b"other", 64, &mut random)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert!(run(3).iter().all(|input| input.len() <= 64));
    }
}
