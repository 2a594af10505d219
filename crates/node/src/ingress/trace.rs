//! The `traceparent` of a request: carried on if it is well formed (W3C Trace Context), made otherwise.

use rand::RngCore;

/// `00-<32 hex>-<16 hex>-<2 hex>`, lower case, ids not zero. Other versions are not carried on: nobody here reads them.
pub(super) fn is_valid(value: &[u8]) -> bool {
    let mut parts = value.split(|&byte| byte == b'-');
    let (Some(b"00"), Some(trace), Some(parent), Some(flags), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let hex = |part: &[u8], len: usize| {
        part.len() == len && part.iter().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
    };
    let not_zero = |part: &[u8]| part.iter().any(|&byte| byte != b'0');
    hex(trace, 32) && hex(parent, 16) && hex(flags, 2) && not_zero(trace) && not_zero(parent)
}

/// Appends a new value: random ids, not sampled.
pub(super) fn generate(out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut random = [0u8; 24];
    rand::rng().fill_bytes(&mut random);
    // Zero ids are invalid; one fixed bit costs nothing.
    for byte in random.iter_mut().step_by(16) {
        *byte |= 1;
    }
    out.extend_from_slice(b"00-");
    for (at, byte) in random.iter().enumerate() {
        if at == 16 {
            out.push(b'-');
        }
        for digit in [byte >> 4, byte & 15] {
            out.push(HEX.get(usize::from(digit)).copied().unwrap_or(b'0'));
        }
    }
    out.extend_from_slice(b"-00");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_valid() {
        for _ in 0..100 {
            let mut out = Vec::new();
            generate(&mut out);
            assert!(is_valid(&out), "{}", String::from_utf8_lossy(&out));
        }
    }

    #[test]
    fn malformed_ones_are_not_carried_on() {
        assert!(is_valid(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b70-01",
        ] {
            assert!(!is_valid(bad.as_bytes()), "{bad}");
        }
    }
}
