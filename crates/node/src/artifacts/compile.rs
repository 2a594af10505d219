//! The compiler child: `exe compile --world p2|p3 --sandbox … --engine …`, the artifact on stdin, compiled code on stdout. The
//! child refuses to compile for another engine than its own, for the name that the code is kept under is what a host said. It
//! confines and limits itself (memory, CPU, files); here its wall time and its output are limited, and its crash is an answer.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::World;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Command;

use crate::confine::{Confinement, Who};

/// Longest time one compilation may take. Far more than the CPU time it has: on a busy machine it waits for its turns, and
/// that is no fault of the component.
const WALL: Duration = Duration::from_secs(600);
/// Largest compiled code, bytes.
const MAX_CODE: u64 = 256 << 20;
/// How much of the child's words is read, bytes.
const MAX_WORDS: u64 = 64 << 10;

/// Why there is no compiled code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The compiler refused the artifact; its last words.
    #[error("{0}")]
    Refused(String),
    /// The compiler was ended by a signal: it crashed or ran into its limit of memory.
    #[error("the compiler was ended by signal {signal} (its limits are memory and CPU time){words}")]
    Crashed {
        /// Which signal.
        signal: i32,
        /// `: ` and the child's last line, if it said anything.
        words: String,
    },
    /// The compiler was killed. That it does not do itself, and its limits end it otherwise: somebody else did, most often the
    /// kernel, where the machine has no memory left.
    #[error("the compiler was killed, as the kernel does where the machine has no memory left")]
    Killed,
    /// The compiler could not be confined, or could not read or write; its last words.
    #[error("the compiler cannot work now: {0}")]
    NotReady(String),
    /// It took too long.
    #[error("compiling took longer than {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The result is too large.
    #[error("the compiled code is larger than {} MiB", .0 >> 20)]
    TooLarge(u64),
    /// The compiler cannot be run at all.
    #[error("the compiler cannot be run: {0}")]
    Spawn(String),
}

#[derive(Debug)]
pub(super) struct Compiler {
    exe: PathBuf,
    confinement: Arc<Confinement>,
    wall: Duration,
    max_code: u64,
}

impl Compiler {
    pub(super) fn new(exe: PathBuf, confinement: Arc<Confinement>) -> Self {
        Self { exe, confinement, wall: WALL, max_code: MAX_CODE }
    }

    pub(super) async fn compile(&self, wasm: Bytes, world: World, engine: &str) -> Result<Vec<u8>, CompileError> {
        let started = std::time::Instant::now();
        let code = tokio::time::timeout(self.wall, self.run(wasm, world, engine)).await;
        tracing::debug!(?world, elapsed = ?started.elapsed(), "compiled");
        // Dropping the child on a timeout kills it.
        code.unwrap_or(Err(CompileError::TimedOut(self.wall)))
    }

    async fn run(&self, wasm: Bytes, world: World, engine: &str) -> Result<Vec<u8>, CompileError> {
        let failed = |cause: std::io::Error| CompileError::Spawn(cause.to_string());
        let spec = self.confinement.spec(Who::Compiler).map_err(failed)?;
        // A socket: the child sees when this process is gone, also while it reads no more.
        let (mut line, theirs) = UnixStream::pair().map_err(failed)?;
        let theirs = theirs.into_std().map_err(failed)?;
        theirs.set_nonblocking(false).map_err(failed)?;
        let mut child = Command::new(&self.exe)
            .args(["compile", "--world", world.as_str(), "--sandbox", &spec.encode(), "--engine", engine])
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let feed = async {
            // A child that stops reading has its reason; its exit tells.
            let fed = async {
                line.write_all(&wasm).await?;
                line.shutdown().await
            };
            if let Err(cause) = fed.await {
                tracing::debug!(%cause, "the compiler stopped reading");
            }
        };
        let stdout = read(child.stdout.take(), self.max_code);
        let stderr = read(child.stderr.take(), MAX_WORDS);
        // A child past its cap is not read any further, so its other streams need not end either.
        let stdout = async {
            let code = stdout.await.map_err(failed)?;
            if code.len() as u64 > self.max_code { Err(CompileError::TooLarge(self.max_code)) } else { Ok(code) }
        };
        let both = async { Ok(tokio::join!(feed, stderr)) };
        let (code, ((), words)) = tokio::try_join!(stdout, both)?;
        let status = child.wait().await.map_err(failed)?;
        drop(line);
        verdict(status, code, &words.unwrap_or_default())
    }
}

/// Reads one byte more than `limit` at most, so that the caller sees when it was reached.
async fn read(source: Option<impl AsyncRead + Unpin>, limit: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(source) = source {
        source.take(limit + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn verdict(status: ExitStatus, code: Vec<u8>, words: &[u8]) -> Result<Vec<u8>, CompileError> {
    let words = last_line(words);
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        if signal == rustix::process::Signal::KILL.as_raw() {
            return Err(CompileError::Killed);
        }
        let words = if words.is_empty() { words } else { format!(": {words}") };
        return Err(CompileError::Crashed { signal, words });
    }
    if !status.success() {
        let words = if words.is_empty() { format!("the compiler ended with {status} and said nothing") } else { words };
        return Err(match status.code() == Some(i32::from(sandbox::NOT_READY)) {
            true => CompileError::NotReady(words),
            false => CompileError::Refused(words),
        });
    }
    if code.is_empty() {
        return Err(CompileError::Refused("the compiler gave no code".into()));
    }
    Ok(code)
}

/// The last line that says something, without control characters and of bounded length.
fn last_line(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(500).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    async fn compile(script: &str, adjust: impl Fn(&mut Compiler)) -> Result<Vec<u8>, CompileError> {
        let dir = tempfile::tempdir().unwrap();
        let exe = dir.path().join("exe");
        std::fs::write(&exe, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&exe, std::fs::Permissions::from_mode(0o700)).unwrap();
        let mut compiler = Compiler::new(exe, Confinement::bare());
        adjust(&mut compiler);
        compiler.compile(Bytes::from(vec![7; 300_000]), World::P2, "ab12").await
    }

    #[tokio::test]
    async fn every_end_of_the_child_is_an_answer() {
        let plain = |_: &mut Compiler| {};
        assert_eq!(compile("exec /bin/cat", plain).await, Ok(vec![7; 300_000]));
        assert_eq!(
            compile("echo \"$1 $2 $3 $4 $6 $7\"", plain).await,
            Ok(b"compile --world p2 --sandbox --engine ab12\n".to_vec())
        );
        assert!(matches!(compile("kill -SEGV $$", plain).await, Err(CompileError::Crashed { signal: 11, .. })));
        assert_eq!(compile("kill -KILL $$", plain).await, Err(CompileError::Killed));
        // What it says of itself by its exit code, and not what its words are: those may be a component's.
        let words = "sandbox layer refused: net: making a network namespace: no space left";
        let not_ready = compile(&format!("echo '{words}' >&2; exit {}", sandbox::NOT_READY), plain).await;
        assert_eq!(not_ready, Err(CompileError::NotReady(words.into())));
        let said = compile(&format!("echo '{words}' >&2; exit 1"), plain).await;
        assert_eq!(said, Err(CompileError::Refused(words.into())));
        let refused = compile("echo first >&2; echo 'not a component' >&2; exit 1", plain).await;
        assert_eq!(refused, Err(CompileError::Refused("not a component".into())));
        assert!(matches!(compile("exit 0", plain).await, Err(CompileError::Refused(_))));
        let wall = Duration::from_millis(200);
        let slow = compile("exec /bin/sleep 60", |compiler| compiler.wall = wall).await;
        assert_eq!(slow, Err(CompileError::TimedOut(wall)));
        let endless = compile("exec /bin/cat /dev/zero", |compiler| compiler.max_code = 1 << 20).await;
        assert_eq!(endless, Err(CompileError::TooLarge(1 << 20)));
        let shout = compile("exec /bin/cat /dev/zero >&2", |compiler| compiler.wall = Duration::from_secs(5)).await;
        assert!(shout.is_err());
        assert!(matches!(
            Compiler::new("/nowhere".into(), Confinement::bare()).compile(Bytes::new(), World::P3, "ab12").await,
            Err(CompileError::Spawn(_))
        ));
    }

    #[tokio::test]
    async fn nothing_of_the_environment_is_inherited() {
        // `env` of the child: what the shell itself adds is PWD and such, never ours.
        let seen = String::from_utf8(compile("exec /usr/bin/env", |_| {}).await.unwrap()).unwrap();
        assert!(!seen.contains("CARGO") && !seen.contains("RUST_BACKTRACE") && !seen.contains("HOME="), "{seen}");
    }

    #[test]
    fn the_last_words_are_one_clean_line() {
        assert_eq!(
            last_line(b"thread panicked\nError: invalid component\x1b[0m at 0x10\n\n  \n"),
            "Error: invalid component[0m at 0x10"
        );
        assert_eq!(last_line(b""), "");
        assert_eq!(last_line(&[b'x'; 4000]).len(), 500);
    }
}
