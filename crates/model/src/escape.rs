//! What strangers wrote, as text a terminal and a log reader can be shown. A host does it with what its guests write, and the
//! node once more with what a host says: that may be one of ours no longer.

/// The longest line, bytes of its escaped text. A longer one goes on in the next.
pub const MAX_LINE: usize = 16 << 10;

/// Splits `bytes` at line ends and hands each line to `emit`: invalid UTF-8 replaced, control characters escaped (the
/// tab stays), a carriage return before the end gone. An empty rest after the last line end is no line.
pub fn lines(bytes: &[u8], mut emit: impl FnMut(String)) {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    for line in bytes.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut text = String::with_capacity(line.len().min(MAX_LINE));
        for chunk in line.utf8_chunks() {
            for character in chunk.valid().chars() {
                push(&mut text, character, &mut emit);
            }
            if !chunk.invalid().is_empty() {
                push(&mut text, char::REPLACEMENT_CHARACTER, &mut emit);
            }
        }
        emit(text);
    }
}

/// A whole text as one line: its line ends are escaped too.
pub fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if out.len() >= MAX_LINE - 8 {
            out.push('…');
            break;
        }
        escape(&mut out, character);
    }
    out
}

/// A text of several lines, cut after `most` bytes.
pub fn text(text: &str, most: usize) -> String {
    let mut out = String::with_capacity(text.len().min(most));
    for character in text.chars() {
        if out.len() >= most {
            out.push('…');
            break;
        }
        match character {
            '\n' => out.push('\n'),
            other => escape(&mut out, other),
        }
    }
    out
}

fn push(text: &mut String, character: char, emit: &mut impl FnMut(String)) {
    let before = text.len();
    escape(text, character);
    if text.len() > MAX_LINE {
        let over = text.split_off(before);
        emit(std::mem::replace(text, over));
    }
}

fn escape(text: &mut String, character: char) {
    if hidden(character) {
        text.extend(character.escape_default());
    } else {
        text.push(character);
    }
}

/// Characters that would move the cursor, change the terminal's state, or show other text than is there.
pub fn hidden(character: char) -> bool {
    match character {
        '\t' => false,
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' => true,
        other => other.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(bytes: &[u8]) -> Vec<String> {
        let mut all = Vec::new();
        lines(bytes, |line| all.push(line));
        all
    }

    #[test]
    fn lines_end_where_they_end() {
        assert_eq!(split(b"one\ntwo\r\nthree"), ["one", "two", "three"]);
        assert_eq!(split(b"one\n"), ["one"]);
        assert_eq!(split(b"\n\n"), ["", ""]);
    }

    #[test]
    fn what_would_reach_a_terminal_is_escaped() {
        assert_eq!(split(b"\x1b[31mred\x07\tx"), ["\\u{1b}[31mred\\u{7}\tx"]);
        assert_eq!(split("\u{9b}x\u{202e}y\u{2028}".as_bytes()), ["\\u{9b}x\\u{202e}y\\u{2028}"]);
        assert_eq!(split(b"a\rb"), ["a\\rb"]);
        assert_eq!(one_line("a\nb"), "a\\nb");
        assert_eq!(text("a\nb\u{1b}[2J", 100), "a\nb\\u{1b}[2J");
        assert_eq!(text("aéé", 3), "aé…");
    }

    #[test]
    fn invalid_bytes_are_replaced() {
        assert_eq!(split(b"a\xffb\xc3"), ["a\u{fffd}b\u{fffd}"]);
    }

    #[test]
    fn a_long_line_goes_on_in_the_next_and_nothing_is_lost() {
        let text = "é".repeat(MAX_LINE);
        let parts = split(text.as_bytes());
        assert!(parts.iter().all(|part| part.len() <= MAX_LINE));
        assert_eq!(parts.concat(), text);
        assert!(split(&[0x1b; 10_000]).iter().all(|part| part.len() <= MAX_LINE));
        assert!(one_line(&"x".repeat(1 << 20)).len() <= MAX_LINE);
    }
}
