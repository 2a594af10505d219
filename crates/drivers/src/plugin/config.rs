//! Decodes what an agent makes of a configuration block: MessagePack in which every field of the schema is present, absent
//! ones as nil, maps as lists of maps, and numbers in whatever form is smallest.

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};

use super::Failure;

/// Decodes a block; an empty text stands for an empty block.
///
/// # Errors
/// Unrecoverable: the agent checked the block by our schema, so one of the two is wrong.
pub fn decode<T: DeserializeOwned>(block: &[u8]) -> Result<T, Failure> {
    let value = match block {
        [] => Ok(serde_json::Value::Object(serde_json::Map::new())),
        // nil: the agent had no block at all.
        [0xc0] => Ok(serde_json::Value::Object(serde_json::Map::new())),
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

/// For `#[serde(deserialize_with)]`: texts by name, as one map or as a list of maps of which a later one goes before an
/// earlier one. Numbers and truth values become texts.
///
/// # Errors
/// When it is something else.
pub fn text_map<'de, D: Deserializer<'de>>(source: D) -> Result<BTreeMap<String, String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Maps {
        Many(Vec<BTreeMap<String, serde_json::Value>>),
        One(BTreeMap<String, serde_json::Value>),
    }
    let maps = match Option::<Maps>::deserialize(source)? {
        None => Vec::new(),
        Some(Maps::One(map)) => vec![map],
        Some(Maps::Many(maps)) => maps,
    };
    let entries = maps.into_iter().flatten().filter_map(|(name, value)| {
        let text = match value {
            serde_json::Value::Null => return None,
            serde_json::Value::String(text) => Ok(text),
            scalar @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_)) => Ok(scalar.to_string()),
            other => Err(D::Error::custom(format!("`{name}` is {other}, where a text is needed"))),
        };
        Some(text.map(|text| (name, text)))
    });
    entries.collect()
}

/// For `#[serde(deserialize_with)]`: a whole number, whether it came as a number of any kind or as a text.
///
/// # Errors
/// When it is none, or does not fit.
pub fn whole<'de, D: Deserializer<'de>>(source: D) -> Result<Option<u64>, D::Error> {
    let value = Option::<serde_json::Value>::deserialize(source)?;
    let wrong = |value: &serde_json::Value| D::Error::custom(format!("{value} is no whole number"));
    let number = |value: serde_json::Value| {
        let found = match &value {
            serde_json::Value::Number(number) => number.as_u64().or_else(|| exact(number.as_f64()?)),
            serde_json::Value::String(text) => text.parse().ok().or_else(|| exact(text.parse().ok()?)),
            _ => None,
        };
        found.ok_or_else(|| wrong(&value))
    };
    value.filter(|value| !value.is_null()).map(number).transpose()
}

fn exact(number: f64) -> Option<u64> {
    const LARGEST: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && (0.0..=LARGEST).contains(&number)).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Block {
        #[serde(default)]
        text: Option<String>,
        #[serde(default, deserialize_with = "text_map")]
        map: BTreeMap<String, String>,
        #[serde(default, deserialize_with = "whole")]
        number: Option<u64>,
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
        let empty = Block { text: None, map: BTreeMap::new(), number: None, flag: false, list: vec![] };
        assert_eq!(decode::<Block>(&[]).unwrap(), empty);
        assert_eq!(decode::<Block>(&[0xc0]).unwrap(), empty);
        let nils = json!({"text": null, "map": null, "number": null, "flag": null, "list": null});
        assert_eq!(read(nils).unwrap(), empty);
        let full = read(json!({
            "text": "ä", "map": [{"a": "1", "b": "2"}, {"b": 3, "c": null}], "number": 5, "flag": true, "list": ["x"],
        }));
        let map = [("a", "1"), ("b", "3")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let full_wanted = Block { text: Some("ä".into()), map, number: Some(5), flag: true, list: vec!["x".into()] };
        assert_eq!(full.unwrap(), full_wanted);
        for number in [json!(5_000_000_000_u64), json!(5_000_000_000.0), json!("5000000000")] {
            assert_eq!(read(json!({"number": number})).unwrap().number, Some(5_000_000_000));
        }
        assert_eq!(read(json!({"map": {"a": "1"}})).unwrap().map.len(), 1);
        for wrong in [json!({"number": 1.5}), json!({"number": -1}), json!({"map": [{"a": []}]}), json!({"flag": "x"})]
        {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
        assert!(decode::<Block>(&[0xc1]).unwrap_err().message.contains("cannot be read"));
    }
}
