//! An agent's pipeline for configuration blocks, as far as it can be seen from outside: checked by the plugin's schema, every
//! field present, absent ones nil, keys sorted, MessagePack.

use drivers::contracts::hashicorp::nomad::plugins::shared::hclspec::{Spec, spec};
use serde_json::{Map, Value, json};

/// What the agent sends for this block, or why it refuses the block.
pub fn block(spec: &Spec, written: &Value) -> Result<Vec<u8>, String> {
    let value = shape("config", spec, Some(written))?;
    rmp_serde::to_vec(&value).map_err(|cause| cause.to_string())
}

fn shape(name: &str, spec: &Spec, written: Option<&Value>) -> Result<Value, String> {
    match spec.block.as_ref().ok_or("an empty spec")? {
        spec::Block::Object(object) => {
            let empty = Map::new();
            let fields = match written {
                None => &empty,
                Some(Value::Object(fields)) => fields,
                Some(other) => return Err(format!("{name}: {other} is no block")),
            };
            if let Some(unknown) = fields.keys().find(|key| !object.attributes.contains_key(*key)) {
                return Err(format!("{name}: An argument named \"{unknown}\" is not expected here."));
            }
            let mut shaped = Map::new();
            for (key, spec) in &object.attributes {
                shaped.insert(key.clone(), shape(key, spec, fields.get(key))?);
            }
            Ok(Value::Object(shaped))
        }
        spec::Block::Attr(attr) => match written {
            None | Some(Value::Null) if attr.required => Err(format!("{name}: is required")),
            None => Ok(Value::Null),
            Some(value) => attribute(name, &attr.r#type, value),
        },
        spec::Block::Default(default) => {
            let primary = shape(name, default.primary.as_ref().ok_or("no primary")?, written)?;
            if !primary.is_null() {
                return Ok(primary);
            }
            shape(name, default.default.as_ref().ok_or("no default")?, None)
        }
        spec::Block::Literal(literal) => serde_json::from_str(&literal.value).map_err(|cause| cause.to_string()),
        spec::Block::BlockValue(block) => match written {
            None if block.required => Err(format!("{name}: a block is required")),
            None => Ok(Value::Null),
            Some(value) => shape(name, block.nested.as_ref().ok_or("no nested")?, Some(value)),
        },
        spec::Block::BlockMap(map) => {
            let nested = map.nested.as_ref().ok_or("no nested")?;
            let fields = written.and_then(Value::as_object).cloned().unwrap_or_default();
            let blocks = fields.iter().map(|(label, value)| Ok((label.clone(), shape(label, nested, Some(value))?)));
            Ok(Value::Object(blocks.collect::<Result<_, String>>()?))
        }
        spec::Block::BlockList(list) => {
            let nested = list.nested.as_ref().ok_or("no nested")?;
            let all = written.and_then(Value::as_array).cloned().unwrap_or_default();
            Ok(Value::Array(all.iter().map(|one| shape(name, nested, Some(one))).collect::<Result<_, _>>()?))
        }
        other => Err(format!("{name}: this fake agent knows no {other:?}")),
    }
}

fn attribute(name: &str, kind: &str, value: &Value) -> Result<Value, String> {
    let texts = |value: &Value| value.as_array().is_some_and(|all| all.iter().all(Value::is_string));
    match kind {
        "string" if value.is_string() => Ok(value.clone()),
        "bool" if value.is_boolean() => Ok(value.clone()),
        "number" if value.is_number() => Ok(value.clone()),
        "list(string)" if texts(value) => Ok(value.clone()),
        // Jobs hand maps over as lists of maps.
        "list(map(string))" if value.is_object() => Ok(json!([value])),
        kind => Err(format!("{name}: Inappropriate value for attribute: {kind} required")),
    }
}
