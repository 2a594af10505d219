//! Values of `wasmcloud:postgres` from what the server sends: each type under the one name the contract has for it.

use tokio_postgres::types::{Kind, Type};

use super::bindings::wasmcloud::postgres::types::{
    Date, HashableF64, MacAddressEui48, MacAddressEui64, Offset, PgValue, Point, Time, Timestamp, TimestampTz,
};
use crate::sql::postgres::text::{self, array, civil, civil_of, moment, plain};

type Read<T> = Result<T, String>;

/// The value, or why the contract has none.
pub(super) fn value(ty: &Type, raw: &[u8]) -> Read<PgValue> {
    use PgValue as V;
    match ty.kind() {
        Kind::Domain(inner) => return value(inner, raw),
        Kind::Enum(_) => return plain(raw).map(V::Text),
        _ => {}
    }
    Ok(match *ty {
        Type::BOOL => V::Bool(boolean(raw)?),
        Type::INT2 => V::Int2(int2(raw)?),
        Type::INT4 => V::Int4(int4(raw)?),
        Type::INT8 => V::Int8(int8(raw)?),
        Type::FLOAT4 => V::Float4(float4(raw)?),
        Type::FLOAT8 => V::Float8(float8(raw)?),
        Type::BYTEA => V::Bytea(raw.to_vec()),
        Type::CHAR | Type::BPCHAR => V::Char(characters(raw)?),
        Type::VARCHAR => V::Varchar((None, raw.to_vec())),
        Type::TEXT | Type::UNKNOWN => V::Text(plain(raw)?),
        Type::NAME => V::Name(plain(raw)?),
        Type::XML => V::Xml(plain(raw)?),
        Type::JSON => V::Json(plain(raw)?),
        Type::JSONB => V::Jsonb(text::of(ty, raw)?),
        Type::NUMERIC => V::Numeric(text::numeric(raw)?),
        Type::UUID => V::Uuid(text::of(ty, raw)?),
        Type::BIT => V::Bit(bits(raw)?),
        Type::VARBIT => {
            let (count, bytes) = bits(raw)?;
            V::BitVarying((Some(count), bytes))
        }
        Type::DATE => V::Date(date(raw)?),
        Type::TIME => V::Time(time(int8(raw)?)),
        Type::TIMESTAMP => V::Timestamp(timestamp(raw)?),
        Type::TIMESTAMPTZ => V::TimestampTz(timestamp_tz(raw)?),
        Type::CIDR => V::Cidr(network(raw, true)?),
        Type::INET => V::Inet(network(raw, false)?),
        Type::MACADDR => V::Macaddr(mac48(raw)?),
        Type::MACADDR8 => V::Macaddr8(mac64(raw)?),
        Type::POINT => V::Point(point(raw)?),
        Type::BOX => V::Box(two_points(raw)?),
        Type::LSEG => V::Lseg(two_points(raw)?),
        Type::CIRCLE => {
            let (centre, radius) = raw.split_at_checked(16).ok_or_else(short)?;
            V::Circle((point(centre)?, float8(radius)?))
        }
        Type::PATH => V::Path(points(raw.get(1..).ok_or_else(short)?)?),
        Type::POLYGON => V::Polygon(points(raw)?),
        Type::PG_LSN => V::PgLsn(u64::from_be_bytes(array(raw)?)),
        Type::VOID => V::Null,
        _ => return listed(ty, raw),
    })
}

fn listed(ty: &Type, raw: &[u8]) -> Read<PgValue> {
    use PgValue as V;
    Ok(match *ty {
        Type::BOOL_ARRAY => V::BoolArray(list(raw, boolean)?),
        Type::INT2_ARRAY => V::Int2Array(list(raw, int2)?),
        Type::INT2_VECTOR => V::Int2Vector(list(raw, int2)?),
        Type::INT4_ARRAY => V::Int4Array(list(raw, int4)?),
        Type::INT8_ARRAY => V::Int8Array(list(raw, int8)?),
        Type::FLOAT4_ARRAY => V::Float4Array(list(raw, float4)?),
        Type::FLOAT8_ARRAY => V::Float8Array(list(raw, float8)?),
        Type::BYTEA_ARRAY => V::ByteaArray(list(raw, |raw| Ok(raw.to_vec()))?),
        Type::CHAR_ARRAY | Type::BPCHAR_ARRAY => V::CharArray(list(raw, characters)?),
        Type::VARCHAR_ARRAY => V::VarcharArray(list(raw, |raw| Ok((None, raw.to_vec())))?),
        Type::TEXT_ARRAY => V::TextArray(list(raw, plain)?),
        Type::NAME_ARRAY => V::NameArray(list(raw, plain)?),
        Type::XML_ARRAY => V::XmlArray(list(raw, plain)?),
        Type::JSON_ARRAY => V::JsonArray(list(raw, plain)?),
        Type::JSONB_ARRAY => V::JsonbArray(list(raw, |raw| text::of(&Type::JSONB, raw))?),
        Type::NUMERIC_ARRAY => V::NumericArray(list(raw, text::numeric)?),
        Type::UUID_ARRAY => V::UuidArray(list(raw, |raw| text::of(&Type::UUID, raw))?),
        Type::BIT_ARRAY => V::BitArray(list(raw, bits)?),
        Type::VARBIT_ARRAY => V::VarbitArray(list(raw, |raw| bits(raw).map(|(count, bytes)| (Some(count), bytes)))?),
        Type::DATE_ARRAY => V::DateArray(list(raw, date)?),
        Type::TIME_ARRAY => V::TimeArray(list(raw, |raw| int8(raw).map(time))?),
        Type::TIMESTAMP_ARRAY => V::TimestampArray(list(raw, timestamp)?),
        Type::TIMESTAMPTZ_ARRAY => V::TimestampTzArray(list(raw, timestamp_tz)?),
        Type::CIDR_ARRAY => V::CidrArray(list(raw, |raw| network(raw, true))?),
        Type::INET_ARRAY => V::InetArray(list(raw, |raw| network(raw, false))?),
        Type::MACADDR_ARRAY => V::MacaddrArray(list(raw, mac48)?),
        Type::MACADDR8_ARRAY => V::Macaddr8Array(list(raw, mac64)?),
        Type::POINT_ARRAY => V::PointArray(list(raw, point)?),
        Type::PG_LSN_ARRAY => V::PgLsnArray(list(raw, |raw| array(raw).map(u64::from_be_bytes))?),
        _ => return Err(format!("its type is `{}`; write `CAST(… AS TEXT)` in the statement", ty.name())),
    })
}

fn short() -> String {
    "it is shorter than its type".to_owned()
}

fn boolean(raw: &[u8]) -> Read<bool> {
    Ok(array::<1>(raw)? != [0])
}

fn int2(raw: &[u8]) -> Read<i16> {
    array(raw).map(i16::from_be_bytes)
}

fn int4(raw: &[u8]) -> Read<i32> {
    array(raw).map(i32::from_be_bytes)
}

fn int8(raw: &[u8]) -> Read<i64> {
    array(raw).map(i64::from_be_bytes)
}

/// Mantissa, exponent and sign of a number of 32 bits.
fn float4(raw: &[u8]) -> Read<HashableF64> {
    let bits = u32::from_be_bytes(array(raw)?);
    let (exponent, fraction) = ((bits >> 23 & 0xFF) as i16, u64::from(bits & 0x7F_FFFF));
    let mantissa = if exponent == 0 { fraction << 1 } else { fraction | 0x80_0000 };
    Ok((mantissa, exponent - (127 + 23), if bits >> 31 == 0 { 1 } else { -1 }))
}

/// The same of 64 bits.
fn float8(raw: &[u8]) -> Read<HashableF64> {
    let bits = u64::from_be_bytes(array(raw)?);
    let (exponent, fraction) = ((bits >> 52 & 0x7FF) as i16, bits & 0xF_FFFF_FFFF_FFFF);
    let mantissa = if exponent == 0 { fraction << 1 } else { fraction | 0x10_0000_0000_0000 };
    Ok((mantissa, exponent - (1023 + 52), if bits >> 63 == 0 { 1 } else { -1 }))
}

fn characters(raw: &[u8]) -> Read<(u32, Vec<u8>)> {
    Ok((u32::try_from(raw.len()).map_err(|_| short())?, raw.to_vec()))
}

fn bits(raw: &[u8]) -> Read<(u32, Vec<u8>)> {
    let (count, bytes) = raw.split_at_checked(4).ok_or_else(short)?;
    Ok((u32::from_be_bytes(array(count)?), bytes.to_vec()))
}

fn day((year, month, day): (i64, u32, u32)) -> Read<Date> {
    let year = i32::try_from(year).map_err(|_| "its year is too far away".to_owned())?;
    Ok(Date::Ymd((year, month, day)))
}

fn date(raw: &[u8]) -> Read<Date> {
    match int4(raw)? {
        i32::MAX => Ok(Date::PositiveInfinity),
        i32::MIN => Ok(Date::NegativeInfinity),
        days => day(civil_of(days)),
    }
}

fn time(us: i64) -> Time {
    let part = |length: i64, most: i64| (us / length % most).unsigned_abs() as u32;
    Time {
        hour: part(3_600_000_000, 25),
        min: part(60_000_000, 60),
        sec: part(1_000_000, 60),
        micro: part(1, 1_000_000),
    }
}

fn timestamp(raw: &[u8]) -> Read<Timestamp> {
    let at = |date, us| Timestamp { date, time: time(us) };
    match int8(raw)? {
        i64::MAX => Ok(at(Date::PositiveInfinity, 0)),
        i64::MIN => Ok(at(Date::NegativeInfinity, 0)),
        us => {
            let (days, us) = moment(us);
            Ok(at(day(civil(days))?, us))
        }
    }
}

/// In UTC.
fn timestamp_tz(raw: &[u8]) -> Read<TimestampTz> {
    Ok(TimestampTz { timestamp: timestamp(raw)?, offset: Offset::WesternHemisphereSecs(0) })
}

/// A family, the bits of the network, whether it is one, how many bytes, and the address.
fn network(raw: &[u8], always: bool) -> Read<String> {
    let [_, prefix, _, length, address @ ..] = raw else { return Err(short()) };
    let (address, whole) = match length {
        4 => (std::net::IpAddr::from(array::<4>(address)?), 32),
        16 => (std::net::IpAddr::from(array::<16>(address)?), 128),
        _ => return Err("it is no address as Postgres sends them".to_owned()),
    };
    Ok(if always || *prefix != whole { format!("{address}/{prefix}") } else { address.to_string() })
}

fn mac48(raw: &[u8]) -> Read<MacAddressEui48> {
    let [a, b, c, d, e, f] = array(raw)?;
    Ok(MacAddressEui48 { bytes: (a, b, c, d, e, f) })
}

fn mac64(raw: &[u8]) -> Read<MacAddressEui64> {
    let [a, b, c, d, e, f, g, h] = array(raw)?;
    Ok(MacAddressEui64 { bytes: (a, b, c, d, e, f, g, h) })
}

fn point(raw: &[u8]) -> Read<Point> {
    let (x, y) = raw.split_at_checked(8).ok_or_else(short)?;
    Ok((float8(x)?, float8(y)?))
}

fn two_points(raw: &[u8]) -> Read<(Point, Point)> {
    let (one, other) = raw.split_at_checked(16).ok_or_else(short)?;
    Ok((point(one)?, point(other)?))
}

fn points(raw: &[u8]) -> Read<Vec<Point>> {
    raw.get(4..).ok_or_else(short)?.chunks(16).map(point).collect()
}

/// The elements of an array: how many dimensions, flags, the type, the size and start of the dimension, and each element
/// behind its length.
fn list<T>(raw: &[u8], one: impl Fn(&[u8]) -> Read<T>) -> Read<Vec<T>> {
    let mut rest = raw;
    let mut next = |count: usize| -> Read<&[u8]> {
        let (taken, left) = rest.split_at_checked(count).ok_or_else(short)?;
        rest = left;
        Ok(taken)
    };
    let dimensions = int4(next(4)?)?;
    next(8)?;
    if dimensions == 0 {
        return Ok(Vec::new());
    }
    if dimensions != 1 {
        return Err(format!("it is an array of {dimensions} dimensions, which the contract does not have"));
    }
    let count = int4(next(4)?)?;
    next(4)?;
    let mut all = Vec::new();
    for _ in 0..count {
        let length = int4(next(4)?)?;
        let length =
            usize::try_from(length).map_err(|_| "it is an array with NULL in it, which the contract does not have")?;
        all.push(one(next(length)?)?);
    }
    Ok(all)
}
