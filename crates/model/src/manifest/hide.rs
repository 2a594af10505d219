//! What a report shows of a file must not carry a secret that was written where only its name belongs. Hidden by text
//! and not by meaning, so that it works for files that cannot be read.

use crate::name::SecretName;
use crate::rules::{masked, provider};

/// The key that names a secret.
const REFERENCE: &str = "secret";

/// The text with passwords replaced by asterisks, one for each byte, so that byte offsets stay.
pub(super) fn hide(text: &str) -> String {
    let mut shown = masked(text);
    let keys = provider::hidden_settings();
    for key in keys.iter().chain([&REFERENCE]) {
        shown = hide_values(&shown, key);
    }
    shown
}

fn hide_values(text: &str, key: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(key) {
        let (before, after) = rest.split_at(at + key.len());
        let part_of_a_word = before.get(..at).is_some_and(|lead| lead.ends_with(word)) || after.starts_with(word);
        out.push_str(before);
        rest = after;
        if part_of_a_word {
            continue;
        }
        let value = rest.trim_start_matches(['"', '\'']).trim_start_matches([' ', '\t']);
        let Some(value) = value.strip_prefix('=').map(|value| value.trim_start_matches([' ', '\t'])) else { continue };
        let (lead, value) = rest.split_at(rest.len() - value.len());
        let (quote, end) = extent(value);
        let inside = value.get(quote..end).unwrap_or_default();
        // The name of a secret is what belongs there.
        let named = key == REFERENCE && (inside.parse::<SecretName>().is_ok() || is_named(value));
        out.push_str(lead);
        if named || value.starts_with(['{', '[']) {
            rest = value;
            continue;
        }
        out.push_str(value.get(..quote).unwrap_or_default());
        out.extend(inside.bytes().map(|byte| if byte == b'\n' { '\n' } else { '*' }));
        rest = value.get(end..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// Whether a value is the name of a secret and other keys follow it in the same table.
fn is_named(value: &str) -> bool {
    let Some(quote @ ('"' | '\'')) = value.chars().next() else { return false };
    let Some((name, after)) = value.get(1..).and_then(|rest| rest.split_once(quote)) else { return false };
    name.parse::<SecretName>().is_ok() && after.trim_start_matches([' ', '\t']).starts_with([',', '}'])
}

fn word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// Where a value begins behind its quotes, and where it ends: at the closing ones, or at the end of the line.
fn extent(value: &str) -> (usize, usize) {
    for quotes in ["\"\"\"", "\'\'\'"] {
        if let Some(inside) = value.strip_prefix(quotes) {
            return (3, 3 + inside.find(quotes).unwrap_or(inside.len()));
        }
    }
    let line = value.lines().next().unwrap_or_default();
    match value.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            // To the last quote of the line: one inside may be escaped, and hiding too much harms nobody.
            (1, line.rfind(quote).filter(|end| *end > 0).unwrap_or(line.len()))
        }
        _ => (0, line.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_where_secrets_belong_are_hidden_in_place() {
        for (text, expected) in [
            ("password = \"hunter2\"", "password = \"*******\""),
            ("password='hu\"nter2'  # x", "password='********'  # x"),
            ("{ password = \"a\\\"b\" }", "{ password = \"****\" }"),
            ("password = \"\"\"a\nbc\"\"\"\nx = 1", "password = \"\"\"*\n**\"\"\"\nx = 1"),
            ("password = hunter2\nx = 1", "password = *******\nx = 1"),
            ("\"password\" = \"é\"", "\"password\" = \"**\""),
            ("password = { secret = \"cache-password\" }", "password = { secret = \"cache-password\" }"),
            ("password = { secret = \"Hunter2!\" }", "password = { secret = \"********\" }"),
            ("{ secret = \"a\", from = \"vault\" }", "{ secret = \"a\", from = \"vault\" }"),
            ("{ secret = \"Hunter2\", from = \"v\" }", "{ secret = \"*******************\" }"),
            ("my-password = \"shown\"", "my-password = \"shown\""),
            ("password", "password"),
            ("url = \"redis://u:p@h\"", "url = \"redis://***@h\""),
        ] {
            assert_eq!(hide(text), expected);
            assert_eq!(hide(text).len(), text.len());
        }
    }
}
