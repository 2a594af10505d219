//! What a value that cannot be read was probably meant to be.

use crate::unit::{ByteSize, Millis};

/// The name that `written` would be if it kept to the alphabet.
pub(super) fn suggested_name(written: &str) -> Option<String> {
    let name: String = written
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .take(crate::name::MAX_NAME)
        .collect();
    let name = name.trim_matches('-');
    (name.chars().any(|c| c != '-') && written.is_ascii()).then(|| name.to_owned())
}

/// What to write in place of a size that cannot be read; never more than `ceiling`.
pub(super) fn size_help(written: &str, ceiling: ByteSize) -> String {
    let unit = match unit(written).as_str() {
        "" | "b" => "B",
        "k" | "kb" | "kib" => "KiB",
        "m" | "mb" | "mib" => "MiB",
        "g" | "gb" | "gib" => "GiB",
        _ => return example(ByteSize::mib(64).min(ceiling)),
    };
    let Some(digits) = digits(written) else { return example(ByteSize::mib(64).min(ceiling)) };
    let meant = format!("{digits}{unit}");
    match meant.parse::<ByteSize>() {
        Ok(size) if size <= ceiling => format!("did you mean \"{meant}\"?"),
        _ => format!("at most \"{ceiling}\""),
    }
}

/// What to write in place of a duration that cannot be read; never more than `ceiling`.
pub(super) fn duration_help(written: &str, ceiling: Millis) -> String {
    let unit = match unit(written).as_str() {
        "ms" | "msec" | "millis" | "milliseconds" => "ms",
        "s" | "sec" | "secs" | "second" | "seconds" => "s",
        "m" | "min" | "mins" | "minutes" => "m",
        "h" | "hour" | "hours" => "h",
        _ => return example(Millis(200).min(ceiling)),
    };
    let Some(digits) = digits(written) else { return example(Millis(200).min(ceiling)) };
    let meant = format!("{digits}{unit}");
    match meant.parse::<Millis>() {
        Ok(duration) if duration <= ceiling => format!("did you mean \"{meant}\"?"),
        _ => format!("at most \"{ceiling}\""),
    }
}

fn example(value: impl std::fmt::Display) -> String {
    format!("for example \"{value}\"")
}

/// The digits it begins with, if it does.
fn digits(written: &str) -> Option<&str> {
    let end = written.find(|c: char| !c.is_ascii_digit()).unwrap_or(written.len());
    written.get(..end).filter(|digits| !digits.is_empty())
}

/// What follows the digits, in small letters.
fn unit(written: &str) -> String {
    written.trim_start_matches(|c: char| c.is_ascii_digit()).trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::AppName;

    #[test]
    fn a_suggested_name_is_a_name() {
        assert_eq!(suggested_name("My_Counter").as_deref(), Some("my-counter"));
        for odd in ["-a-", "A", "a b", "___a", "--", "", "é", &"a-".repeat(40), &"-".repeat(60)] {
            assert!(suggested_name(odd).is_none_or(|name| name.parse::<AppName>().is_ok()), "{odd}");
        }
    }

    #[test]
    fn no_more_is_suggested_than_is_allowed() {
        let cpu = Millis::secs(60);
        assert_eq!(duration_help("200 msec", cpu), "did you mean \"200ms\"?");
        assert_eq!(duration_help("60 secs", cpu), "did you mean \"60s\"?");
        for absurd in ["61 secs", "999999999999999999999999h", "999999999999 h", "99999999999999999999ms"] {
            assert_eq!(duration_help(absurd, cpu), format!("at most \"{cpu}\""), "{absurd}");
        }
        for odd in ["", "soon", "h", "-1s"] {
            assert!(!duration_help(odd, cpu).contains("did you mean"), "{odd}");
        }
        let memory = ByteSize::mib(1024);
        assert_eq!(size_help("64 mb", memory), "did you mean \"64MiB\"?");
        for absurd in ["2 gb", "99999999999999999999999B", "18446744073709551615 gib"] {
            assert_eq!(size_help(absurd, memory), "at most \"1GiB\"", "{absurd}");
        }
        assert_eq!(size_help("lots", ByteSize::mib(4)), "for example \"4MiB\"");
    }
}
