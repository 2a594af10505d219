//! `audit`: who changed what, who was refused, and whether anybody changed the log itself.

use api::control::AuditView;

use crate::args::{Audit, AuditCommand};
use crate::context::{Context, refused};
use crate::output::table;

/// `sidereal audit`: false where the log is not as it was written.
///
/// # Errors
/// When the platform refuses, or cannot be reached.
pub async fn audit(context: &Context, args: Audit) -> anyhow::Result<bool> {
    let client = context.client()?;
    if let Some(AuditCommand::Verify) = args.command {
        let report = client.verify_audit().await.map_err(refused)?;
        context.out.result(&report, || {
            let text = match report.problems.is_empty() {
                true => format!("all {} lines in {} files are as they were written", report.lines, report.files),
                false => format!("the audit log is not as it was written:\n  {}", report.problems.join("\n  ")),
            };
            match report.found.is_empty() {
                true => text,
                false => {
                    let found = report.found.join("\n  ");
                    format!("{text}\nwritten at a crash, or added while nothing ran:\n  {found}")
                }
            }
        });
        return Ok(report.problems.is_empty());
    }
    let lines = client.audit(context.named_tenant(), args.last).await.map_err(refused)?;
    context.out.result(&lines, || match lines.is_empty() {
        true => "nothing was changed, and nobody was refused".to_owned(),
        false => table(&["TIME", "WHO", "TENANT", "FROM", "WHAT", "OUTCOME"], lines.iter().map(row).collect()),
    });
    Ok(true)
}

fn row(line: &AuditView) -> Vec<String> {
    let time = i64::try_from(line.time_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let outcome = match (&line.code, line.status) {
        (Some(code), _) => format!("{} ({code})", line.outcome),
        (None, Some(status)) => format!("{} ({status})", line.outcome),
        (None, None) => line.outcome.clone(),
    };
    vec![
        time.map_or_else(String::new, |time| format!("{time:.3}")),
        line.who.clone(),
        line.tenant.as_ref().map(ToString::to_string).unwrap_or_default(),
        line.from.clone(),
        line.what.clone(),
        outcome,
    ]
}
