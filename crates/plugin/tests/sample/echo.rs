//! What runs "inside" a task: nothing but an echo. `echo` says what it is told, `exit N` ends with that code, `wait` never
//! does, `files` says how many files a program that the driver starts may have open, and any other program is not there.

use futures::StreamExt as _;
use futures::stream::BoxStream;
use plugin::Failure;
use plugin::driver::{Command, ExitResult, Input, Inputs, Output, Outputs};

/// Runs it.
pub fn run(command: Command, inputs: Inputs) -> Result<Outputs, Failure> {
    let words: Vec<&str> = command.line.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["echo", rest @ ..] => Ok(echo(rest.join(" "), command.terminal, inputs)),
        ["exit", code] => {
            let code = code.parse().map_err(|_| Failure::unrecoverable(format!("`{code}` is no exit code")))?;
            let exited = Output::Exited(ExitResult { exit_code: code, ..ExitResult::default() });
            Ok(futures::stream::iter([Ok(exited)]).boxed())
        }
        ["files"] => files().map_err(|cause| Failure::recoverable(format!("no program can be started: {cause}"))),
        ["wait"] => Ok(futures::stream::pending().boxed()),
        _ => Err(Failure::unrecoverable(format!("there is no program `{}` in the task", words.join(" ")))),
    }
}

/// First its words, on standard error where there is one; then whatever comes, until its input ends.
fn echo(words: String, terminal: bool, inputs: Inputs) -> BoxStream<'static, Result<Output, Failure>> {
    let first = if terminal { Output::Stdout(words.into()) } else { Output::Stderr(words.into()) };
    let said = inputs.map(|input| match input {
        Input::Data(bytes) => Output::Stdout(bytes),
        Input::Size { height, width } => Output::Stdout(format!("{height} {width}").into()),
        Input::End => Output::Exited(ExitResult::default()),
    });
    futures::stream::iter([first]).chain(said).map(Ok).boxed()
}

/// A driver takes as many files as there are, and hands that on to nobody who has not asked for it.
fn files() -> std::io::Result<Outputs> {
    let mut child = std::process::Command::new("sleep").arg("600").spawn()?;
    let given = plugin::files::give_back(child.id());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id()));
    child.kill()?;
    child.wait()?;
    given?;
    let said = [Output::Stdout(limits?.into_bytes()), Output::Exited(ExitResult::default())];
    Ok(futures::stream::iter(said.map(Ok)).boxed())
}
