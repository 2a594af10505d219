//! What `-o json` prints, held against the schema that programs are told to read it by (`schemas/envelope.schema.json`). Only the
//! words that schema uses are known here: it cannot say what nobody looks at.

use std::sync::LazyLock;

use serde_json::Value;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../schemas/envelope.schema.json")).expect("the schema is JSON")
});

/// The envelopes that a command printed, one a line.
///
/// # Panics
/// When a line is none.
pub fn all(stdout: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(stdout).expect("envelopes are text");
    let read = |line: &str| {
        let envelope = serde_json::from_str(line).unwrap_or_else(|cause| panic!("no envelope: {cause}: {line}"));
        assert_eq!(fault(&envelope), None, "{line}");
        envelope
    };
    text.lines().map(read).collect()
}

/// The only envelope that a command printed.
///
/// # Panics
/// When it printed something else, or several.
pub fn one(stdout: &[u8]) -> Value {
    let mut all = all(stdout);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

/// Why this is no envelope as the schema describes it, if so.
pub fn fault(envelope: &Value) -> Option<String> {
    broken(&SCHEMA, envelope)
}

fn broken(schema: &Value, value: &Value) -> Option<String> {
    let known = schema.get("properties").and_then(Value::as_object);
    let property = |name: &str| known.and_then(|known| known.get(name));
    let parts = || value.as_object().into_iter().flatten();
    schema.as_object().expect("a schema is an object").iter().find_map(|(word, rule)| match word.as_str() {
        "$schema" | "$id" | "title" | "description" => None,
        "type" => (!is(rule, value)).then(|| format!("{value} is not of type {rule}")),
        "const" => (value != rule).then(|| format!("{value} is not {rule}")),
        "properties" => parts().find_map(|(name, part)| broken(property(name)?, part)),
        "items" => value.as_array().into_iter().flatten().find_map(|item| broken(rule, item)),
        "required" => {
            let mut names = rule.as_array().expect("`required` is a list").iter().filter_map(Value::as_str);
            names.find(|name| value.get(*name).is_none()).map(|name| format!("{value} has no `{name}`"))
        }
        "additionalProperties" => {
            assert_eq!(rule, &Value::Bool(false), "only that there are none is known here");
            let other = parts().find(|(name, _)| property(name).is_none());
            other.map(|(name, _)| format!("{value} has `{name}`, of which the schema says nothing"))
        }
        "oneOf" => {
            let rules = rule.as_array().expect("`oneOf` is a list");
            let held = rules.iter().filter(|rule| broken(rule, value).is_none()).count();
            (held != 1).then(|| format!("{value} holds to {held} of {rule}, not to one"))
        }
        other => panic!("the schema says `{other}`, which is not known here"),
    })
}

fn is(kind: &Value, value: &Value) -> bool {
    match kind.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        _ => panic!("the schema says the type {kind}, which is not known here"),
    }
}
