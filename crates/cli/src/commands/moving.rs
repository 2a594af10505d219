//! `link set --copy-data`: begins a move of data and shows how it goes. The move belongs to the platform: it goes on when
//! this command is interrupted, and the same command shows it again.

use std::time::{Duration, Instant};

use api::Problem;
use api::client::ControlClient;
use api::control::MoveRequest;
use api::copy::{CopyPhase, CopyView, Extra};
use api::problem::Code;
use model::{AppName, ComponentName};

use crate::args::{ExtraKeys, LinkArg};
use crate::context::{Context, refused};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// Copies the keys or objects, then moves the link.
///
/// # Errors
/// Why nothing was moved.
pub async fn copy_and_link(
    context: &Context,
    client: &ControlClient,
    app: AppName,
    link: LinkArg,
    component: Option<ComponentName>,
    extra: ExtraKeys,
) -> anyhow::Result<()> {
    let extra = match extra {
        ExtraKeys::Refuse => Extra::Refuse,
        ExtraKeys::Remove => Extra::Remove,
        ExtraKeys::Keep => Extra::Keep,
    };
    let begun = Instant::now();
    let request = MoveRequest { component, contract: link.contract, label: link.label, provider: link.provider, extra };
    let mut view = client.copy(&context.tenant, &app, &request).await.map_err(refused)?;
    let what = if request.contract.to_string() == "wasi:blobstore" { "objects" } else { "keys" };
    let spinner = context.out.spinner(&progress(&view, what));
    let mut told = None;
    loop {
        spinner.set_message(progress(&view, what));
        if told != Some(view.phase) && !matches!(view.phase, CopyPhase::Done | CopyPhase::Failed) {
            told = Some(view.phase);
            spinner.suspend(|| context.out.step(phase(view.phase)));
        }
        match view.phase {
            CopyPhase::Done | CopyPhase::Failed => break,
            _ => tokio::time::sleep(LOOK).await,
        }
        view = client.copied(&context.tenant, &app).await.map_err(refused)?;
    }
    spinner.finish_and_clear();
    if view.phase == CopyPhase::Failed {
        let unknown = || Problem::new(Code::Internal, "the move of data failed without a reason");
        return Err(view.problem.unwrap_or_else(unknown).into());
    }
    context.out.result(&view, || {
        let revision = view.revision.map(|revision| format!(" from revision {revision} on")).unwrap_or_default();
        let held = view.held_ms.map(|ms| format!("; calls waited {ms} ms")).unwrap_or_default();
        format!(
            "{app}: {} is answered by {}{revision}; {} {what} looked at, {} written and read back, {} bytes, {:.1} s{held}",
            request.contract,
            view.to,
            view.read,
            view.written,
            view.bytes,
            begun.elapsed().as_secs_f64()
        )
    });
    Ok(())
}

fn phase(phase: CopyPhase) -> &'static str {
    match phase {
        CopyPhase::Copying => "copying while the app goes on",
        CopyPhase::Following => "copying what was written meanwhile",
        CopyPhase::Switching => "calls wait while the last writes are copied and the link is moved",
        CopyPhase::Done => "done",
        CopyPhase::Failed => "failed",
    }
}

fn progress(view: &CopyView, what: &str) -> String {
    format!("{} → {}: {} {what}, {} bytes written", view.from, view.to, view.read, view.bytes)
}
