//! What is wrong with a file as TOML, in words for someone who meant to write a manifest.

use std::ops::Range;

use super::Findings;
use crate::rules::{Code, Violation, shown};

/// Reports syntax errors, one per line. True if the rest of the document can be relied on: then only keys were written
/// twice, and the first of each counts.
pub(super) fn report(text: &str, errors: &[toml::de::Error], out: &mut Findings<'_>) -> bool {
    let mut lines = Vec::new();
    let mut usable = true;
    for error in errors {
        let span = place(text, error.span());
        let line = out.source.position(span.start).0;
        let twice = error.message() == "duplicate key";
        usable &= twice;
        if lines.contains(&line) {
            continue;
        }
        lines.push(line);
        let violation = if twice {
            let key = text.get(span.clone()).unwrap_or_default();
            Violation::new(Code::DuplicateKey, format!("`{}` is written twice", shown(key)))
                .help("keep one of the two; everything of one table belongs under one header")
        } else {
            let written = out.source.line(line);
            let bare = text.get(span.clone()).filter(|t| !t.is_empty() && error.message().contains("must be quoted"));
            let help = match bare {
                Some(bare) => format!("put it in quotes: \"{}\"", shown(bare)),
                None => advice(written).unwrap_or_else(|| DEFAULT_ADVICE.to_owned()),
            };
            Violation::new(Code::TomlSyntax, format!("this is not TOML: {}", error.message())).help(help)
        };
        out.add(span, violation);
    }
    usable
}

/// A span inside the text and on character borders, whatever the parser gave.
fn place(text: &str, span: Option<Range<usize>>) -> Range<usize> {
    let span = span.unwrap_or(0..0);
    let floor = |at: usize| (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let (mut start, end) = (floor(span.start), floor(span.end));
    // The end of a line is a place without anything to see: step back onto the line.
    if start == text.len() || text.as_bytes().get(start) == Some(&b'\n') {
        start = text.get(..start).map_or(0, |before| before.trim_end().len());
    }
    start..end.max(start)
}

/// What the line was probably meant to be.
fn advice(line: &str) -> Option<String> {
    let line = line.trim();
    let (key, value) = line.split_once('=').map_or((line, ""), |(k, v)| (k.trim(), v.trim()));
    if value.is_empty() && line.contains(':') && !line.starts_with('[') {
        return Some("TOML separates key and value by `=`, not by `:`".to_owned());
    }
    if key.contains(':') && !key.contains(['"', '\'']) {
        let key = key.trim_start_matches('[').trim_end_matches(']');
        return Some(format!("keys with `:` need quotes: write \"{}\"", shown(key)));
    }
    if line.starts_with('[') && !line.contains(']') {
        return Some("close the table's header with `]`".to_owned());
    }
    (value.matches('"').count() % 2 == 1).then(|| "close the text with `\"`".to_owned())
}

const DEFAULT_ADVICE: &str = "put texts in quotes, and one `key = value` on each line";
