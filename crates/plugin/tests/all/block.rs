//! An agent's pipeline for configuration blocks, as far as it can be seen from outside: checked by the plugin's schema, every
//! field present, absent ones nil, keys sorted, MessagePack.

use plugin::contracts::hashicorp::nomad::plugins::shared::hclspec::{Spec, spec};
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
        spec::Block::Literal(literal) => {
            let text = format!("value = {}\n", literal.value);
            let mut body: Map<String, Value> =
                hcl::eval::from_str(&text, &hcl::eval::Context::new()).map_err(|cause| format!("{text}: {cause}"))?;
            body.remove("value").ok_or_else(|| format!("{name}: no literal"))
        }
        spec::Block::BlockValue(block) => match written {
            None if block.required => Err(format!("{name}: a block is required")),
            None => Ok(Value::Null),
            Some(value) => shape(name, block.nested.as_ref().ok_or("no nested")?, Some(value)),
        },
        spec::Block::BlockAttrs(block) => match written {
            None if block.required => Err(format!("{name}: a block is required")),
            None => Ok(Value::Null),
            Some(value) => {
                let fields = value.as_object().ok_or_else(|| format!("{name}: {value} is no block"))?;
                let fields = fields.iter().map(|(key, value)| Ok((key.clone(), attribute(key, &block.r#type, value)?)));
                Ok(Value::Object(fields.collect::<Result<_, String>>()?))
            }
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
    let wrong = || format!("{name}: Inappropriate value for attribute: {kind} required");
    let inner = |of: &str| kind.strip_prefix(of)?.strip_suffix(')').map(str::to_owned);
    // Jobs hand maps over as lists of maps.
    if let Some(of) = inner("list(map(").and_then(|of| of.strip_suffix(')').map(str::to_owned)) {
        let map = value.as_object().ok_or_else(wrong)?.iter();
        let map = map.map(|(key, value)| Ok((key.clone(), attribute(name, &of, value)?)));
        return Ok(json!([map.collect::<Result<Map<_, _>, String>>()?]));
    }
    if let Some(of) = inner("list(") {
        let list = value.as_array().ok_or_else(wrong)?.iter();
        return list.map(|value| attribute(name, &of, value)).collect::<Result<Vec<_>, _>>().map(Value::Array);
    }
    match (kind, value) {
        ("string", Value::String(_)) | ("bool", Value::Bool(_)) | ("number", Value::Number(_)) => Ok(value.clone()),
        // What a variable of the task's environment says is a text, and is made a number of.
        ("number", Value::String(text)) => {
            serde_json::from_str::<serde_json::Number>(text).map(Value::from).map_err(|_| wrong())
        }
        _ => Err(wrong()),
    }
}
