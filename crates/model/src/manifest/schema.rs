//! The JSON Schema of `app.toml`, for editors: made from the same field tables that manifests are checked against.

use serde_json::{Map, Value, json};

use super::fields::{APP, Field, HANDED, SECRET, SETTING, Settings, Table, Text, Ty};
use crate::app::ProviderKind;
use crate::offers::contracts_by_link;
use crate::rules::provider::Setting;
use crate::rules::{external, links, provider, route};
use crate::schedule::Missed;

/// The schema as text, in an order that does not depend on how the program was built.
pub fn json_schema() -> String {
    let mut root = table(&APP);
    if let Value::Object(root) = &mut root {
        root.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        root.insert("title".to_owned(), json!("Sidereal app manifest (app.toml)"));
    }
    let mut text = serde_json::to_string_pretty(&sorted(root)).unwrap_or_default();
    text.push('\n');
    text
}

/// Keys in alphabetical order, whichever map `serde_json` was built with.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(Map::from_iter(entries))
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

fn table(shape: &Table) -> Value {
    match shape.settings {
        Settings::None | Settings::OfLink => object(&(shape.fields)(), &link_settings(shape.settings)),
        Settings::OfProvider => json!({ "oneOf": ProviderKind::ALL.map(provider_kind) }),
    }
}

fn link_settings(settings: Settings) -> Vec<Setting> {
    if settings != Settings::OfLink {
        return Vec::new();
    }
    // A link's table does not say which contract it is of: the settings of all are allowed, and the rules tell them apart.
    contracts_by_link().flat_map(|contract| links::settings(contract).iter().copied()).collect()
}

fn provider_kind(kind: ProviderKind) -> Value {
    let mut schema = object(&[], provider::settings(kind));
    let secrets = provider::secret_settings(kind);
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("type".to_owned(), json!({ "const": kind.as_str() }));
        if kind == ProviderKind::External {
            let mut handed = ty(HANDED);
            if let Value::Object(handed) = &mut handed {
                handed.insert("description".to_owned(), json!(external::CONFIG_DOC.0));
            }
            properties.insert(external::CONFIG.to_owned(), handed);
        }
        for setting in secrets {
            let mut schema = match properties.contains_key(setting.name) {
                true => ty(SETTING),
                false => ty(SECRET),
            };
            if let Value::Object(schema) = &mut schema {
                schema.insert("description".to_owned(), json!(setting.doc));
            }
            properties.insert(setting.name.to_owned(), schema);
        }
    }
    let only = secrets.iter().filter(|s| s.required && provider::settings(kind).iter().all(|t| t.name != s.name));
    let only: Vec<Value> = only.map(|s| json!(s.name)).collect();
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.extend(only);
    }
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.insert(0, json!("type"));
    }
    schema
}

fn object(fields: &[Field], settings: &[Setting]) -> Value {
    let mut properties = Map::new();
    for field in fields {
        let mut value = ty(field.ty);
        if let Value::Object(value) = &mut value {
            value.insert("description".to_owned(), json!(field.doc));
        }
        properties.insert(field.name.to_owned(), value);
    }
    for setting in settings {
        let mut value =
            if links::LISTS.contains(&setting.name) { ty(super::fields::TEXTS) } else { json!({ "type": "string" }) };
        if let Value::Object(value) = &mut value {
            value.insert("description".to_owned(), json!(setting.doc));
        }
        properties.insert(setting.name.to_owned(), value);
    }
    let required: Vec<&str> = fields
        .iter()
        .filter(|f| f.required)
        .map(|f| f.name)
        .chain(settings.iter().filter(|s| s.required).map(|s| s.name))
        .collect();
    json!({ "type": "object", "additionalProperties": false, "properties": properties, "required": required })
}

fn ty(ty: Ty) -> Value {
    match ty {
        Ty::Text(kind) => text(kind),
        Ty::Integer(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Ty::Table(shape) => table(shape),
        Ty::Map(keys, values) => {
            let (keys, values) = (text(keys), self::ty(*values));
            json!({ "type": "object", "propertyNames": keys, "additionalProperties": values })
        }
        Ty::List(item) => {
            let item = self::ty(*item);
            json!({ "type": "array", "items": item })
        }
        Ty::OneOf(types) => json!({ "oneOf": types.iter().map(|ty| self::ty(*ty)).collect::<Vec<_>>() }),
    }
}

fn text(kind: Text) -> Value {
    let pattern = match kind {
        Text::Any | Text::Setting | Text::Cron | Text::Zone => return json!({ "type": "string" }),
        Text::Method => return json!({ "enum": route::METHODS }),
        Text::Missed => return json!({ "enum": Missed::ALL.map(Missed::as_str) }),
        Text::ProviderKind => return json!({ "enum": ProviderKind::ALL.map(ProviderKind::as_str) }),
        Text::Contract => "^[A-Za-z][A-Za-z0-9-]*:[A-Za-z][A-Za-z0-9-]*$",
        Text::Name => "^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$",
        Text::Duration => "^[0-9]+ *(ms|s|m|h)$",
        Text::Size => "^[0-9]+ *(B|KiB|MiB|GiB)$",
        Text::Path => r"^[^/~\\][^\\]*$",
        Text::Oci => "^[a-z0-9][a-z0-9.:-]*/[a-z0-9._/-]+(:[A-Za-z0-9._-]+)?@sha256:[0-9a-f]{64}$",
        Text::Host => r"^(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*$",
        Text::RoutePath => "^/[A-Za-z0-9/._~!$&'()+,;=:@-]*$",
        Text::AllowHost => r"^https?://((\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*|\[[0-9a-f:.]+\])(:[0-9]+)?$",
    };
    json!({ "type": "string", "pattern": pattern })
}
