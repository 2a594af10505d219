//! Commands inside a task, as agents ask for them: a stream for a person, one answer for the agent.

use std::time::Duration;

use futures::StreamExt as _;
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::exec_task_streaming_request::{Setup, TerminalSize};
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{
    ExecData, ExecTaskRequest, ExecTaskStreamingRequest, ExecTaskStreamingResponse,
};
use serde_json::json;
use tokio::sync::mpsc;
use tonic::Code;

use crate::agent::Agent;

fn setup(task: &str, command: &[&str], tty: bool) -> ExecTaskStreamingRequest {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    ExecTaskStreamingRequest { setup: Some(Setup { task_id: task.into(), command, tty }), ..Default::default() }
}

fn typed(text: &str, close: bool) -> ExecTaskStreamingRequest {
    let stdin = Some(ExecData { data: text.into(), close });
    ExecTaskStreamingRequest { stdin, ..Default::default() }
}

/// A message in short.
fn heard(message: &ExecTaskStreamingResponse) -> String {
    let one = |name: &str, data: &ExecData| match data.close {
        true => format!("{name} end"),
        false => format!("{name} {}", String::from_utf8_lossy(&data.data)),
    };
    match (&message.stdout, &message.stderr, &message.result) {
        (Some(data), None, None) => one("out", data),
        (None, Some(data), None) => one("err", data),
        (None, None, Some(result)) if message.exited => format!("exit {}", result.exit_code),
        _ => panic!("{message:?}"),
    }
}

async fn agent() -> Agent {
    let mut agent = Agent::start().await;
    let task = agent.task("task", &json!({"vcpus": 1})).unwrap();
    agent.start_task(&task).await.unwrap();
    agent
}

/// What is typed comes back, one after the other, while the stream is open; then its end and how the command ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_answers_while_it_is_typed_to() {
    let mut agent = agent().await;
    let (say, said) = mpsc::unbounded_channel();
    let said = futures::stream::unfold(said, |mut said| async move { Some((said.recv().await?, said)) });
    say.send(setup("task", &["echo", "hello"], false)).unwrap();
    let mut answers = agent.clients.driver.exec_task_streaming(said).await.unwrap().into_inner();
    let mut next = async || heard(&answers.message().await.unwrap().unwrap());
    assert_eq!(next().await, "err hello");
    for word in ["one", "two"] {
        say.send(typed(word, false)).unwrap();
        assert_eq!(next().await, format!("out {word}"));
    }
    say.send(typed("three", true)).unwrap();
    for wanted in ["out three", "out end", "err end", "exit 0"] {
        assert_eq!(next().await, wanted);
    }
    assert!(answers.message().await.unwrap().is_none(), "the exit is the last that is said");
}

/// On a terminal there is one output, and its size is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_has_a_size_and_one_output() {
    let mut agent = agent().await;
    let size = TerminalSize { height: 40, width: 100 };
    let size = ExecTaskStreamingRequest { tty_size: Some(size), ..Default::default() };
    let said = futures::stream::iter([setup("task", &["echo", "hello"], true), size, typed("", true)]);
    let answers = agent.clients.driver.exec_task_streaming(said).await.unwrap().into_inner();
    let heard: Vec<String> = answers.map(|message| heard(&message.unwrap())).collect().await;
    assert_eq!(heard, ["out hello", "out 40 100", "out end", "exit 0"]);
}

/// In one answer: both outputs and the exit code; a command that does not end is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_gets_one_answer() {
    let mut agent = agent().await;
    let ask = |words: &[&str], timeout: Option<Duration>| ExecTaskRequest {
        task_id: "task".into(),
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        timeout: timeout.map(|timeout| timeout.try_into().unwrap()),
    };
    let driver = &mut agent.clients.driver;
    let answer = driver.exec_task(ask(&["echo", "a", "b"], Some(Duration::ZERO))).await.unwrap().into_inner();
    assert_eq!((answer.stdout, answer.stderr, answer.result.unwrap().exit_code), (vec![], b"a b".to_vec(), 0));
    let answer = driver.exec_task(ask(&["exit", "43"], None)).await.unwrap().into_inner();
    assert_eq!(answer.result.unwrap().exit_code, 43);
    let late = driver.exec_task(ask(&["wait"], Some(Duration::from_millis(20)))).await.unwrap_err();
    assert!(late.message().contains("has not ended after 20ms"), "{late}");
}

/// What cannot be run is refused with the reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_cannot_be_is_refused() {
    let mut agent = agent().await;
    for (first, code) in [
        (typed("x", false), Code::InvalidArgument),
        (setup("task", &[], false), Code::InvalidArgument),
        (setup("other", &["echo"], false), Code::NotFound),
        (setup("task", &["vim"], false), Code::FailedPrecondition),
    ] {
        let refused = agent.clients.driver.exec_task_streaming(futures::stream::iter([first.clone()])).await;
        assert_eq!(refused.unwrap_err().code(), code, "{first:?}");
    }
}
