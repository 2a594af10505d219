//! Commands inside a task: what a driver is asked and answers, and how agents speak of it. An agent opens a stream, says in its
//! first message what is to be run, and then hands over what somebody types; it is told of each output and of its end, and last
//! of how the command ended.

use std::collections::VecDeque;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tonic::{Status, Streaming};

use crate::contracts::hashicorp::nomad::plugins::drivers::proto::{
    ExecData, ExecTaskResponse, ExecTaskStreamingRequest, ExecTaskStreamingResponse, ExitResult,
};
use crate::error::Failure;

/// The most that is kept of each output of a command that is answered in one piece; what is beyond is dropped.
const KEPT: usize = 4 << 20;

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Inside this task.
    pub task: String,
    /// The program and its arguments; never empty.
    pub line: Vec<String>,
    /// On a terminal: there is one output then.
    pub terminal: bool,
}

/// What reaches a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Bytes for its standard input.
    Data(Vec<u8>),
    /// Its standard input ends.
    End,
    /// Its terminal has this size from now on.
    Size {
        /// Lines.
        height: u16,
        /// Columns.
        width: u16,
    },
}

/// What comes of a command.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Bytes of its standard output, or of its terminal.
    Stdout(Vec<u8>),
    /// Bytes of its standard error.
    Stderr(Vec<u8>),
    /// Its standard output has ended.
    StdoutEnd,
    /// Its standard error has ended.
    StderrEnd,
    /// It has ended: the last that is said. What had not ended before has with it.
    Exited(ExitResult),
}

/// What is typed from now on, as one message after the other says.
pub type Inputs = BoxStream<'static, Input>;
/// What a driver answers. To drop it is to end the command.
pub type Outputs = BoxStream<'static, Result<Output, Failure>>;

/// Reads the first message of a stream, and the others as they come. The end of the stream is the end of the input.
pub(crate) async fn asked(mut said: Streaming<ExecTaskStreamingRequest>) -> Result<(Command, Inputs), Status> {
    let setup = said.message().await?.and_then(|first| first.setup);
    let setup = setup.ok_or_else(|| Status::invalid_argument("the first message does not say what is to be run"))?;
    if setup.command.is_empty() {
        return Err(Status::invalid_argument("there is no command to run"));
    }
    let command = Command { task: setup.task_id, line: setup.command, terminal: setup.tty };
    let inputs = said.map(|message| message.map_or_else(|_| vec![Input::End], inputs));
    Ok((command, inputs.flat_map(futures::stream::iter).boxed()))
}

fn inputs(message: ExecTaskStreamingRequest) -> Vec<Input> {
    let size = message.tty_size.map(|size| {
        let fit = |number: i32| u16::try_from(number.max(0)).unwrap_or(u16::MAX);
        Input::Size { height: fit(size.height), width: fit(size.width) }
    });
    let ExecData { data, close } = message.stdin.unwrap_or_default();
    let data = Some(data).filter(|data| !data.is_empty()).map(Input::Data);
    [size, data, close.then_some(Input::End)].into_iter().flatten().collect()
}

/// What a driver answers, as agents expect it: each output is closed, and the last message says how the command ended.
pub(crate) fn answered(
    outputs: Outputs,
    terminal: bool,
) -> impl futures::Stream<Item = Result<ExecTaskStreamingResponse, Status>> + Send + 'static {
    let state = Answers { outputs, open: (true, !terminal), next: VecDeque::new(), over: false };
    futures::stream::unfold(state, |mut state| async move { Some((state.next().await?, state)) })
}

struct Answers {
    outputs: Outputs,
    /// Whether more may come of the two outputs.
    open: (bool, bool),
    next: VecDeque<Result<ExecTaskStreamingResponse, Status>>,
    over: bool,
}

impl Answers {
    async fn next(&mut self) -> Option<Result<ExecTaskStreamingResponse, Status>> {
        loop {
            if let Some(next) = self.next.pop_front() {
                return Some(next);
            }
            if self.over {
                return None;
            }
            let said = self.outputs.next().await;
            self.take(said.unwrap_or_else(|| Err(Failure::recoverable("it is not known how the command ended"))));
        }
    }

    fn take(&mut self, said: Result<Output, Failure>) {
        let data = |data| Some(ExecData { data, close: false });
        match said {
            Ok(Output::Stdout(bytes)) => self.say(data(bytes), None),
            Ok(Output::Stderr(bytes)) => self.say(None, data(bytes)),
            Ok(Output::StdoutEnd) => self.close_stdout(),
            Ok(Output::StderrEnd) => self.close_stderr(),
            Ok(Output::Exited(result)) => {
                self.close_stdout();
                self.close_stderr();
                let last = ExecTaskStreamingResponse { exited: true, result: Some(result), ..Default::default() };
                self.next.push_back(Ok(last));
                self.over = true;
            }
            Err(failure) => {
                self.next.push_back(Err(failure.into()));
                self.over = true;
            }
        }
    }

    fn say(&mut self, stdout: Option<ExecData>, stderr: Option<ExecData>) {
        self.next.push_back(Ok(ExecTaskStreamingResponse { stdout, stderr, ..Default::default() }));
    }

    fn close_stdout(&mut self) {
        if std::mem::take(&mut self.open.0) {
            self.say(Some(ExecData { data: Vec::new(), close: true }), None);
        }
    }

    fn close_stderr(&mut self) {
        if std::mem::take(&mut self.open.1) {
            self.say(None, Some(ExecData { data: Vec::new(), close: true }));
        }
    }
}

/// What a driver answers, in one piece. A command that has not ended after `timeout` is ended.
pub(crate) async fn whole(outputs: Outputs, timeout: Option<Duration>) -> Result<ExecTaskResponse, Failure> {
    let gathered = gather(outputs);
    match timeout {
        None => gathered.await,
        Some(timeout) => tokio::time::timeout(timeout, gathered)
            .await
            .unwrap_or_else(|_| Err(Failure::recoverable(format!("the command has not ended after {timeout:?}")))),
    }
}

async fn gather(mut outputs: Outputs) -> Result<ExecTaskResponse, Failure> {
    let mut answer = ExecTaskResponse::default();
    let keep = |kept: &mut Vec<u8>, bytes: Vec<u8>| {
        let room = KEPT.saturating_sub(kept.len());
        kept.extend(bytes.into_iter().take(room));
    };
    while let Some(said) = outputs.next().await {
        match said? {
            Output::Stdout(bytes) => keep(&mut answer.stdout, bytes),
            Output::Stderr(bytes) => keep(&mut answer.stderr, bytes),
            Output::StdoutEnd | Output::StderrEnd => {}
            Output::Exited(result) => return Ok(ExecTaskResponse { result: Some(result), ..answer }),
        }
    }
    Err(Failure::recoverable("it is not known how the command ended"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(said: Vec<Result<Output, Failure>>) -> Outputs {
        futures::stream::iter(said).boxed()
    }

    /// What an agent hears, in short.
    async fn heard(said: Vec<Result<Output, Failure>>, terminal: bool) -> Vec<String> {
        let one = |answer: Result<ExecTaskStreamingResponse, Status>| match answer {
            Err(status) => format!("error: {}", status.message()),
            Ok(ExecTaskStreamingResponse { exited: true, result, .. }) => format!("exit {}", result.unwrap().exit_code),
            Ok(ExecTaskStreamingResponse { stdout, stderr, .. }) => {
                let (name, data) = stdout.map(|data| ("out", data)).or(stderr.map(|data| ("err", data))).unwrap();
                if data.close {
                    format!("{name} end")
                } else {
                    format!("{name} {}", String::from_utf8_lossy(&data.data))
                }
            }
        };
        answered(outputs(said), terminal).map(one).collect().await
    }

    #[tokio::test]
    async fn every_output_is_closed_and_the_exit_is_said_last() {
        let exit = || Ok(Output::Exited(ExitResult { exit_code: 43, ..ExitResult::default() }));
        let said =
            vec![Ok(Output::Stdout(b"a".into())), Ok(Output::StdoutEnd), Ok(Output::Stderr(b"b".into())), exit()];
        assert_eq!(heard(said, false).await, ["out a", "out end", "err b", "err end", "exit 43"]);
        assert_eq!(heard(vec![exit(), Ok(Output::StdoutEnd)], true).await, ["out end", "exit 43"]);
        assert_eq!(heard(vec![], true).await, ["error: it is not known how the command ended"]);
        let broken = vec![Err(Failure::recoverable("broken")), exit()];
        assert_eq!(heard(broken, false).await, ["error: broken"]);
    }

    #[tokio::test]
    async fn what_is_answered_in_one_piece_is_bounded() {
        let much =
            vec![Ok(Output::Stdout(vec![0; KEPT])), Ok(Output::Stdout(vec![1])), Ok(Output::Stderr(b"x".into()))];
        let end = vec![Ok(Output::Exited(ExitResult::default()))];
        let answer = whole(outputs(much.into_iter().chain(end).collect()), None).await.unwrap();
        assert_eq!((answer.stdout.len(), answer.stderr.len()), (KEPT, 1));
        let never = futures::stream::pending().boxed();
        let late = whole(never, Some(Duration::from_millis(1))).await.unwrap_err();
        assert!(late.message.contains("has not ended"), "{late}");
    }
}
