//! The program under test: this one, started through both stages, and what a test sees of it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use sandbox::syscalls::Role;
use sandbox::{Spec, handoff, inner, outer};

/// Either stage, by its arguments: `stage <spec> <what> [inner]`.
pub(crate) fn run(args: &[String]) {
    let spec = Spec::decode(&args[1]).unwrap();
    if args.len() == 3 {
        let args: Vec<String> = args.iter().cloned().chain(["inner".to_owned()]).collect();
        match outer::run(&spec, &args) {
            Ok(status) => std::process::exit(outer::end_like(status).into()),
            Err(cause) => fail(&cause),
        }
    }
    inner::tie().unwrap();
    let stdin = std::io::stdin();
    let [listener, socket, folder] = handoff::receive(stdin.as_fd()).unwrap();
    if let Err(cause) = inner::enter(&spec, Role::Host, Some(folder.as_fd())) {
        fail(&cause);
    }
    match args[2].as_str() {
        "wait" => {
            println!("ready");
            std::io::stdout().flush().unwrap();
            drop(stdin.lock().read(&mut [0; 1]));
        }
        "stay" => {
            println!("ready");
            std::io::stdout().flush().unwrap();
            loop {
                std::thread::sleep(std::time::Duration::from_secs(60));
            }
        }
        "yield" => std::thread::yield_now(),
        "swell" => {
            let mut taken = Vec::new();
            loop {
                taken.push(vec![1u8; 1 << 20]);
            }
        }
        other => panic!("{other}"),
    }
    drop((listener, socket));
}

fn fail(cause: &sandbox::SandboxError) -> ! {
    eprintln!("{cause}");
    std::process::exit(1);
}

/// A process that was started confined.
pub(crate) struct Confined {
    pub(crate) spec: Spec,
    child: Child,
    out: BufReader<ChildStdout>,
    line: Option<UnixStream>,
}

pub(crate) fn start(spec: &Spec, what: &str, env: &[(&str, &str)]) -> Confined {
    let (line, theirs) = UnixStream::pair().unwrap();
    crate::hand(&line);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["stage", &spec.encode(), what])
        .env_clear()
        .envs(env.iter().copied())
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    Confined { spec: spec.clone(), child, out, line: Some(line) }
}

impl Confined {
    /// Waits until it is confined; false where it ended instead.
    pub(crate) fn ready(&mut self) -> bool {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line == "ready\n"
    }

    /// Everything it wrote.
    pub(crate) fn output(&mut self) -> String {
        let mut text = String::new();
        self.out.read_to_string(&mut text).unwrap();
        text
    }

    /// What it said of its end.
    pub(crate) fn words(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// The second stage.
    pub(crate) fn inner(&self) -> i32 {
        let parent = self.child.id().to_string();
        let children =
            fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mut children = children.filter(|pid: &i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some(parent.as_str()))
        });
        children.next().expect("the second stage runs")
    }

    pub(crate) fn hang_up(&mut self) {
        self.line = None;
    }

    pub(crate) fn ended(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            let ended = self.child.wait();
            assert!(ended.is_ok_and(|status| status.signal().is_some() || status.code().is_some()));
        }
    }
}
