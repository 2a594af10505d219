//! Values as Postgres sends them, in the binary form of their type
//! (<https://www.postgresql.org/docs/current/protocol-overview.html#PROTOCOL-FORMAT-CODES>).

use model::sql::Value;
use tokio_postgres::types::{FromSql, Kind, Type};

use super::text;

/// A value as it came.
pub(super) struct Raw<'a>(pub(super) &'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Turns values into those of a contract.
pub(crate) struct Reader<T> {
    /// A value of a type; the error says why not.
    pub(crate) read: fn(&Type, &[u8]) -> Result<T, String>,
    /// `NULL`.
    pub(crate) null: fn() -> T,
}

/// The contract's value of any type that has a text everybody reads.
pub(super) fn value(ty: &Type, raw: &[u8]) -> Result<Value, String> {
    match ty.kind() {
        Kind::Domain(inner) => return value(inner, raw),
        Kind::Enum(_) => return text::plain(raw).map(Value::Text),
        _ => {}
    }
    Ok(match *ty {
        Type::BOOL => Value::Boolean(text::array::<1>(raw)? != [0]),
        Type::INT2 => Value::Int64(i16::from_be_bytes(text::array(raw)?).into()),
        Type::INT4 => Value::Int64(i32::from_be_bytes(text::array(raw)?).into()),
        Type::INT8 => Value::Int64(i64::from_be_bytes(text::array(raw)?)),
        Type::OID => Value::Int64(u32::from_be_bytes(text::array(raw)?).into()),
        Type::FLOAT4 => Value::Float64(f32::from_be_bytes(text::array(raw)?).into()),
        Type::FLOAT8 => Value::Float64(f64::from_be_bytes(text::array(raw)?)),
        Type::BYTEA => Value::Bytes(raw.to_vec()),
        Type::VOID => Value::Null,
        _ => Value::Text(text::of(ty, raw)?),
    })
}
