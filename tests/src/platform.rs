//! A running platform in a directory of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

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

    /// As [`Platform::start`], in a network namespace of its own that has nothing but loopback; `None` where this machine or
    /// user has none to give. What it serves is reached by [`Platform::inside`].
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_alone(dir: &Path, flags: &[&str]) -> anyhow::Result<Option<Self>> {
        let Some(own) = networks() else { return Ok(None) };
        let mut command = Command::new("unshare");
        let script = format!("set -e; {LOOPBACK}; exec \"$0\" \"$@\"");
        command.args([own, "sh", "-c", &script]).arg(crate::binary());
        Self::launch(command, dir, flags, &[], Stdio::inherit()).map(Some)
    }

    /// A command in the network of this platform, whoever started it.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid().to_string(), "-n"]);
        if !rustix::process::geteuid().is_root() {
            command.args(["-U", "--preserve-credentials"]);
        }
        command.arg(program);
        command
    }

    /// As [`Platform::start`], with further variables in its environment.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_with(dir: &Path, flags: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::launch(Command::new(crate::binary()), dir, flags, env, Stdio::inherit())
    }

    /// As [`Platform::start`], in a session of its own, as under a service manager: the kernel shares the cores between sessions
    /// before it shares them between processes, so what a client takes is not taken from the platform.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_apart(dir: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        // Becomes the platform: same process, same number.
        let mut command = Command::new("setsid");
        command.arg(crate::binary());
        Self::launch(command, dir, flags, &[], Stdio::inherit())
    }

    /// As [`Platform::start`], as `nohup` starts it.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_nohup(dir: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new("nohup");
        command.arg(crate::binary());
        Self::launch(command, dir, flags, &[], Stdio::inherit())
    }

    /// As another user, who may run the binary and owns `dir`.
    ///
    /// # Errors
    /// As [`Platform::start`].
    pub fn start_as(user: u32, dir: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        Self::launch(as_user(user), dir, flags, &[], Stdio::inherit())
    }

    /// As [`Platform::start_as`], begun in a control group.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_in(group: &Path, user: u32, dir: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec \"$@\""]).arg(group);
        let inside = as_user(user);
        command.arg(inside.get_program()).args(inside.get_args());
        Self::launch(command, dir, flags, &[], Stdio::inherit())
    }

    /// What `sidereal logs` has of an app, as soon as `wanted` is in it: a line comes to the platform after its call has ended.
    ///
    /// # Errors
    /// With what there is instead.
    pub fn logged(&self, args: &[&str], wanted: &str) -> anyhow::Result<String> {
        let mut said = String::new();
        let args = [&["logs"], args].concat();
        let there = until(LEAST, || {
            said = self.cli(&args).map_or_else(|cause| cause.to_string(), |out| text(&out));
            said.contains(wanted)
        });
        there.with_context(|| format!("`{wanted}` is not in {said}"))?;
        Ok(said)
    }

    /// As [`Platform::start`], with its log somewhere else.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_logging(dir: &Path, flags: &[&str], log: Stdio) -> anyhow::Result<Self> {
        Self::launch(Command::new(crate::binary()), dir, flags, &[], log)
    }

    /// As [`Platform::start_logging`], with further variables in its environment.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_telling(dir: &Path, flags: &[&str], env: &[(&str, &str)], log: Stdio) -> anyhow::Result<Self> {
        Self::launch(Command::new(crate::binary()), dir, flags, env, log)
    }

    fn launch(
        mut command: Command,
        dir: &Path,
        flags: &[&str],
        env: &[(&str, &str)],
        log: Stdio,
    ) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let unless = |flag: &'static str| (!flags.contains(&flag)).then_some([flag, "127.0.0.1:0"]);
        let listen = ["--listen", "--api-listen", "--metrics-listen"].into_iter().filter_map(unless).flatten();
        let mut child = command
            .args(["up", "-o", "json"])
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
        if let Some(fault) = crate::envelope::fault(&envelope) {
            bail!("`sidereal {}` prints no envelope: {fault}", args.join(" "));
        }
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

/// Brings up loopback, which is down in a new network: what `ip link set lo up` does, which not every machine has.
const LOOPBACK: &str = "python3 -c 'import fcntl, socket, struct; \
    fcntl.ioctl(socket.socket(), 0x8914, struct.pack(\"16sH22x\", b\"lo\", 0x41))'";

/// The flag of `unshare` that gives a process a network of its own, where this machine does.
fn networks() -> Option<&'static str> {
    let works = |flag: &&str| {
        Command::new("unshare").args([*flag, "sh", "-c", LOOPBACK]).output().is_ok_and(|o| o.status.success())
    };
    ["-n", "-rn"].into_iter().find(works)
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

/// What a command printed to standard output.
fn text(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned()
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

/// Whether the control group of a host of this tenant has less than the usual weight beside others; `None` where it is in no group
/// that has one.
pub fn set_aside(host: u32, tenant: &str) -> Option<bool> {
    let groups = std::fs::read_to_string(format!("/proc/{host}/cgroup")).ok()?;
    // With version 2 its processes are one further down.
    let lines = groups.lines().map(|line| line.trim_end_matches("/own"));
    let ours = lines.filter(|line| line.ends_with(&format!(".tenant.{tenant}")));
    let mut weights = ours.filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let dir = Path::new("/sys/fs/cgroup").join(controllers).join(path.trim_start_matches('/'));
        let of = |file: &str| std::fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
        of("cpu.shares").map(|shares| shares < 1024).or_else(|| of("cpu.weight").map(|weight| weight < 100))
    });
    weights.next()
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

/// The processes that run `program`, an external provider, for the platform whose process is `of`.
pub fn programs(of: u32, program: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let parent = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok())
    };
    pids.filter(|pid| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        // The two of ours between have the program's name in their arguments.
        let is = command.contains(program) && !command.contains("--program");
        is && parent(*pid).and_then(parent).and_then(parent) == Some(of)
    })
    .collect()
}

/// How many times as long as on a machine of its own something may take on one that is slow and does other things as well.
const SLOW: u32 = 4;
/// The least that is waited there: such a machine stands still for seconds.
const LEAST: Duration = Duration::from_secs(60);

/// Waits until something is so that is so within this time on a machine of its own.
///
/// # Errors
/// When it is not within [`SLOW`] times that and [`LEAST`], or more where [`crate::patience`] says so.
pub fn until(within: Duration, mut so: impl FnMut() -> bool) -> anyhow::Result<()> {
    let within = (within * SLOW).max(LEAST) * crate::patience();
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
