//! Brings a task up on a node of its own, passes its lines on, and ends it when it is told to.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use api::agent::LogStream;
use api::node::{LogQuery, NodeApi as _};
use api::run::{RunEnd, RunFrame};
use api::task::{Groups, Place, TaskExit, TaskPhase, TaskSpec, TaskStatus};
use api::{Code, Problem};
use futures::StreamExt as _;
use node::Node;
use node::artifacts::Pulled;
use tokio::sync::{mpsc, oneshot, watch};

use super::app::prepare;
use super::control::Control;
use super::output::Output;
use super::own::{Names, Notes, start};
use super::{cores, log, used};

/// How long the last lines may take to be read.
const LAST_LINES: Duration = Duration::from_secs(2);
/// Lines of a task that are kept until its output is open.
const KEPT_LINES: usize = 4096;
/// How often it is looked whether memory has run out.
const LOOK: Duration = Duration::from_millis(250);
/// The exit code of what the kernel killed.
const OOM: i32 = 137;
/// The exit code of a program that was told to stop: that of a process ended by SIGINT, which no component can see.
const STOPPED: i32 = 130;
/// Whoever stops a task kills it a quarter of its deadline later: its last lines have half of that.
const GRACE: u32 = 8;
/// Its one host, which has no calls any more when their time is up, has this part of it to end.
const LAST: u32 = 16;
/// How long the last bytes of a program may wait for their reader.
const LAST_BYTES: Duration = Duration::from_secs(30);

/// Runs the task; how it ended. Components are brought in the network `outside`, where the task has one of its own.
pub(super) async fn serve((dir, scratch): (&Path, &Path), spec: TaskSpec, outside: Option<File>) -> TaskExit {
    let status = TaskStatus { pid: std::process::id(), phase: TaskPhase::Starting, problem: None };
    let control = Arc::new(Control { status: watch::channel(status).0, stop: watch::channel(None).0 });
    let memory = Memory::of(spec.groups.clone());
    let ran = AtomicBool::new(false);
    let ended = run((dir, scratch), (spec, outside), &control, &memory, &ran).await;
    let ran = ran.into_inner();
    let (code, problem) = match ended {
        Ok(RunEnd { code, fault }) => (code, fault.map(|fault| Problem::new(Code::ComponentTrapped, fault))),
        Err(error) => (1, Some(crate::output::problem_of(&error))),
    };
    let oom = memory.ran_out().is_some();
    if let Some(problem) = &problem {
        tracing::error!(%problem, "the task ends");
        control.status.send_modify(|status| {
            status.phase = TaskPhase::Failed;
            status.problem = Some(problem.clone());
        });
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ended_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    TaskExit { code: if oom { OOM } else { code }, problem, oom, ran, ended_ms }
}

/// Runs the task to its end; with which exit code, and what ended it where it was not itself.
async fn run(
    (dir, scratch): (&Path, &Path),
    (spec, outside): (TaskSpec, Option<File>),
    control: &Arc<Control>,
    memory: &Memory,
    ran: &AtomicBool,
) -> anyhow::Result<RunEnd> {
    // Its name now: once another one is put in its place, this file has none.
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let signal = telemetry::shutdown_signal().context("cannot wait for signals")?;
    control.listen(dir)?;
    tokio::spawn(log::keep_small());
    if let Some(group) = cores::beside(&spec.groups) {
        tokio::spawn(cores::follow(group.clone(), cores::EVERY));
    }
    let mut stop = control.stop.subscribe();
    let asked = async {
        tokio::select! {
            asked = stop.wait_for(Option::is_some) => asked.ok().and_then(|asked| *asked).unwrap_or_default(),
            () = signal.cancelled() => DEFAULT_DRAIN,
        }
    };
    tokio::pin!(asked);
    let mut ready = tokio::select! {
        ready = prepare(&spec, &exe, outside) => ready?,
        // A registry may take long.
        _ = &mut asked => return Ok(RunEnd { code: STOPPED, fault: None }),
    };
    let (program, pulled) = (ready.program.take(), ready.pulled.take());
    let patience = if program.is_some() { LAST_BYTES } else { LAST_LINES };
    let names = Names::new()?;
    let (node, notes) = start((dir, scratch), exe, &spec, &names, ready).await?;
    let uses = node.node.clone();
    tokio::spawn(used::keep(used::EVERY, move || {
        uses.still_uses_code();
        pulled.iter().for_each(Pulled::still_used);
    }));
    let (quiet, quieten) = oneshot::channel();
    let (pieces, written) = mpsc::channel(1);
    let outputs = (spec.stdout, spec.stderr, patience, notes);
    let mut lines = tokio::spawn(pass_on(node.node.clone(), names.clone(), outputs, written, quieten));
    let running = async {
        node.answers(&names).await?;
        ran.store(true, Relaxed);
        control.status.send_modify(|status| status.phase = TaskPhase::Running);
        match &program {
            Some(program) => node.program(&names, program, pieces, memory).await,
            // The node goes on trying for ever; whoever schedules it may have a better place for it.
            None => Err(node.goes_down(&names).await),
        }
    };
    let mut stopped = None;
    let outcome = tokio::select! {
        // Nothing is in flight any more, but what it said last: its process ends by itself.
        ended = running => match ended {
            Ok(ended) => Ok((ended, LAST_LINES)),
            // A host that was killed for its memory may be gone twice before anybody has looked.
            Err(problem) => Err(memory.ran_out().map_or(problem, used_up)),
        },
        // Whoever wants it to stop need not wait until it is ready. A program is not told, and ends at once.
        deadline = &mut asked => {
            stopped = Some((Instant::now(), deadline));
            Ok(match &program {
                Some(_) => (RunEnd { code: STOPPED, fault: None }, Duration::ZERO),
                None => (RunEnd { code: 0, fault: None }, deadline),
            })
        }
        problem = out_of_memory(memory) => Err(problem),
    };
    let deadline = outcome.as_ref().map_or(Duration::ZERO, |(_, deadline)| *deadline);
    if outcome.is_ok() {
        control.status.send_modify(|status| status.phase = TaskPhase::Stopping);
    }
    let cut = node.node.end(deadline, deadline + deadline / LAST).await;
    if cut > 0 {
        tracing::warn!(cut, ?deadline, "calls were cut: they were in flight still when their time was over");
    }
    drop(quiet);
    // Whoever wants a program to stop does not wait for its last bytes; nor is anybody killed over its last lines.
    let all = program.is_some() && stopped.is_none() && outcome.is_ok();
    let patience = match stopped {
        Some((at, deadline)) => (deadline + deadline / GRACE).saturating_sub(at.elapsed()).min(LAST_LINES * 2),
        None => (if all { LAST_BYTES } else { LAST_LINES }) * 2,
    };
    tokio::select! {
        _ = tokio::time::timeout(patience, &mut lines) => {}
        _ = &mut asked, if all => {}
    }
    Ok(outcome?.0)
}

/// Where nobody says how long calls may take: the task was ended by a signal.
const DEFAULT_DRAIN: Duration = Duration::from_secs(5);

/// Whether the kernel has killed something of this run: a scheduler keeps the groups of a task over its restarts, and the
/// kernel its count.
pub(super) struct Memory {
    groups: Groups,
    killed: u64,
    used_up: Option<u64>,
}

/// Whose memory ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RanOut {
    /// That which the task was given.
    Own,
    /// That of the machine, or of all that the task is in.
    Machine,
}

impl Memory {
    fn of(groups: Groups) -> Self {
        Self { killed: groups.killed(), used_up: groups.used_up(), groups }
    }

    pub(super) fn ran_out(&self) -> Option<RanOut> {
        if self.groups.killed() <= self.killed {
            return None;
        }
        // Where it is not known, the nearest bound is the likeliest.
        let own = match (self.groups.used_up(), self.used_up) {
            (Some(now), Some(before)) => now > before,
            _ => true,
        };
        Some(if own { RanOut::Own } else { RanOut::Machine })
    }
}

/// Ends once the kernel has killed something of the task because its memory ran out. The node would start it again; a
/// scheduler wants to know.
async fn out_of_memory(memory: &Memory) -> Problem {
    loop {
        tokio::time::sleep(LOOK).await;
        if let Some(whose) = memory.ran_out() {
            return used_up(whose);
        }
    }
}

pub(super) fn used_up(whose: RanOut) -> Problem {
    match whose {
        RanOut::Own => {
            Problem::new(Code::LimitReached, "the task used all the memory of its `resources` block and was killed")
                .help("raise `memory` (or `memory_max`), or let it use less")
        }
        RanOut::Machine => Problem::new(
            Code::Busy,
            "the machine ran out of memory and its kernel ended the task, which had not used up its own",
        )
        .help("look for what takes the client's memory, and keep some from jobs (`reserved` of the client)"),
    }
}

/// Passes the lines of the component and the bytes of the program on until the node has ended and nothing has come for a
/// moment.
async fn pass_on(
    node: Arc<Node>,
    names: Names,
    (stdout, stderr, patience, mut notes): (Place, Place, Duration, Notes),
    mut written: mpsc::Receiver<RunFrame>,
    quiet: oneshot::Receiver<()>,
) {
    const MOMENT: Duration = Duration::from_millis(100);
    let query = LogQuery { last: KEPT_LINES, follow: true, ..LogQuery::default() };
    let mut lines = node.logs(&names.tenant, &names.app, query);
    let (mut out, mut err) = (Output::to(stdout), Output::to(stderr));
    for note in notes.first {
        err.line(&note);
    }
    let mut ended = std::pin::pin!(quiet);
    let mut over = false;
    loop {
        let line = tokio::select! {
            biased;
            Some(piece) = written.recv() => {
                match piece {
                    RunFrame::Stdout(bytes) => out.bytes(bytes.into()).await,
                    RunFrame::Stderr(bytes) => err.bytes(bytes.into()).await,
                    RunFrame::End(_) => {}
                }
                continue;
            }
            Some(note) = notes.later.recv() => {
                err.line(&format!("sidereal: {note}"));
                continue;
            }
            line = lines.next() => line,
            _ = &mut ended, if !over => {
                over = true;
                continue;
            }
            () = tokio::time::sleep(MOMENT), if over => None,
        };
        let Some(line) = line else { break };
        match line.stream {
            LogStream::Stdout => out.line(&line.text),
            LogStream::Stderr => err.line(&line.text),
            LogStream::Platform => err.line(&format!("sidereal: {}", line.text)),
            stream => err.line(&format!("{:?} {} {}", stream.level(), line.context, line.text)),
        }
    }
    tokio::join!(out.finish(patience), err.finish(patience));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scheduler keeps the groups of a task over its restarts, and the kernel its count: what was killed in an earlier run is
    /// no fault of this one.
    #[test]
    fn what_was_killed_before_this_run_is_not_counted() {
        let dir = tempfile::tempdir().unwrap();
        let oom = dir.path().join("memory.oom_control");
        let count = |killed: u64| std::fs::write(&oom, format!("oom_kill_disable 0\nunder_oom 0\noom_kill {killed}\n"));
        count(3).unwrap();
        let memory = Memory::of(Groups { join: Vec::new(), oom: Some(oom.clone()) });
        assert_eq!(memory.ran_out(), None, "three earlier ones");
        count(4).unwrap();
        assert_eq!(memory.ran_out(), Some(RanOut::Own), "as far as is known");
        count(3).unwrap();
        let next = Memory::of(Groups { join: Vec::new(), oom: Some(oom.clone()) });
        assert_eq!(next.ran_out(), None, "the next run begins anew");
        // Where nothing is counted, nothing was killed.
        assert_eq!(Memory::of(Groups::default()).ran_out(), None);
    }

    /// The kernel may choose a task that is within its bound where the whole machine has no memory left: that is no fault of
    /// the job, whichever version of control groups counts it.
    #[test]
    fn a_machine_without_memory_is_told_from_a_task_that_used_up_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let memory = |name: &str| Memory::of(Groups { join: Vec::new(), oom: Some(dir.path().join(name)) });
        // Version 2. What was freed in time (`max`) ended nobody.
        write("memory.events", "low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\noom_group_kill 0\n");
        let seen = memory("memory.events");
        write("memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\noom_group_kill 0\n");
        assert_eq!(seen.ran_out(), Some(RanOut::Machine));
        write("memory.events", "low 0\nhigh 0\nmax 12\noom 2\noom_kill 2\noom_group_kill 0\n");
        assert_eq!(seen.ran_out(), Some(RanOut::Own));
        // Version 1, where either of two limits that are the same may be the one that is met.
        write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n");
        write("memory.failcnt", "4\n");
        write("memory.memsw.failcnt", "0\n");
        let seen = memory("memory.oom_control");
        write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
        assert_eq!(seen.ran_out(), Some(RanOut::Machine));
        write("memory.memsw.failcnt", "1\n");
        assert_eq!(seen.ran_out(), Some(RanOut::Own));
        // Or a kernel that counts nothing there.
        write("memory.memsw.failcnt", "0\n");
        write("memory.limit_in_bytes", "67108864\n");
        write("memory.max_usage_in_bytes", "20000000\n");
        assert_eq!(seen.ran_out(), Some(RanOut::Machine));
        write("memory.max_usage_in_bytes", "67108000\n");
        assert_eq!(seen.ran_out(), Some(RanOut::Own));
        let told = used_up(RanOut::Machine);
        assert!(told.code.may_pass() && told.detail.contains("the machine ran out of memory"), "{told}");
    }
}
