//! What a value that cannot be read was probably meant to be.

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

/// What to write in place of a size that cannot be read.
pub(super) fn size_help(written: &str) -> String {
    let digits: String = written.chars().take_while(char::is_ascii_digit).take(12).collect();
    let unit = written.trim_start_matches(|c: char| c.is_ascii_digit()).trim().to_ascii_lowercase();
    let unit = match unit.as_str() {
        "" | "b" => "B",
        "k" | "kb" | "kib" => "KiB",
        "m" | "mb" | "mib" => "MiB",
        "g" | "gb" | "gib" => "GiB",
        _ => return "for example \"64MiB\"".to_owned(),
    };
    if digits.is_empty() { "for example \"64MiB\"".to_owned() } else { format!("did you mean \"{digits}{unit}\"?") }
}

/// What to write in place of a duration that cannot be read.
pub(super) fn duration_help(written: &str) -> String {
    let digits: String = written.chars().take_while(char::is_ascii_digit).take(12).collect();
    let unit = written.trim_start_matches(|c: char| c.is_ascii_digit()).trim().to_ascii_lowercase();
    let unit = match unit.as_str() {
        "ms" | "msec" | "millis" | "milliseconds" => "ms",
        "s" | "sec" | "secs" | "second" | "seconds" => "s",
        "m" | "min" | "mins" | "minutes" => "m",
        "h" | "hour" | "hours" => "h",
        _ => return "for example \"200ms\" or \"10s\"".to_owned(),
    };
    if digits.is_empty() { "for example \"200ms\"".to_owned() } else { format!("did you mean \"{digits}{unit}\"?") }
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
}
