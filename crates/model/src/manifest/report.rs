//! What is wrong with a manifest: every problem of one file in one report, each with place, reason and remedy. The same
//! report prints as plain text here and as a drawing in the cli (miette).

use std::fmt::{self, Write as _};
use std::ops::Range;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

use crate::rules::Violation;

/// The text a manifest was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file's name as the user gave it.
    pub file: String,
    /// Its whole text.
    pub text: String,
    /// Where each line begins, bytes.
    lines: Vec<usize>,
}

impl Source {
    /// A file's name and text.
    pub fn new(file: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { file: file.into(), text, lines }
    }

    /// Line and column (in characters) of a byte offset, both counted from 1.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let offset = self.floor(offset);
        let line = self.lines.partition_point(|start| *start <= offset).max(1);
        let start = self.lines.get(line - 1).copied().unwrap_or_default();
        (line, self.text.get(start..offset).unwrap_or_default().chars().count() + 1)
    }

    fn floor(&self, offset: usize) -> usize {
        let mut at = offset.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at = at.saturating_sub(1);
        }
        at
    }

    /// A line by its number, from 1.
    pub fn line(&self, number: usize) -> &str {
        let start = self.lines.get(number.saturating_sub(1)).copied().unwrap_or(self.text.len());
        self.text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default()
    }
}

/// Whether a finding stops a deploy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The manifest cannot be used.
    Error,
    /// It can, and is probably not what was meant.
    Warning,
}

/// Another place that a finding speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Related {
    /// Byte range in the manifest.
    pub span: Range<usize>,
    /// What is there.
    pub text: String,
}

/// One problem of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A stable code, listed in `docs/manifest.md`.
    pub code: &'static str,
    /// Whether it stops a deploy.
    pub severity: Severity,
    /// What is wrong, and why.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// Byte range in the manifest.
    pub span: Range<usize>,
    /// The manifest's file name.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Other places it speaks of.
    pub related: Vec<Related>,
}

impl Finding {
    /// Places a violation at `span` of `source`.
    pub fn new(source: &Source, span: Range<usize>, violation: Violation) -> Self {
        let (line, column) = source.position(span.start);
        let code = violation.code.as_str();
        let severity = violation.code.severity();
        let Violation { message, help, .. } = violation;
        Self { code, severity, message, help, span, file: source.file.clone(), line, column, related: Vec::new() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Finding {}

fn miette_span(span: &Range<usize>) -> (usize, usize) {
    (span.start, span.end.saturating_sub(span.start))
}

impl Diagnostic for Finding {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.code))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let primary = LabeledSpan::new_primary_with_span(None, miette_span(&self.span));
        let related =
            self.related.iter().map(|r| LabeledSpan::new_with_span(Some(r.text.clone()), miette_span(&r.span)));
        Some(Box::new(std::iter::once(primary).chain(related)))
    }
}

/// Every finding of one manifest, in the order of the file.
#[derive(Debug, Clone)]
pub struct Report {
    /// The findings; those of one place keep the order they were found in.
    pub findings: Vec<Finding>,
    source: Arc<Source>,
    named: NamedSource<String>,
}

impl Report {
    pub(crate) fn new(source: Arc<Source>, mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|f| (f.span.start, f.severity));
        findings.dedup();
        // What is shown of the file must not carry a password into a terminal's history or a build's log.
        let text = super::hide::hide(&source.text);
        let source = Arc::new(Source::new(source.file.as_str(), text.as_str()));
        let named = NamedSource::new(&source.file, text).with_language("TOML");
        Self { findings, source, named }
    }

    /// The text of the manifest, with the secrets of URLs and texts in the place of secrets masked.
    pub fn text(&self) -> &str {
        &self.source.text
    }

    /// How many findings stop a deploy.
    pub fn errors(&self) -> usize {
        self.findings.iter().filter(|f| f.severity == Severity::Error).count()
    }

    /// How many do not.
    pub fn warnings(&self) -> usize {
        self.findings.len().saturating_sub(self.errors())
    }

    /// The report as plain text, one block per finding and a last line that counts them.
    pub fn render(&self) -> String {
        let mut out = String::new();
        for finding in &self.findings {
            self.render_one(&mut out, finding);
        }
        let _ = writeln!(out, "{self}");
        out
    }

    fn render_one(&self, out: &mut String, finding: &Finding) {
        let word = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let _ = writeln!(out, "{word}[{}]: {}", finding.code, finding.message);
        let _ = writeln!(out, "  --> {}:{}:{}", finding.file, finding.line, finding.column);
        let (line, column) = window(self.source.line(finding.line), finding.column);
        let gutter = finding.line.to_string();
        let pad = " ".repeat(gutter.len());
        if !line.trim().is_empty() {
            let lead: String = line.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let spanned = self.source.text.get(finding.span.clone()).unwrap_or_default();
            let width = spanned.lines().next().unwrap_or_default().chars().count();
            let width = width.clamp(1, (line.chars().count() + 1).saturating_sub(column).max(1));
            let _ = writeln!(out, "{pad} |\n{gutter} | {line}\n{pad} | {lead}{}", "^".repeat(width));
        }
        for related in &finding.related {
            let (line, column) = self.source.position(related.span.start);
            let _ = writeln!(out, "{pad} = see {}:{line}:{column}: {}", finding.file, related.text);
        }
        if let Some(help) = &finding.help {
            let _ = writeln!(out, "{pad} = help: {help}");
        }
        out.push('\n');
    }
}

/// The widest line that is shown whole, characters.
const WIDTH: usize = 160;

/// A line, cut around `column` where it is too long to be shown; and the column in what is left.
fn window(line: &str, column: usize) -> (String, usize) {
    if line.chars().count() <= WIDTH {
        return (line.to_owned(), column);
    }
    let start = column.saturating_sub(WIDTH / 4);
    let (lead, skip) = if start > 1 { ("…", start - 1) } else { ("", 0) };
    let shown: String = line.chars().skip(skip).take(WIDTH - 2).collect();
    let tail = if skip + WIDTH - 2 < line.chars().count() { "…" } else { "" };
    (format!("{lead}{shown}{tail}"), column - skip + lead.chars().count())
}

fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source.file, count(self.errors(), "error"))?;
        if self.warnings() > 0 {
            write!(f, ", {}", count(self.warnings(), "warning"))?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

impl Diagnostic for Report {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new("manifest-invalid"))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.named)
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.findings.iter().map(|f| f as &dyn Diagnostic)))
    }
}
