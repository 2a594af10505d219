//! `wasmcloud:postgres` as a component built for wasmCloud uses it: `/query`, `/batch`, `/prepare`, `/exec`, the statement
//! in `sql` (for `exec` the token), the parameters in `p`, with `|` between: `i:1`, `t:text`, `x:00ff`, `n:`, `d:2026-02-28`,
//! `f:` three numbers, `l:1,2` a list of numbers. `/all` sends one value of many kinds to the server and shows what comes back.
//! Status: 200, 502 an error, 400 not a command.
use guests::wasmcloud::postgres::types::{Date, Offset, PgValue, ResultRowEntry, Time, Timestamp, TimestampTz};
use guests::wasmcloud::postgres::{prepared, query};
use guests::{Guest, IncomingRequest, ResponseOutparam};

struct Probe;

impl Guest for Probe {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (path, parts) = guests::target(&request);
        let sql = guests::param(&parts, "sql").unwrap_or_default();
        let given = guests::param(&parts, "p").unwrap_or_default();
        let given: Option<Vec<PgValue>> = given.split('|').filter(|part| !part.is_empty()).map(value).collect();
        let answer = match (path.as_str(), given) {
            ("/query", Some(given)) => query::query(&sql, &given).map(shown).map_err(|error| format!("{error:?}")),
            ("/batch", _) => query::query_batch(&sql).map(|()| "ok".to_owned()).map_err(|error| format!("{error:?}")),
            ("/prepare", _) => prepared::prepare(&sql).map_err(|error| format!("{error:?}")),
            ("/exec", Some(given)) => {
                prepared::exec(&sql, &given).map(|count| count.to_string()).map_err(|error| format!("{error:?}"))
            }
            ("/all", _) => all(),
            _ => return guests::reply(out, 400, "no such command"),
        };
        match answer {
            Ok(text) => guests::reply(out, 200, &text),
            Err(text) => guests::reply(out, 502, &text),
        }
    }
}

fn shown(rows: Vec<Vec<ResultRowEntry>>) -> String {
    let entry = |entry: &ResultRowEntry| format!("{}={:?}", entry.column_name, entry.value);
    rows.iter().map(|row| row.iter().map(entry).collect::<Vec<_>>().join("\t")).collect::<Vec<_>>().join("\n")
}

fn value(text: &str) -> Option<PgValue> {
    let (kind, rest) = text.split_once(':')?;
    Some(match kind {
        "n" => PgValue::Null,
        "i" => PgValue::Int8(rest.parse().ok()?),
        "t" => PgValue::Text(rest.to_owned()),
        "x" => PgValue::Bytea(
            (0..rest.len() / 2)
                .map(|at| u8::from_str_radix(rest.get(at * 2..at * 2 + 2)?, 16).ok())
                .collect::<Option<_>>()?,
        ),
        "l" => PgValue::Int4Array(rest.split(',').map(|one| one.parse().ok()).collect::<Option<_>>()?),
        "f" => {
            let mut parts = rest.split(',');
            PgValue::Float8((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
        }
        "d" => {
            let mut parts = rest.splitn(3, '-');
            PgValue::Date(Date::Ymd((
                parts.next()?.parse().ok()?,
                parts.next()?.parse().ok()?,
                parts.next()?.parse().ok()?,
            )))
        }
        _ => return None,
    })
}

/// Each value, and the type it is sent as: what comes back must be the same.
fn all() -> Result<String, String> {
    let one = (1 << 52, -52, 1);
    let two = (1 << 52, -51, -1);
    let texts = || vec!["a".to_owned(), "b \"quoted\" \\ , {}".to_owned(), "NULL".to_owned(), String::new()];
    let at = Time { hour: 12, min: 34, sec: 56, micro: 789_000 };
    let day = Date::Ymd((2026, 2, 28));
    let moment = Timestamp { date: day, time: at };
    let zoned = TimestampTz { timestamp: moment, offset: Offset::WesternHemisphereSecs(0) };
    let values = [
        ("int8", PgValue::Int8(i64::MIN)),
        ("int4", PgValue::Int4(-7)),
        ("int2", PgValue::Int2(7)),
        ("bool", PgValue::Bool(true)),
        ("float8", PgValue::Float8(one)),
        ("float4", PgValue::Float4((1 << 23, -22, -1))),
        ("numeric", PgValue::Numeric("123456789.000000000001".to_owned())),
        ("text", PgValue::Text("naïve ☃".to_owned())),
        ("varchar", PgValue::Varchar((None, b"v".to_vec()))),
        ("bytea", PgValue::Bytea((0..=255).collect())),
        ("json", PgValue::Json("{\"a\": [1]}".to_owned())),
        ("jsonb", PgValue::Jsonb("{\"a\": [1]}".to_owned())),
        ("uuid", PgValue::Uuid("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11".to_owned())),
        ("date", PgValue::Date(day)),
        ("date", PgValue::Date(Date::PositiveInfinity)),
        ("time", PgValue::Time(at)),
        ("timestamp", PgValue::Timestamp(moment)),
        ("timestamptz", PgValue::TimestampTz(zoned)),
        ("inet", PgValue::Inet("192.168.0.1".to_owned())),
        ("cidr", PgValue::Cidr("2001:db8::/32".to_owned())),
        ("point", PgValue::Point((one, two))),
        ("lseg", PgValue::Lseg(((one, two), (two, one)))),
        ("polygon", PgValue::Polygon(vec![(one, two), (two, two), (two, one)])),
        ("circle", PgValue::Circle(((one, two), one))),
        ("varbit", PgValue::BitVarying((Some(11), vec![0b1010_1010, 0b1110_0000]))),
        ("pg_lsn", PgValue::PgLsn(0x1_0000_002A)),
        ("int8[]", PgValue::Int8Array(vec![1, -2])),
        ("int4[]", PgValue::Int4Array(vec![])),
        ("bool[]", PgValue::BoolArray(vec![true, false])),
        ("float8[]", PgValue::Float8Array(vec![one, two])),
        ("text[]", PgValue::TextArray(texts())),
        ("bytea[]", PgValue::ByteaArray(vec![vec![0, 92, 34], vec![]])),
        ("uuid[]", PgValue::UuidArray(vec!["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11".to_owned()])),
        ("timestamptz[]", PgValue::TimestampTzArray(vec![zoned])),
    ];
    let mut wrong = Vec::new();
    for (name, sent) in values {
        let sql = format!("SELECT CAST($1 AS {name}) AS value");
        match query::query(&sql, std::slice::from_ref(&sent)) {
            Ok(rows) => {
                let got = rows.first().and_then(|row| row.first()).map(|entry| format!("{:?}", entry.value));
                if got != Some(format!("{sent:?}")) {
                    wrong.push(format!("{name}: sent {sent:?}, got {got:?}"));
                }
            }
            Err(error) => wrong.push(format!("{name}: {error:?}")),
        }
    }
    if wrong.is_empty() { Ok("same".to_owned()) } else { Err(wrong.join("\n")) }
}

guests::export!(Probe);
