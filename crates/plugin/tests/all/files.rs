//! Open files: the plugin takes what the system allows, and programs that it starts have what it was given.

use std::process::Command;

use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{ExecTaskRequest, StartTaskRequest};
use serde_json::json;

use crate::agent::{Agent, PROGRAM};
use crate::host::{Clients, Process};

/// The two limits, as the kernel tells them.
fn limits(text: &str) -> (String, String) {
    let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut fields = line.split_whitespace().skip(3).map(str::to_owned);
    (fields.next().unwrap(), fields.next().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_takes_the_files_it_may_have_and_gives_them_to_nobody() {
    let agent = Agent::start().await;
    let mut few = Command::new("sh");
    few.args(["-c", "ulimit -S -n 64; exec \"$0\"", PROGRAM]);
    let process = Process::of(few, &[]);
    let own = limits(&std::fs::read_to_string(format!("/proc/{}/limits", process.pid())).unwrap());
    assert_eq!(own.0, own.1, "as many as there are");
    assert_ne!(own.0, "64");

    let mut clients = Clients::new(process.connect().await);
    let task = agent.task("files", &json!({"vcpus": 1})).unwrap();
    clients.driver.start_task(StartTaskRequest { task: Some(task) }).await.unwrap();
    let command = ExecTaskRequest { task_id: "files".into(), command: vec!["files".into()], timeout: None };
    let answer = clients.driver.exec_task(command).await.unwrap().into_inner();
    let started = limits(&String::from_utf8(answer.stdout).unwrap());
    assert_eq!(started, ("64".to_owned(), own.1));
}
