//! Numbers of key-value stores: decimal text that anybody can read and write, with one spelling for each, so that an
//! `increment` adds to the same values and refuses the same ones whichever provider keeps them.

/// The number that a value is: digits without zeros in front, behind a `-` where it is below 0, within the range of an `i64`.
/// `None` for any other bytes, `+5`, `007`, `-0` and `5 ` among them.
pub fn read(value: &[u8]) -> Option<i64> {
    let digits = value.strip_prefix(b"-").unwrap_or(value);
    let one_spelling = match digits {
        [b'0'] => digits.len() == value.len(),
        [b'1'..=b'9', ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    std::str::from_utf8(value).ok().filter(|_| one_spelling)?.parse().ok()
}

/// What an increment makes of a number. The contract counts in natural numbers: `None` where the sum is below 0 or above
/// [`i64::MAX`], or more than that is to be added.
pub fn add(number: i64, delta: u64) -> Option<u64> {
    let sum = number.checked_add(i64::try_from(delta).ok()?)?;
    u64::try_from(sum).ok()
}

/// What an increment makes of a value; of one that is not there, as of 0.
pub fn incremented(value: Option<&[u8]>, delta: u64) -> Option<u64> {
    add(value.map_or(Some(0), read)?, delta)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_has_one_spelling() {
        for bad in ["", "-", "+5", "007", "00", "-0", "-01", " 5", "5 ", "5\n", "1e3", "0x10", "1.5", "٣", "5\0", "--5"]
        {
            assert_eq!(read(bad.as_bytes()), None, "{bad:?}");
        }
        for bad in ["9223372036854775808", "-9223372036854775809", "99999999999999999999999999"] {
            assert_eq!(read(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(read(&5_u64.to_be_bytes()), None);
        assert_eq!(read(b"\xff"), None);
    }

    #[test]
    fn a_sum_is_a_natural_number() {
        let max = i64::MAX.unsigned_abs();
        assert_eq!(
            (incremented(None, 0), incremented(None, max), incremented(None, max + 1)),
            (Some(0), Some(max), None)
        );
        assert_eq!((add(-5, 5), add(-5, 7), add(-5, 4)), (Some(0), Some(2), None));
        assert_eq!((add(i64::MAX, 0), add(i64::MAX, 1), add(i64::MIN, max)), (Some(max), None, None));
        assert_eq!(incremented(Some(b"x"), 1), None);
    }

    proptest! {
        #[test]
        fn every_number_is_read_as_it_is_written(number: i64) {
            prop_assert_eq!(read(number.to_string().as_bytes()), Some(number));
        }

        #[test]
        fn what_is_read_is_written_so(value in "[-+0-9 ]{0,4}") {
            if let Some(number) = read(value.as_bytes()) {
                prop_assert_eq!(number.to_string(), value);
            }
        }
    }
}
