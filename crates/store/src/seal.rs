//! Values with a check in front that binds them to their key: pages are only verified when a file is opened, and a
//! disk can rot or answer with another block at any time after.

/// Bytes in front of a value.
pub(crate) const CHECK: usize = 8;

/// The check and the value.
pub(crate) fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(CHECK + value.len());
    sealed.extend_from_slice(&check(key, value));
    sealed.extend_from_slice(value);
    sealed
}

/// The value, if it is the one that was sealed for `key`.
pub(crate) fn open<'a>(key: &[u8], sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (found, value) = sealed.split_first_chunk::<CHECK>()?;
    (*found == check(key, value)).then_some(value)
}

fn check(key: &[u8], value: &[u8]) -> [u8; CHECK] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    let mut check = [0; CHECK];
    hasher.finalize_xof().fill(&mut check);
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_value_of_the_same_key_opens() {
        let sealed = seal(b"key", b"value");
        assert_eq!(open(b"key", &sealed), Some(&b"value"[..]));
        assert_eq!(open(b"kez", &sealed), None);
        assert_eq!(open(b"key", &sealed[..CHECK - 1]), None);
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(b"key", &bad), None, "bit {bit}");
        }
    }
}
