//! A running platform in a directory of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::http::{self, Answer};

/// `sidereal up` in a directory of its own; stopped when dropped.
pub struct Platform {
    child: Child,
    dir: PathBuf,
    /// The ingress.
    pub ingress: SocketAddr,
    /// Process start to its ready line.
    pub ready: Duration,
    /// The ready line's data.
    pub info: serde_json::Value,
}

impl Platform {
    /// Starts the platform and waits for its ready line.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start(dir: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        Self::launch(Command::new(crate::binary()), dir, flags, &[], Stdio::inherit())
    }

    /// As [`Platform::start`], in a mount namespace of its own that the shell script `setup` has prepared. Its files as it
    /// sees them are below `/proc/PID/root`.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_mounted(dir: &Path, flags: &[&str], setup: &str) -> anyhow::Result<Self> {
        let own = mounts().context("this machine gives no private mounts")?;
        let mut command = Command::new("unshare");
        command.args([own, "sh", "-c", &format!("set -e; {setup}; exec \"$0\" \"$@\"")]).arg(crate::binary());
        Self::launch(command, dir, flags, &[], Stdio::inherit())
    }

    /// As [`Platform::start`], with further variables in its environment.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_with(dir: &Path, flags: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::launch(Command::new(crate::binary()), dir, flags, env, Stdio::inherit())
    }

    /// As another user, who may run the binary and owns `dir`.
    ///
    /// # Errors
    /// As [`Platform::start`].
    pub fn start_as(user: u32, dir: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        Self::launch(as_user(user), dir, flags, &[], Stdio::inherit())
    }

    /// As [`Platform::start`], with its log somewhere else.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_logging(dir: &Path, flags: &[&str], log: Stdio) -> anyhow::Result<Self> {
        Self::launch(Command::new(crate::binary()), dir, flags, &[], log)
    }

    fn launch(
        mut command: Command,
        dir: &Path,
        flags: &[&str],
        env: &[(&str, &str)],
        log: Stdio,
    ) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let listen: &[&str] = if flags.contains(&"--listen") { &[] } else { &["--listen", "127.0.0.1:0"] };
        let mut child = command
            .args(["up", "-o", "json", "--api-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"])
            .args(listen)
            .args(flags)
            .envs(env.iter().copied())
            .env("SIDEREAL_DATA_DIR", dir)
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("cannot start the platform")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("no stdout")?;
        let mut reader = BufReader::new(stdout);
        reader.read_line(&mut line)?;
        let ready = begun.elapsed();
        let envelope: serde_json::Value = match serde_json::from_str(&line) {
            Ok(value) => value,
            Err(cause) => {
                let status = child.wait()?;
                bail!("no ready line ({cause}): `{}`, exit {status}", line.trim());
            }
        };
        let info = envelope.get("data").cloned().unwrap_or_default();
        let Some(ingress) = info.get("ingress").and_then(|i| i.as_str()).and_then(|i| i.parse().ok()) else {
            let status = child.wait()?;
            bail!("not ready: {envelope}, exit {status}");
        };
        // Whatever else it prints must not block it.
        std::thread::spawn(move || reader.lines().map_while(Result::ok).for_each(drop));
        Ok(Self { child, dir: dir.to_owned(), ingress, ready, info })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs a command against it.
    ///
    /// # Errors
    /// When the command cannot be started.
    pub fn cli(&self, args: &[&str]) -> anyhow::Result<Output> {
        cli(&self.dir, args)
    }

    /// Runs a command that must succeed; the `data` of its envelope.
    ///
    /// # Errors
    /// When it fails; with everything it printed.
    pub fn ok(&self, args: &[&str]) -> anyhow::Result<serde_json::Value> {
        let out = self.cli(&[args, &["-o", "json"]].concat())?;
        let stdout = String::from_utf8_lossy(&out.stdout);
        if !out.status.success() {
            bail!(
                "`sidereal {}` failed ({}): {stdout}{}",
                args.join(" "),
                out.status,
                String::from_utf8_lossy(&out.stderr)
            );
        }
        let line = stdout.lines().last().unwrap_or_default();
        let envelope: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("no envelope: {stdout}"))?;
        Ok(envelope.get("data").cloned().unwrap_or_default())
    }

    /// Keeps a secret, its value given by stdin.
    ///
    /// # Errors
    /// When the command fails.
    pub fn secret(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let mut set = Command::new(crate::binary())
            .args(["secret", "set", name])
            .env("SIDEREAL_DATA_DIR", &self.dir)
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        std::io::Write::write_all(&mut set.stdin.take().context("no stdin")?, value.as_bytes())?;
        anyhow::ensure!(set.wait()?.success(), "the secret was not kept");
        Ok(())
    }

    /// `GET` through the ingress.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn get(&self, host: &str, path: &str) -> anyhow::Result<Answer> {
        http::get(self.ingress, host, path)
    }

    /// The pids of its hosts: of the processes that are confined, each the child of one that started it.
    pub fn hosts(&self) -> Vec<u32> {
        children(self.child.id(), "host").into_iter().flat_map(|first| children(first, "host")).collect()
    }

    /// Ends a process by signal.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn signal(pid: u32, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a pid")?;
        kill_process(pid, signal).context("cannot signal")
    }

    /// Kills it without warning and waits until it and its hosts are gone.
    ///
    /// # Errors
    /// When it cannot be killed, or a host outlives it.
    pub fn kill(mut self) -> anyhow::Result<()> {
        let hosts = self.hosts();
        self.child.kill()?;
        self.child.wait()?;
        until(Duration::from_secs(10), || hosts.iter().all(|pid| !alive(*pid))).context("a host outlived the platform")
    }

    /// Asks it to stop and waits.
    ///
    /// # Errors
    /// When it does not end by itself.
    pub fn stop(&mut self, within: Duration) -> anyhow::Result<std::process::ExitStatus> {
        Self::signal(self.child.id(), Signal::TERM)?;
        self.ended(within)
    }

    /// Waits until it ended by itself.
    ///
    /// # Errors
    /// When it does not.
    pub fn ended(&mut self, within: Duration) -> anyhow::Result<std::process::ExitStatus> {
        let mut status = None;
        until(within, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })?;
        status.context("no status")
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.stop(Duration::from_secs(20)).is_err() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// The flag of `unshare` that gives a process mounts of its own, where this machine does.
pub fn mounts() -> Option<&'static str> {
    let works = |flag: &&str| Command::new("unshare").args([flag, "true"]).output().is_ok_and(|o| o.status.success());
    ["-m", "-rm"].into_iter().find(works)
}

/// Runs a command with `dir` as its data directory.
///
/// # Errors
/// When it cannot be started.
pub fn cli(dir: &Path, args: &[&str]) -> anyhow::Result<Output> {
    Command::new(crate::binary())
        .args(args)
        .env("SIDEREAL_DATA_DIR", dir)
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .output()
        .context("cannot run the binary")
}

/// Runs a command with `dir` as its data directory and `input` on its stdin.
///
/// # Errors
/// When it cannot be started.
pub fn feed(dir: &Path, args: &[&str], input: &[u8]) -> anyhow::Result<Output> {
    let mut child = Command::new(crate::binary())
        .args(args)
        .env("SIDEREAL_DATA_DIR", dir)
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run the binary")?;
    // A command that refuses early does not read it all.
    drop(child.stdin.take().context("no stdin")?.write_all(input));
    Ok(child.wait_with_output()?)
}

/// Whether a process runs; one that ended and was not reaped does not.
pub fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

/// The binary, run by another user without any right.
pub fn as_user(user: u32) -> Command {
    let id = user.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
    command.arg(crate::binary());
    command
}

/// The children of a process that run our binary's `subcommand`.
pub fn children(of: u32, subcommand: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            parent == Some(of) && command.split(|b| *b == 0).nth(1) == Some(subcommand.as_bytes())
        })
        .collect()
}

/// Waits until something is so.
///
/// # Errors
/// When it is not within the time.
pub fn until(within: Duration, mut so: impl FnMut() -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + within;
    while !so() {
        if Instant::now() > end {
            bail!("it did not happen within {within:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Writes an app that serves one guest on `<name>.localhost`.
///
/// # Errors
/// When it cannot be written.
pub fn write_app(dir: &Path, name: &str, guest: &str, rest: &str) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::copy(crate::guest(guest), dir.join("component.wasm"))?;
    let text = format!(
        "schema = 1\nname = \"{name}\"\n\n[components.main]\nsource = \"component.wasm\"\n{rest}\n\n[[routes]]\nhost = \"{name}.localhost\"\npath = \"/\"\ncomponent = \"main\"\n"
    );
    std::fs::write(dir.join("app.toml"), text)?;
    Ok(())
}
