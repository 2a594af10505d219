//! `app.toml`: what a developer writes. Read once, with places, into types that cannot be wrong; everything that is wrong
//! lands in one [`Report`]. `docs/manifest.md` is the format for people, `schemas/app.schema.json` the one for editors.
//!
//! Text ─▶ [`shape`] (every table against its field table) ─▶ [`read`] (typed values) ─▶ `crate::lock` (the rules)

mod fields;
mod hide;
mod hints;
mod read;
mod report;
mod schema;
mod shape;
mod source;
mod syntax;
mod types;

use std::ops::Range;
use std::sync::Arc;

pub use read::Draft;
pub use report::{Finding, Related, Report, Severity, Source};
pub use schema::json_schema;
pub use types::{
    Component, ComponentSource, LinkEntry, Manifest, OciReference, Provider, RouteEntry, ScheduleEntry, SecretEntry,
    SettingEntry, Spanned,
};

/// The version of the format that this program reads.
pub const SCHEMA: i64 = 1;

/// Reads a manifest. `file` is its name as findings show it.
///
/// # Errors
/// Every problem of the text. What needs the artifacts or the tenant is found by [`crate::lock::lock`]; to have both in
/// one report, use [`draft`] and [`crate::lock::lock_draft`].
pub fn parse(text: &str, file: &str) -> Result<Manifest, Report> {
    draft(text, file).finish()
}

/// Reads as much of a manifest as can be read, and keeps what is wrong with the rest.
pub fn draft(text: &str, file: &str) -> Draft {
    read::draft(Arc::new(Source::new(file, text)))
}

/// Collects findings of one source.
#[derive(Debug)]
struct Findings<'a> {
    source: &'a Source,
    list: Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, span: Range<usize>, violation: crate::rules::Violation) {
        self.list.push(Finding::new(self.source, span, violation));
    }
}
