//! What people and programs see: results on stdout, everything else on stderr, one envelope for programs.

use std::io::{IsTerminal as _, Write as _};

use anstyle::{AnsiColor, Style};
use api::{Code, Problem};
use serde::Serialize;

use crate::args::{Color, Format, Global};

/// The envelope's version.
const SCHEMA: u32 = 1;

/// What every `-o json` line is (`schemas/envelope.schema.json`).
#[derive(Debug, Serialize)]
struct Envelope<'a, T: Serialize> {
    schema: u32,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Problem>,
}

/// Where a command writes.
#[derive(Debug, Clone)]
pub struct Output {
    format: Format,
    quiet: bool,
}

impl Output {
    /// As the global flags say. Sets the colour choice of the process.
    pub fn new(global: &Global) -> Self {
        match global.color {
            Color::Auto => {}
            Color::Always => anstream::ColorChoice::Always.write_global(),
            Color::Never => anstream::ColorChoice::Never.write_global(),
        }
        Self { format: global.output, quiet: global.quiet }
    }

    /// Before the flags could be read.
    pub fn of(json: bool) -> Self {
        Self { format: if json { Format::Json } else { Format::Text }, quiet: false }
    }

    /// Whether programs read the result.
    pub fn json(&self) -> bool {
        self.format == Format::Json
    }

    /// The result: `text` for people, an envelope with `data` for programs.
    pub fn result<T: Serialize>(&self, data: &T, text: impl FnOnce() -> String) {
        stdout(&self.line(data, text));
    }

    /// As [`Output::result`], by a process that goes on whether it is read or not.
    pub fn announce<T: Serialize>(&self, data: &T, text: impl FnOnce() -> String) {
        let line = self.line(data, text);
        let mut out = anstream::stdout();
        if let Err(cause) = writeln!(out, "{line}").and_then(|()| out.flush()) {
            tracing::warn!(%cause, "nobody reads stdout");
        }
    }

    fn line<T: Serialize>(&self, data: &T, text: impl FnOnce() -> String) -> String {
        match self.format {
            Format::Text => text(),
            Format::Json => {
                let envelope = Envelope { schema: SCHEMA, ok: true, data: Some(data), error: None };
                serde_json::to_string(&envelope)
                    .unwrap_or_else(|cause| format!("{{\"ok\":false,\"error\":\"{cause}\"}}"))
            }
        }
    }

    /// The failure, in the same words as the API's.
    pub fn failure(&self, problem: &Problem) {
        if self.json() {
            let envelope = Envelope::<()> { schema: SCHEMA, ok: false, data: None, error: Some(problem) };
            stdout(&serde_json::to_string(&envelope).unwrap_or_default());
            return;
        }
        let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
        let dim = Style::new().dimmed();
        anstream::eprintln!("{red}error{red:#}: {} {dim}[{}]{dim:#}", problem.detail, problem.code.as_str());
        for finding in &problem.findings {
            anstream::eprintln!("  {finding}");
        }
        if let Some(help) = &problem.help {
            let cyan = Style::new().fg_color(Some(AnsiColor::Cyan.into()));
            anstream::eprintln!("{cyan}help{cyan:#}: {help}");
        }
    }

    /// A step that was done, on stderr where that is a terminal: what goes on is for whoever watches.
    pub fn step(&self, text: &str) {
        if self.watched() {
            let green = Style::new().fg_color(Some(AnsiColor::Green.into()));
            anstream::eprintln!("  {green}✓{green:#} {text}");
        }
    }

    fn watched(&self) -> bool {
        !self.quiet && !self.json() && std::io::stderr().is_terminal()
    }

    /// Something worth knowing, on stderr.
    pub fn note(&self, text: &str) {
        if !self.quiet && !self.json() {
            let dim = Style::new().dimmed();
            anstream::eprintln!("  {dim}{text}{dim:#}");
        }
    }

    /// Something that may surprise, on stderr, also with `--quiet`.
    pub fn warn(&self, text: &str) {
        let yellow = Style::new().fg_color(Some(AnsiColor::Yellow.into()));
        anstream::eprintln!("{yellow}warning{yellow:#}: {text}");
    }

    /// A spinner on stderr while `what` goes on; nothing where stderr is no terminal.
    pub fn spinner(&self, what: &str) -> indicatif::ProgressBar {
        if !self.watched() {
            return indicatif::ProgressBar::hidden();
        }
        let bar = indicatif::ProgressBar::new_spinner().with_message(what.to_owned());
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        bar
    }
}

/// Whether text on stderr has colour: as `--color` says, else as the terminal and `NO_COLOR` do.
pub fn colors() -> bool {
    anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never
}

/// When a line was written, from milliseconds since 1970: on this machine's clocks, and how far they are from UTC.
pub fn clock(time_ms: u64) -> String {
    let time = i64::try_from(time_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let local = time.map(|time| time.to_zoned(jiff::tz::TimeZone::system()));
    local.map(|local| local.strftime("%Y-%m-%d %H:%M:%S%.3f%:z").to_string()).unwrap_or_default()
}

/// A date and time of day, from milliseconds since 1970.
pub fn moment(time_ms: u64) -> String {
    let time = i64::try_from(time_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map(|t| format!("{t:.0}")).unwrap_or_default()
}

/// A line on stdout. A reader that hung up (`sidereal logs | head`) is no failure; a result that cannot be written is.
pub fn stdout(line: &str) {
    let mut out = anstream::stdout();
    written(writeln!(out, "{line}").and_then(|()| out.flush()));
}

/// Bytes on stdout, one part after the other, with nothing added or left out.
pub fn raw(parts: &[&[u8]]) {
    let mut out = std::io::stdout().lock();
    written(parts.iter().try_for_each(|part| out.write_all(part)).and_then(|()| out.flush()));
}

fn written(done: std::io::Result<()>) {
    match done {
        Ok(()) => {}
        Err(cause) if cause.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(cause) => {
            eprintln!("cannot write the result: {cause}");
            std::process::exit(1);
        }
    }
}

/// A table for people: no borders, aligned, as wide as it needs.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// The problem inside an error, or an internal one with its whole chain.
pub fn problem_of(error: &anyhow::Error) -> Problem {
    match error.downcast_ref::<Problem>() {
        Some(problem) => problem.clone(),
        None => Problem::new(Code::Internal, format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_a_line_is_one_moment_whatever_the_zone() {
        let moment = 1_700_000_000_123;
        let shown = clock(moment);
        let read: jiff::Timestamp = shown.parse().unwrap_or_else(|cause| panic!("{shown}: {cause}"));
        assert_eq!(u64::try_from(read.as_millisecond()).unwrap(), moment, "{shown}");
    }
}
