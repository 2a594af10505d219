//! The first pass: every table against its field table. Unknown keys, missing keys and wrong types are found here, for
//! the whole file, before any value is read.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::Findings;
use super::fields::{HANDED, SETTING, Settings, Table, Text, Ty};
use crate::app::ProviderKind;
use crate::rules::links::LISTS;
use crate::rules::{Code, Violation, external, list, nearest, shown};

/// Checks a table. `path` is its place in words (`components.counter`), `span` where it is written.
pub(super) fn table(doc: &DeTable<'_>, shape: &Table, path: &str, span: &Range<usize>, out: &mut Findings<'_>) {
    let fields = (shape.fields)();
    for (key, value) in doc {
        let here = join(path, key.get_ref());
        match fields.iter().find(|f| f.name == key.get_ref()) {
            Some(field) => check(value.get_ref(), field.ty, &here, &value.span(), out),
            None if shape.settings == Settings::OfProvider && key.get_ref() == external::CONFIG && is_external(doc) => {
                check(value.get_ref(), HANDED, &here, &value.span(), out);
            }
            None if shape.settings == Settings::OfProvider => {
                check(value.get_ref(), SETTING, &here, &value.span(), out);
            }
            None if shape.settings == Settings::OfLink && LISTS.contains(&key.get_ref().as_ref()) => {
                check(value.get_ref(), super::fields::TEXTS, &here, &value.span(), out);
            }
            None if shape.settings == Settings::OfLink => {
                check(value.get_ref(), Ty::Text(Text::Setting), &here, &value.span(), out);
            }
            None => {
                let names: Vec<&str> = fields.iter().map(|f| f.name).collect();
                out.add(key.span(), unknown(key.get_ref(), &names, shape.what, path));
            }
        }
    }
    for field in fields.iter().filter(|f| f.required && !doc.contains_key(f.name)) {
        let place = if path.is_empty() { String::new() } else { format!(" (`{path}`)") };
        let message = format!("{}{place} has no `{}`", shape.what, field.name);
        let help = format!("add `{}`", field.example);
        out.add(span.clone(), Violation::new(Code::MissingField, message).help(help));
    }
}

/// Whether a provider's table is one of an external provider: only that has a table of settings.
pub(super) fn is_external(doc: &DeTable<'_>) -> bool {
    doc.get("type").and_then(|kind| kind.get_ref().as_str()) == Some(ProviderKind::External.as_str())
}

/// Checks a value.
pub(super) fn check(value: &DeValue<'_>, ty: Ty, path: &str, span: &Range<usize>, out: &mut Findings<'_>) {
    match (value, ty) {
        (DeValue::String(_), Ty::Text(_)) => {}
        (DeValue::Integer(n), Ty::Integer(min, max)) => {
            let number = i64::from_str_radix(n.as_str(), n.radix()).ok();
            if !number.is_some_and(|n| (min..=max).contains(&n)) {
                let message = format!("`{path}` is {n}, outside what it takes");
                out.add(span.clone(), Violation::new(Code::BadValue, message).help(format!("write {}", ty.expected())));
            }
        }
        (DeValue::Table(inner), Ty::Table(shape)) => table(inner, shape, path, span, out),
        (DeValue::Table(inner), Ty::Map(_, ty)) => {
            for (key, value) in inner {
                // A table that is there only for the tables in it has no place of its own.
                let place = if value.span().is_empty() { key.span() } else { value.span() };
                check(value.get_ref(), *ty, &join(path, key.get_ref()), &place, out);
            }
        }
        (DeValue::Array(items), Ty::List(ty)) => {
            for (index, item) in items.iter().enumerate() {
                check(item.get_ref(), *ty, &format!("{path}[{index}]"), &item.span(), out);
            }
        }
        (value, Ty::OneOf(types)) if types.iter().any(|ty| same_kind(value, *ty)) => {
            for ty in types.iter().filter(|ty| same_kind(value, **ty)).take(1) {
                check(value, *ty, path, span, out);
            }
        }
        (value, ty) => {
            let message = format!("`{path}` is {}", described(value));
            out.add(span.clone(), Violation::new(Code::WrongType, message).help(format!("write {}", ty.expected())));
        }
    }
}

fn same_kind(value: &DeValue<'_>, ty: Ty) -> bool {
    matches!(
        (value, ty),
        (DeValue::String(_), Ty::Text(_))
            | (DeValue::Integer(_), Ty::Integer(..))
            | (DeValue::Table(_), Ty::Table(_) | Ty::Map(..))
            | (DeValue::Array(_), Ty::List(_))
    )
}

fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(_) => "a text".to_owned(),
        DeValue::Integer(n) => format!("the number {n}"),
        DeValue::Float(n) => format!("the number {n}"),
        DeValue::Boolean(b) => format!("`{b}`"),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn unknown(key: &str, names: &[&str], what: &str, path: &str) -> Violation {
    let place = if path.is_empty() { String::new() } else { format!(" (`{path}`)") };
    let message = format!("`{}` is not a key of {what}{place}", shown(key));
    let help = match nearest(key, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("it has {}", list(names)),
    };
    Violation::new(Code::UnknownField, message).help(help)
}

/// A key appended to a path, in quotes where TOML needs them.
pub(super) fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let key = if bare { key.to_owned() } else { format!("\"{}\"", shown(key)) };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
