//! The texts of Postgres' types that are more than text: decimal numbers, times, UUIDs, JSON.

use tokio_postgres::types::Type;

/// Days from 1970-01-01 to 2000-01-01, from which Postgres counts.
const EPOCH_DAYS: i64 = 10_957;
const DAY_US: i64 = 86_400_000_000;

/// Exactly so many bytes.
pub(crate) fn array<const N: usize>(raw: &[u8]) -> Result<[u8; N], String> {
    raw.try_into().map_err(|_| format!("it has {} bytes, not {N}", raw.len()))
}

/// UTF-8.
pub(crate) fn plain(raw: &[u8]) -> Result<String, String> {
    std::str::from_utf8(raw).map(str::to_owned).map_err(|_| "it is not UTF-8".to_owned())
}

/// The text of a value.
pub(crate) fn of(ty: &Type, raw: &[u8]) -> Result<String, String> {
    match *ty {
        Type::TEXT
        | Type::VARCHAR
        | Type::BPCHAR
        | Type::NAME
        | Type::UNKNOWN
        | Type::JSON
        | Type::XML
        | Type::CHAR => plain(raw),
        Type::JSONB => match raw.split_first() {
            Some((1, json)) => plain(json),
            _ => Err("it is JSON of another version".to_owned()),
        },
        Type::UUID => Ok(uuid(array(raw)?)),
        Type::NUMERIC => numeric(raw),
        Type::DATE => Ok(date(i32::from_be_bytes(array(raw)?))),
        Type::TIME => Ok(time(i64::from_be_bytes(array(raw)?))),
        Type::TIMESTAMP => Ok(timestamp(i64::from_be_bytes(array(raw)?), "")),
        Type::TIMESTAMPTZ => Ok(timestamp(i64::from_be_bytes(array(raw)?), "+00:00")),
        _ if ty.name() == "citext" => plain(raw),
        _ => Err(format!("its type is `{}`; write `CAST(… AS TEXT)` in the statement", ty.name())),
    }
}

pub(crate) fn uuid(bytes: [u8; 16]) -> String {
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

/// Groups of four decimal digits, the weight of the first, a sign, and how many digits stand behind the point.
pub(crate) fn numeric(raw: &[u8]) -> Result<String, String> {
    let bad = || "it is no decimal number as Postgres sends them".to_owned();
    let mut words = raw.chunks_exact(2).map(|pair| array(pair).map(u16::from_be_bytes));
    let mut next = || words.next().ok_or_else(bad)?;
    let (count, weight, sign, scale) = (next()?, next()?.cast_signed(), next()?, next()?);
    let groups = words.take(count.into()).collect::<Result<Vec<u16>, String>>()?;
    match sign {
        0xC000 => return Ok("NaN".to_owned()),
        0xD000 => return Ok("Infinity".to_owned()),
        0xF000 => return Ok("-Infinity".to_owned()),
        0 | 0x4000 if groups.len() == usize::from(count) && groups.iter().all(|group| *group < 10_000) => {}
        _ => return Err(bad()),
    }
    let group = |at: i32| usize::try_from(at).ok().and_then(|at| groups.get(at)).copied().unwrap_or(0);
    let mut text = if sign == 0 { String::new() } else { "-".to_owned() };
    match weight {
        ..0 => text.push('0'),
        _ => {
            text.push_str(&group(0).to_string());
            (1..=i32::from(weight)).for_each(|at| text.push_str(&format!("{:04}", group(at))));
        }
    }
    if scale > 0 {
        let places = usize::from(scale);
        let mut behind = String::with_capacity(places + 4);
        // Groups before the first are zeros behind the point.
        for position in 0.. {
            if behind.len() >= places {
                break;
            }
            behind.push_str(&format!("{:04}", group(i32::from(weight) + 1 + position)));
        }
        behind.truncate(places);
        text.push('.');
        text.push_str(&behind);
    }
    Ok(text)
}

/// Year, month and day of a number of days since 1970-01-01, in the calendar of today at all times.
pub(crate) fn civil(days: i64) -> (i64, u32, u32) {
    // Years begin in March here, so that the day that comes and goes is the last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month as u32, day as u32)
}

/// Year, month and day of a date as Postgres counts.
pub(crate) fn civil_of(days: i32) -> (i64, u32, u32) {
    civil(i64::from(days) + EPOCH_DAYS)
}

fn written(days: i64) -> (String, &'static str) {
    let (year, month, day) = civil(days);
    // There is no year 0: 1 BC is before 1.
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

fn date(days: i32) -> String {
    match days {
        i32::MAX => "infinity".to_owned(),
        i32::MIN => "-infinity".to_owned(),
        days => {
            let (date, era) = written(i64::from(days) + EPOCH_DAYS);
            date + era
        }
    }
}

pub(crate) fn time(us: i64) -> String {
    let (seconds, rest) = (us / 1_000_000, us % 1_000_000);
    let whole = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if rest == 0 { whole } else { format!("{whole}.{rest:06}").trim_end_matches('0').to_owned() }
}

/// Days since 1970-01-01 and microseconds of the day, of a time as Postgres counts.
pub(crate) fn moment(us: i64) -> (i64, i64) {
    (us.div_euclid(DAY_US) + EPOCH_DAYS, us.rem_euclid(DAY_US))
}

fn timestamp(us: i64, zone: &str) -> String {
    match us {
        i64::MAX => "infinity".to_owned(),
        i64::MIN => "-infinity".to_owned(),
        us => {
            let (days, us) = moment(us);
            let (date, era) = written(days);
            format!("{date} {}{zone}{era}", time(us))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times_are_written_as_people_do() {
        assert_eq!(date(0), "2000-01-01");
        assert_eq!(date(-10_957), "1970-01-01");
        assert_eq!(date(59), "2000-02-29");
        assert_eq!(date(-730_119), "0001-01-01");
        assert_eq!(date(-730_120), "0001-12-31 BC");
        assert_eq!(timestamp(0, ""), "2000-01-01 00:00:00");
        assert_eq!(timestamp(-1, "+00:00"), "1999-12-31 23:59:59.999999+00:00");
        assert_eq!(timestamp(1_500_000, ""), "2000-01-01 00:00:01.5");
        assert_eq!(timestamp(i64::MAX, ""), "infinity");
    }

    #[test]
    fn decimal_numbers_keep_every_digit() {
        let raw = |weight: i16, sign: u16, scale: u16, groups: &[u16]| {
            let mut words = vec![groups.len() as u16, weight as u16, sign, scale];
            words.extend(groups);
            words.into_iter().flat_map(u16::to_be_bytes).collect::<Vec<u8>>()
        };
        let is = |raw: Vec<u8>, text: &str| assert_eq!(numeric(&raw).unwrap(), text);
        is(raw(0, 0, 0, &[]), "0");
        is(raw(0, 0, 2, &[]), "0.00");
        is(raw(0, 0x4000, 2, &[1, 1000]), "-1.10");
        is(raw(1, 0, 0, &[12, 3]), "120003");
        is(raw(2, 0, 0, &[1]), "100000000");
        is(raw(-1, 0, 4, &[12]), "0.0012");
        is(raw(-2, 0, 6, &[1200]), "0.000012");
        is(raw(0, 0xC000, 0, &[]), "NaN");
        assert!(numeric(&[0, 1]).is_err());
        assert!(numeric(&raw(0, 0, 0, &[10_000])).is_err());
    }
}
