//! Lists that come from somebody who is not trusted: one with more entries than it may have is refused while it is read, for an
//! entry may be a byte on the wire and dozens in memory.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// At most `MOST` entries; for `deserialize_with`.
///
/// # Errors
/// As the deserializer, and where there are more.
pub fn at_most<'de, T: Deserialize<'de>, D: Deserializer<'de>, const MOST: usize>(from: D) -> Result<Vec<T>, D::Error> {
    from.deserialize_seq(Listed::<T, MOST> { together: usize::MAX, count: |_| 0 })
}

/// At most `MOST` entries, which hold at most `together` of what `count` counts: a list of lists. No more of them are read
/// than the one that is too many.
///
/// # Errors
/// As [`at_most`].
pub fn at_most_together<'de, T: Deserialize<'de>, D: Deserializer<'de>, const MOST: usize>(
    from: D,
    together: usize,
    count: fn(&T) -> usize,
) -> Result<Vec<T>, D::Error> {
    from.deserialize_seq(Listed::<T, MOST> { together, count })
}

struct Listed<T, const MOST: usize> {
    together: usize,
    count: fn(&T) -> usize,
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Listed<T, MOST> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MOST}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let announced = entries.size_hint().unwrap_or_default();
        if announced > MOST {
            return Err(A::Error::invalid_length(announced, &self));
        }
        let (mut list, mut held) = (Vec::new(), 0_usize);
        while let Some(entry) = entries.next_element()? {
            if list.len() == MOST {
                return Err(A::Error::invalid_length(MOST + 1, &self));
            }
            held = held.saturating_add((self.count)(&entry));
            if held > self.together {
                let together = self.together;
                return Err(A::Error::custom(format!("the entries of a list hold more than {together} together")));
            }
            list.push(entry);
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    #[derive(serde::Deserialize)]
    struct Holds {
        #[serde(deserialize_with = "super::at_most::<_, _, 3>")]
        list: Vec<u8>,
    }

    #[test]
    fn a_list_has_at_most_so_many() {
        let read = |text: &str| serde_json::from_str::<Holds>(text).map(|holds| holds.list);
        assert_eq!(read(r#"{"list":[]}"#).unwrap(), [0; 0]);
        assert_eq!(read(r#"{"list":[1,2,3]}"#).unwrap(), [1, 2, 3]);
        let refused = read(r#"{"list":[1,2,3,4]}"#).unwrap_err().to_string();
        assert!(refused.contains("invalid length 4, expected a list of at most 3"), "{refused}");
    }

    #[derive(serde::Deserialize)]
    struct Nested {
        #[serde(deserialize_with = "nested")]
        list: Vec<Vec<u8>>,
    }

    fn nested<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Vec<u8>>, D::Error> {
        super::at_most_together::<_, _, 4>(from, 5, Vec::len)
    }

    #[test]
    fn lists_of_a_list_have_so_much_together() {
        let read = |text: &str| serde_json::from_str::<Nested>(text).map(|holds| holds.list.len());
        assert_eq!(read(r#"{"list":[[1,2,3],[],[4,5]]}"#).unwrap(), 3);
        let refused = read(r#"{"list":[[1,2,3],[4,5],[6],"never read"]}"#).unwrap_err().to_string();
        assert!(refused.contains("hold more than 5 together"), "{refused}");
        assert!(read(r#"{"list":[[],[],[],[],[]]}"#).is_err());
    }
}
