//! Decodes what an agent makes of a configuration block: MessagePack in which every field of the schema is present, absent
//! ones as nil, maps as lists of maps, and numbers in whatever form is smallest.

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::Failure;

/// Decodes a block; an empty text stands for an empty block.
///
/// # Errors
/// Unrecoverable: the agent checked the block by our schema, so one of the two is wrong.
pub fn decode<T: DeserializeOwned>(block: &[u8]) -> Result<T, Failure> {
    let value = match block {
        [] => Ok(Value::Object(serde_json::Map::new())),
        // nil: the agent had no block at all.
        [0xc0] => Ok(Value::Object(serde_json::Map::new())),
        some => rmp_serde::from_slice(some).map_err(|cause| format!("cannot be read: {cause}")),
    };
    let value = value.and_then(|value| serde_json::from_value(value).map_err(|cause| format!("does not fit: {cause}")));
    value.map_err(|why| Failure::unrecoverable(format!("the configuration the agent sent {why}")))
}

/// For `#[serde(deserialize_with)]`: nil means the default.
///
/// # Errors
/// Those of the value.
pub fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(source: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(source)?.unwrap_or_default())
}

/// One map, or a list of maps of which a later one goes before an earlier one. What is nil is not there.
#[derive(Deserialize)]
#[serde(untagged)]
enum Maps {
    Many(Vec<BTreeMap<String, Value>>),
    One(BTreeMap<String, Value>),
}

impl Maps {
    fn entries(self) -> impl Iterator<Item = (String, Value)> {
        let maps = match self {
            Self::One(map) => vec![map],
            Self::Many(maps) => maps,
        };
        maps.into_iter().flatten().filter(|(_, value)| !value.is_null())
    }
}

/// For `#[serde(deserialize_with)]`: texts by name, of [`crate::hcl::Fields::text_map`] and
/// [`crate::hcl::Fields::text_block`]. Numbers and truth values become texts.
///
/// # Errors
/// When it is something else.
pub fn text_map<'de, D: Deserializer<'de>>(source: D) -> Result<BTreeMap<String, String>, D::Error> {
    let text = |(name, value)| match value {
        Value::String(text) => Ok((name, text)),
        scalar @ (Value::Number(_) | Value::Bool(_)) => Ok((name, scalar.to_string())),
        other => Err(D::Error::custom(format!("`{name}` is {other}, where a text is needed"))),
    };
    Option::<Maps>::deserialize(source)?.into_iter().flat_map(Maps::entries).map(text).collect()
}

/// For `#[serde(deserialize_with)]`: a whole number, whether it came as a number of any kind or as a text.
///
/// # Errors
/// When it is none, or does not fit.
pub fn whole<'de, D: Deserializer<'de>>(source: D) -> Result<Option<u64>, D::Error> {
    let value = Option::<Value>::deserialize(source)?.filter(|value| !value.is_null());
    value.map(|value| as_whole(&value).map_err(D::Error::custom)).transpose()
}

/// For `#[serde(deserialize_with)]`: whole numbers in order, of [`crate::hcl::Fields::numbers`].
///
/// # Errors
/// When one is none, or does not fit.
pub fn wholes<'de, D: Deserializer<'de>>(source: D) -> Result<Vec<u64>, D::Error> {
    let values = Option::<Vec<Value>>::deserialize(source)?.unwrap_or_default();
    values.iter().map(|value| as_whole(value).map_err(D::Error::custom)).collect()
}

/// For `#[serde(deserialize_with)]`: whole numbers by name, of [`crate::hcl::Fields::number_map`].
///
/// # Errors
/// When one is none, or does not fit.
pub fn whole_map<'de, D: Deserializer<'de>>(source: D) -> Result<BTreeMap<String, u64>, D::Error> {
    let number = |(name, value): (String, Value)| {
        let number = as_whole(&value).map_err(|why| D::Error::custom(format!("`{name}`: {why}")))?;
        Ok((name, number))
    };
    Option::<Maps>::deserialize(source)?.into_iter().flat_map(Maps::entries).map(number).collect()
}

/// For `#[serde(deserialize_with)]`: a number with a fraction, whether it came as a number of any kind or as a text.
///
/// # Errors
/// When it is none.
pub fn fraction<'de, D: Deserializer<'de>>(source: D) -> Result<Option<f64>, D::Error> {
    let value = Option::<Value>::deserialize(source)?.filter(|value| !value.is_null());
    let number = |value: Value| {
        let number = match &value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.parse().ok().filter(|number: &f64| number.is_finite()),
            _ => None,
        };
        number.ok_or_else(|| D::Error::custom(format!("{value} is no number")))
    };
    value.map(number).transpose()
}

fn as_whole(value: &Value) -> Result<u64, String> {
    let found = match value {
        Value::Number(number) => number.as_u64().or_else(|| exact(number.as_f64()?)),
        Value::String(text) => text.parse().ok().or_else(|| exact(text.parse().ok()?)),
        _ => None,
    };
    found.ok_or_else(|| format!("{value} is no whole number"))
}

/// The number, where it is whole and nothing of it was lost on its way.
fn exact(number: f64) -> Option<u64> {
    const LARGEST: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && (0.0..=LARGEST).contains(&number)).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    struct Block {
        #[serde(default)]
        text: Option<String>,
        #[serde(default, deserialize_with = "text_map")]
        map: BTreeMap<String, String>,
        #[serde(default, deserialize_with = "whole")]
        number: Option<u64>,
        #[serde(default, deserialize_with = "wholes")]
        numbers: Vec<u64>,
        #[serde(default, deserialize_with = "whole_map")]
        number_map: BTreeMap<String, u64>,
        #[serde(default, deserialize_with = "fraction")]
        part: Option<f64>,
        #[serde(default, deserialize_with = "or_default")]
        flag: bool,
        #[serde(default, deserialize_with = "or_default")]
        list: Vec<String>,
    }

    fn read(value: serde_json::Value) -> Result<Block, Failure> {
        decode(&rmp_serde::to_vec(&value).unwrap())
    }

    #[test]
    fn what_agents_send_is_understood() {
        let empty = Block::default();
        assert_eq!(decode::<Block>(&[]).unwrap(), empty);
        assert_eq!(decode::<Block>(&[0xc0]).unwrap(), empty);
        let nils = json!({
            "text": null, "map": null, "number": null, "numbers": null, "number_map": null, "part": null, "flag": null,
            "list": null,
        });
        assert_eq!(read(nils).unwrap(), empty);
        let full = read(json!({
            "text": "ä", "map": [{"a": "1", "b": "2"}, {"b": 3, "c": null}], "number": 5, "numbers": [1, "2", 3.0],
            "number_map": [{"a": 1}, {"a": 2, "b": null}], "part": "0.5", "flag": true, "list": ["x"],
        }));
        let map = [("a", "1"), ("b", "3")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let wanted = Block {
            text: Some("ä".into()),
            map,
            number: Some(5),
            numbers: vec![1, 2, 3],
            number_map: [("a".to_owned(), 2)].into(),
            part: Some(0.5),
            flag: true,
            list: vec!["x".into()],
        };
        assert_eq!(full.unwrap(), wanted);
        for number in [json!(5_000_000_000_u64), json!(5_000_000_000.0), json!("5000000000")] {
            assert_eq!(read(json!({"number": number})).unwrap().number, Some(5_000_000_000));
        }
        assert_eq!(read(json!({"map": {"a": "1"}})).unwrap().map.len(), 1);
        assert_eq!(read(json!({"part": 2})).unwrap().part, Some(2.0));
        for wrong in [
            json!({"number": 1.5}),
            json!({"number": -1}),
            json!({"numbers": [1, null]}),
            json!({"number_map": [{"a": "x"}]}),
            json!({"part": "inf"}),
            json!({"map": [{"a": []}]}),
            json!({"flag": "x"}),
        ] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
        assert!(decode::<Block>(&[0xc1]).unwrap_err().message.contains("cannot be read"));
    }
}
