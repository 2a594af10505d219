//! Runs of programs, as [`api::run`] has them. A run is a call of its component like any other, with its limits and its place
//! among the calls; it ends with the caller's connection.

use std::sync::Arc;

use api::run::{MAX_FRAME, RunEnd, RunFrame, RunRequest};
use api::{Code, Problem};
use bytes::Bytes;
use futures::Stream;
use model::{AppName, Revision};
use runtime::{Output, Program, Written};
use tokio::task::JoinHandle;

use crate::apps::{Apps, NoPlace};

/// A run under way. Dropping it ends the run.
struct Running {
    written: Written,
    /// A piece that is too long for one frame.
    rest: Option<(Output, Bytes)>,
    run: JoinHandle<RunEnd>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.run.abort();
    }
}

/// Begins a run; its frames come as long as somebody takes them.
///
/// # Errors
/// [`Code::NotFound`] and [`Code::Busy`]: nothing was run.
pub(crate) async fn run(
    apps: &Arc<Apps>,
    app: &AppName,
    revision: Revision,
    request: RunRequest,
) -> Result<impl Stream<Item = Bytes> + Send + use<>, Problem> {
    let RunRequest { component, export, args, env } = request;
    let route = format!("{app}/{revision}/{component}");
    let brings =
        args.iter().map(String::len).sum::<usize>() + env.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
    let place = match apps.enter(&route) {
        Err(NoPlace::Held) => apps.enter_later(&route, brings).await,
        other => other,
    };
    let place = place.map_err(|why| match why {
        NoPlace::Busy | NoPlace::Held => {
            Problem::new(Code::Busy, format!("component `{component}` has all the calls it may have"))
        }
        NoPlace::Unknown | NoPlace::Closed => {
            Problem::new(Code::NotFound, format!("this host does not have `{route}`"))
        }
    })?;
    let workload = apps.ready(place.entry()).await?;
    let (run, written) = workload.run(Program { args, env }, export);
    let run = tokio::spawn(async move {
        let entry = place.entry();
        let ended = tokio::select! {
            biased;
            ended = run => ended,
            () = entry.ended().cancelled() => {
                return RunEnd { code: RunEnd::FAILED, fault: Some("it was ended with its revision".to_owned()) };
            }
        };
        match ended {
            Ok(code) => RunEnd { code, fault: None },
            Err(fault) => {
                entry.failed(&fault);
                RunEnd { code: RunEnd::FAILED, fault: Some(fault.to_string()) }
            }
        }
    });
    Ok(futures::stream::unfold(Some(Running { written, rest: None, run }), |running| async {
        let mut running = running?;
        let piece = match running.rest.take() {
            Some(rest) => Some(rest),
            None => running.written.next().await,
        };
        let Some((output, mut bytes)) = piece else {
            let ended = (&mut running.run).await;
            let ended = ended.unwrap_or_else(|cause| RunEnd { code: RunEnd::FAILED, fault: Some(cause.to_string()) });
            return Some((RunFrame::End(ended).encode(), None));
        };
        if bytes.len() > MAX_FRAME {
            running.rest = Some((output, bytes.split_off(MAX_FRAME)));
        }
        let frame = match output {
            Output::Stdout => RunFrame::Stdout(bytes),
            Output::Stderr => RunFrame::Stderr(bytes),
        };
        Some((frame.encode(), Some(running)))
    }))
}
