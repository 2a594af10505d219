//! Values of `wasmcloud:postgres` as parameters. Each goes as the text that its type in Postgres reads, so what a component
//! names `int4` may fill a column of any number.

use super::bindings::wasmcloud::postgres::types::{
    Date, HashableF64, Lexeme, LexemeWeight, MacAddressEui48, MacAddressEui64, Offset, PgValue, Point, Time, Timestamp,
    TimestampTz,
};
use crate::sql::postgres::{Param, float};

type Text = Result<String, String>;

/// The parameter, or why there is none.
pub(super) fn of(value: &PgValue) -> Result<Param, String> {
    use PgValue as V;
    let text = match value {
        V::Null => return Ok(Param::Null),
        V::Bytea(bytes) => return Ok(Param::Bytes(bytes.clone())),
        V::BigInt(n) | V::Int8(n) | V::BigSerial(n) | V::Serial8(n) | V::TxidSnapshot(n) => n.to_string(),
        V::Integer(n) | V::Int(n) | V::Int4(n) => n.to_string(),
        V::Serial(n) | V::Serial4(n) => n.to_string(),
        V::SmallInt(n) | V::Int2(n) | V::SmallSerial(n) | V::Serial2(n) => n.to_string(),
        V::Bool(value) | V::Boolean(value) => value.to_string(),
        V::Double(n) | V::Float8(n) => float(number(n)),
        V::Real(n) | V::Float4(n) => small(n),
        V::Numeric(text) | V::Decimal(text) | V::Money(text) => text.clone(),
        V::Cidr(text) | V::Inet(text) | V::Json(text) | V::Jsonb(text) | V::Name(text) | V::Text(text) => text.clone(),
        V::Xml(text) | V::TsQuery(text) | V::Uuid(text) => text.clone(),
        V::Int8Array(all) => list(all, |n| Ok(n.to_string()))?,
        V::Int4Array(all) => list(all, |n| Ok(n.to_string()))?,
        V::Int2Array(all) => list(all, |n| Ok(n.to_string()))?,
        V::Int2Vector(all) => spaced(all),
        V::Int2VectorArray(all) => list(all, |one| Ok(spaced(one)))?,
        V::BoolArray(all) => list(all, |value| Ok(value.to_string()))?,
        V::Float8Array(all) => list(all, |n| Ok(float(number(n))))?,
        V::Float4Array(all) => list(all, |n| Ok(small(n)))?,
        V::NumericArray(all) | V::MoneyArray(all) | V::CidrArray(all) | V::InetArray(all) => texts(all)?,
        V::JsonArray(all) | V::JsonbArray(all) | V::NameArray(all) | V::TextArray(all) => texts(all)?,
        V::XmlArray(all) | V::UuidArray(all) => texts(all)?,
        V::Bit((count, bytes)) => bits(*count, bytes)?,
        V::BitArray(all) => list(all, |(count, bytes)| bits(*count, bytes))?,
        V::BitVarying((count, bytes)) | V::Varbit((count, bytes)) => varbits(*count, bytes)?,
        V::VarbitArray(all) => list(all, |(count, bytes)| varbits(*count, bytes))?,
        V::ByteaArray(all) => list(all, |bytes| Ok(format!("\\x{}", data_encoding::HEXLOWER.encode(bytes))))?,
        V::Char((_, bytes)) | V::Varchar((_, bytes)) => characters(bytes)?,
        V::CharArray(all) => list(all, |(_, bytes)| characters(bytes))?,
        V::VarcharArray(all) => list(all, |(_, bytes)| characters(bytes))?,
        V::Macaddr(address) => mac48(address),
        V::MacaddrArray(all) => list(all, |address| Ok(mac48(address)))?,
        V::Macaddr8(address) => mac64(address),
        V::Macaddr8Array(all) => list(all, |address| Ok(mac64(address)))?,
        V::Point(place) => point(place),
        V::PointArray(all) => list(all, |place| Ok(point(place)))?,
        V::Box((one, other)) => format!("{},{}", point(one), point(other)),
        // The only type whose arrays have another mark between their elements.
        V::BoxArray(all) => {
            let all: Vec<String> = all.iter().map(|(one, other)| format!("{},{}", point(one), point(other))).collect();
            format!("{{{}}}", all.join(";"))
        }
        V::Circle((centre, radius)) => format!("<{},{}>", point(centre), float(number(radius))),
        V::CircleArray(all) => {
            list(all, |(centre, radius)| Ok(format!("<{},{}>", point(centre), float(number(radius)))))?
        }
        V::Line((one, other)) | V::Lseg((one, other)) => format!("[{},{}]", point(one), point(other)),
        V::LineArray(all) | V::LsegArray(all) => {
            list(all, |(one, other)| Ok(format!("[{},{}]", point(one), point(other))))?
        }
        V::Path(all) => format!("[{}]", points(all)),
        V::PathArray(all) => list(all, |one| Ok(format!("[{}]", points(one))))?,
        V::Polygon(all) => format!("({})", points(all)),
        V::PolygonArray(all) => list(all, |one| Ok(format!("({})", points(one))))?,
        V::Date(day) => date(day),
        V::DateArray(all) => list(all, |day| Ok(date(day)))?,
        V::Time(at) => time(at),
        V::TimeArray(all) => list(all, |at| Ok(time(at)))?,
        V::TimeTz(at) => time(&at.time) + &at.timesonze,
        V::TimeTzArray(all) => list(all, |at| Ok(time(&at.time) + &at.timesonze))?,
        V::Timestamp(at) => timestamp(at),
        V::TimestampArray(all) => list(all, |at| Ok(timestamp(at)))?,
        V::TimestampTz(at) => timestamp_tz(at),
        V::TimestampTzArray(all) => list(all, |at| Ok(timestamp_tz(at)))?,
        V::Interval(_) | V::IntervalArray(_) => {
            return Err("is an `interval` of this contract, which is none of Postgres; give it as `text`".to_owned());
        }
        V::PgLsn(lsn) => location(*lsn),
        V::PgLsnArray(all) => list(all, |lsn| Ok(location(*lsn)))?,
        V::PgSnapshot((least, most, all)) => {
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            format!("{least}:{most}:{}", all.join(","))
        }
        V::TsVector(all) => all.iter().map(lexeme).collect::<Vec<_>>().join(" "),
        V::Hstore(all) => all
            .iter()
            .map(|(key, value)| {
                let value = value.as_deref().map_or_else(|| "NULL".to_owned(), quoted);
                format!("{}=>{value}", quoted(key))
            })
            .collect::<Vec<_>>()
            .join(","),
    };
    Ok(Param::Text(text))
}

/// A number from its mantissa, exponent and sign. In two steps, so that the smallest ones do not vanish on the way.
pub(super) fn number((mantissa, exponent, sign): &HashableF64) -> f64 {
    let half = exponent / 2;
    let power = |exponent: i16| 2_f64.powf(exponent.into());
    f64::from(*sign) * (*mantissa as f64 * power(half) * power(exponent - half))
}

fn small(parts: &HashableF64) -> String {
    float(f64::from(number(parts) as f32))
}

fn list<T>(all: &[T], one: impl Fn(&T) -> Text) -> Text {
    let all = all.iter().map(|item| one(item).map(|text| quoted(&text))).collect::<Result<Vec<_>, _>>()?;
    Ok(format!("{{{}}}", all.join(",")))
}

fn texts(all: &[String]) -> Text {
    list(all, |text| Ok(text.clone()))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn spaced(all: &[i16]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn characters(bytes: &[u8]) -> Text {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "is text that is not UTF-8".to_owned())
}

fn bits(count: u32, bytes: &[u8]) -> Text {
    let count = count as usize;
    let all = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| if byte >> at & 1 == 1 { '1' } else { '0' }));
    match count <= bytes.len().saturating_mul(8) {
        true => Ok(all.take(count).collect()),
        false => Err(format!("has {} bytes, which are not {count} bits", bytes.len())),
    }
}

fn varbits(count: Option<u32>, bytes: &[u8]) -> Text {
    bits(count.unwrap_or(u32::try_from(bytes.len().saturating_mul(8)).unwrap_or(u32::MAX)), bytes)
}

fn mac48(MacAddressEui48 { bytes: b }: &MacAddressEui48) -> String {
    format!("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b.0, b.1, b.2, b.3, b.4, b.5)
}

fn mac64(MacAddressEui64 { bytes: b }: &MacAddressEui64) -> String {
    format!("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b.0, b.1, b.2, b.3, b.4, b.5, b.6, b.7)
}

fn point((x, y): &Point) -> String {
    format!("({},{})", float(number(x)), float(number(y)))
}

fn points(all: &[Point]) -> String {
    all.iter().map(point).collect::<Vec<_>>().join(",")
}

/// The day, and the era that stands behind everything.
fn day(day: &Date) -> (String, &'static str) {
    match day {
        Date::PositiveInfinity => ("infinity".to_owned(), ""),
        Date::NegativeInfinity => ("-infinity".to_owned(), ""),
        Date::Ymd((year, month, day)) if *year > 0 => (format!("{year:04}-{month:02}-{day:02}"), ""),
        Date::Ymd((year, month, day)) => (format!("{:04}-{month:02}-{day:02}", 1 - i64::from(*year)), " BC"),
    }
}

fn date(given: &Date) -> String {
    let (text, era) = day(given);
    text + era
}

fn time(Time { hour, min, sec, micro }: &Time) -> String {
    format!("{hour:02}:{min:02}:{sec:02}.{micro:06}")
}

fn zoned(at: &Timestamp, zone: &str) -> String {
    match (&at.date, day(&at.date)) {
        (Date::Ymd(_), (text, era)) => format!("{text} {}{zone}{era}", time(&at.time)),
        (_, (text, _)) => text,
    }
}

fn timestamp(at: &Timestamp) -> String {
    zoned(at, "")
}

fn timestamp_tz(TimestampTz { timestamp, offset }: &TimestampTz) -> String {
    let (sign, seconds) = match offset {
        Offset::EasternHemisphereSecs(seconds) => (if *seconds < 0 { '-' } else { '+' }, seconds.unsigned_abs()),
        Offset::WesternHemisphereSecs(seconds) => (if *seconds > 0 { '-' } else { '+' }, seconds.unsigned_abs()),
    };
    let zone = format!("{sign}{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    zoned(timestamp, &zone)
}

fn location(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF)
}

fn lexeme(Lexeme { position, weight, data }: &Lexeme) -> String {
    let word = format!("'{}'", data.replace('\\', "\\\\").replace('\'', "''"));
    let weight = weight.map_or("", |weight| match weight {
        LexemeWeight::A => "A",
        LexemeWeight::B => "B",
        LexemeWeight::C => "C",
        LexemeWeight::D => "D",
    });
    position.map_or(word.clone(), |position| format!("{word}:{position}{weight}"))
}
