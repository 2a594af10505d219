//! What Vault answers for a secret: fields with values, of which one is meant.

use std::collections::BTreeMap;
use std::fmt;

use data_encoding::BASE64;
use model::secret::MAX_SECRET;
use model::{SecretRef, SecretValue};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::secrets::SecretError;
use crate::vault::Hidden;

/// The field that is meant where none is named.
const USUAL: &str = "value";
/// The field of a value that is no text.
const ENCODED: &str = "base64";

/// The fields of one secret. Wiped when dropped.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(super) struct Fields(BTreeMap<String, Field>);

/// The value of a field: a text, a number as a text, or something that is no value of a secret.
#[derive(Clone, PartialEq, Eq)]
struct Field(Option<SecretValue>);

/// What stands around the fields of `kv` version 1 and of dynamic engines.
#[derive(Deserialize)]
pub(super) struct Plain {
    data: Option<Fields>,
    lease_id: Option<Hidden>,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

/// What stands around the fields of `kv` version 2.
#[derive(Deserialize)]
pub(super) struct Versioned {
    data: Option<Version>,
}

#[derive(Deserialize)]
struct Version {
    data: Option<Fields>,
}

/// A lease that was made longer.
#[derive(Deserialize)]
pub(super) struct Renewed {
    pub(super) lease_duration: u64,
    #[serde(default)]
    pub(super) renewable: bool,
}

/// A secret, and the lease it is under where there is one.
pub(super) struct Answer {
    pub(super) data: Fields,
    pub(super) lease_id: Option<Hidden>,
    pub(super) lease_duration: u64,
    pub(super) renewable: bool,
}

impl Answer {
    pub(super) fn from_versioned(got: Versioned) -> Option<Self> {
        let data = got.data?.data?;
        Some(Self { data, lease_id: None, lease_duration: 0, renewable: false })
    }

    pub(super) fn from_plain(got: Plain) -> Option<Self> {
        let Plain { data, lease_id, lease_duration, renewable } = got;
        Some(Self { data: data?, lease_id, lease_duration, renewable })
    }
}

impl Fields {
    /// The value that is meant.
    pub(super) fn pick(&self, secret: &SecretRef) -> Result<SecretValue, SecretError> {
        let unusable = |cause: String| SecretError::Unusable { secret: secret.secret.to_string(), cause };
        let named = secret.field.as_ref().map(|field| field.as_str());
        let (name, field) = match named {
            Some(name) => self.0.get_key_value(name),
            None => [USUAL, ENCODED].iter().find_map(|name| self.0.get_key_value(*name)).or_else(|| self.only()),
        }
        .ok_or_else(|| match named {
            Some(name) => unusable(format!("in Vault it has no field `{name}`")),
            None => unusable(format!(
                "in Vault it has {} fields and none is `{USUAL}`: say which is meant with `field`",
                self.0.len()
            )),
        })?;
        let value =
            field.0.as_ref().ok_or_else(|| unusable(format!("its field in Vault is no text{}", shown(named))))?;
        let value = match named.is_none() && name == ENCODED {
            true => SecretValue::new(
                BASE64
                    .decode(value.expose())
                    .map_err(|_| unusable(format!("its field `{ENCODED}` in Vault is not base64")))?,
            ),
            false => value.clone(),
        };
        match value.expose().len() {
            0 => Err(unusable("it is empty".to_owned())),
            n if n > MAX_SECRET => Err(unusable(format!("it has {n} bytes, and a secret has at most {MAX_SECRET}"))),
            _ => Ok(value),
        }
    }

    fn only(&self) -> Option<(&String, &Field)> {
        let mut all = self.0.iter();
        all.next().filter(|_| all.next().is_none())
    }
}

fn shown(named: Option<&str>) -> String {
    named.map(|name| format!(": `{name}`")).unwrap_or_default()
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

/// Takes a text over without a copy that is not wiped.
struct AnyValue;

fn text(text: impl fmt::Display) -> Field {
    Field(Some(SecretValue::new(text.to_string().into_bytes())))
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_str<E>(self, value: &str) -> Result<Field, E> {
        Ok(Field(Some(SecretValue::new(value.as_bytes().to_vec()))))
    }
    fn visit_string<E>(self, value: String) -> Result<Field, E> {
        Ok(Field(Some(SecretValue::new(value.into_bytes()))))
    }
    fn visit_bool<E>(self, value: bool) -> Result<Field, E> {
        Ok(text(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Field, E> {
        Ok(text(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Field, E> {
        Ok(text(value))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Field, E> {
        Ok(text(value))
    }
    fn visit_unit<E>(self) -> Result<Field, E> {
        Ok(Field(None))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Field, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field(None))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(json: &str, field: Option<&str>) -> Result<String, String> {
        let fields: Fields = serde_json::from_str(json).unwrap();
        let field = field.map(|field| field.parse().unwrap());
        let secret = SecretRef { field, ..SecretRef::new("db".parse().unwrap()) };
        let picked = fields.pick(&secret).map_err(|cause| cause.to_string())?;
        Ok(String::from_utf8_lossy(picked.expose()).into_owned())
    }

    #[test]
    fn the_field_that_is_meant_is_found_or_said_to_be_missing() {
        for (json, field, value) in [
            (r#"{"value":"a","note":"b"}"#, None, "a"),
            (r#"{"password":"a"}"#, None, "a"),
            (r#"{"username":"u","password":"p"}"#, Some("password"), "p"),
            (r#"{"base64":"aGVsbG8="}"#, None, "hello"),
            (r#"{"base64":"aGVsbG8="}"#, Some("base64"), "aGVsbG8="),
            (r#"{"port":5432}"#, None, "5432"),
            (r#"{"port":-1.5,"tls":true}"#, Some("tls"), "true"),
        ] {
            assert_eq!(pick(json, field).as_deref(), Ok(value), "{json}");
        }
        for (json, field, words) in [
            (r#"{"username":"u","password":"hunter2"}"#, None, "has 2 fields"),
            (r#"{}"#, None, "has 0 fields"),
            (r#"{"value":"hunter2"}"#, Some("other"), "no field `other`"),
            (r#"{"value":["hunter2"]}"#, None, "no text"),
            (r#"{"value":{"a":"hunter2"}}"#, None, "no text"),
            (r#"{"value":null}"#, None, "no text"),
            (r#"{"value":""}"#, None, "empty"),
            (r#"{"base64":"hunter2!"}"#, None, "not base64"),
        ] {
            let said = pick(json, field).unwrap_err();
            assert!(said.contains(words) && said.contains("`db`") && !said.contains("hunter2"), "{json}: {said}");
        }
        let long = format!(r#"{{"value":"{}"}}"#, "x".repeat(MAX_SECRET + 1));
        assert!(pick(&long, None).unwrap_err().contains("at most"));
    }
}
