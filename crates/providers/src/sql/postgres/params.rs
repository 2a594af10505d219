//! Parameters as Postgres takes them. All but bytes go as text: whatever type the server finds for a parameter reads its
//! own text, so a component writes `"2026-01-31"` or `"1.10"` and need not know what the column is.

use bytes::BytesMut;
use model::sql::{SqlError, Value};
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

/// One parameter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Param {
    Null,
    /// As the type that is wanted reads it.
    Text(String),
    /// For `bytea`.
    Bytes(Vec<u8>),
}

impl ToSql for Param {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Null => return Ok(IsNull::Yes),
            Self::Text(text) => out.extend_from_slice(text.as_bytes()),
            Self::Bytes(bytes) if *ty == Type::BYTEA => out.extend_from_slice(bytes),
            Self::Bytes(_) => {
                let why = format!("a parameter is bytes where the statement has a `{}`", ty.name());
                return Err(Box::new(SqlError::Value(why)));
            }
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        match self {
            Self::Text(_) => Format::Text,
            Self::Null | Self::Bytes(_) => Format::Binary,
        }
    }

    to_sql_checked!();
}

/// The contract's values.
pub(super) fn of(values: &[Value]) -> Vec<Param> {
    let one = |value: &Value| match value {
        Value::Null => Param::Null,
        Value::Boolean(value) => Param::Text(value.to_string()),
        Value::Int64(value) => Param::Text(value.to_string()),
        Value::Float64(value) => Param::Text(float(*value)),
        Value::Text(text) => Param::Text(text.clone()),
        Value::Bytes(bytes) => Param::Bytes(bytes.clone()),
    };
    values.iter().map(one).collect()
}

/// A number that comes back as it was; a whole one is read by whole columns, too.
pub(crate) fn float(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    match value.abs() {
        1e-5..1e15 => value.to_string(),
        _ if value == 0.0 => value.to_string(),
        _ => format!("{value:e}"),
    }
}
