//! The program under test: this one, started through both stages, and what a test sees of it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use sandbox::inner::Files;
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
    let mut own = Vec::new();
    if args[2] == "files" {
        for _ in 0..2 {
            let [folder] = handoff::receive(stdin.as_fd()).unwrap();
            own.push(folder);
        }
    }
    let folders: Vec<_> = own.iter().zip([false, true]).map(|(folder, writable)| (folder.as_fd(), writable)).collect();
    let role = if folders.is_empty() { Role::Host } else { Role::Folders };
    if let Err(cause) = inner::enter(&spec, role, Files { readable: Some(folder.as_fd()), folders: &folders }) {
        fail(&cause);
    }
    match args[2].as_str() {
        "files" => files(&own[0], &own[1]),
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

/// Everything a component could ask for in the folders it was given, and around them, with the kernel's answers.
fn files(readable: &OwnedFd, writable: &OwnedFd) {
    use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
    let answer = |what: &str, said: rustix::io::Result<()>| {
        println!("{what}: {}", said.err().map_or_else(|| "done".to_owned(), |cause| cause.to_string()));
    };
    let open = |folder: &OwnedFd, name: &str, flags: OFlags| {
        rustix::fs::openat(folder, name, flags | OFlags::CLOEXEC, Mode::from(0o666)).map(drop)
    };
    let (read, write) = (OFlags::RDONLY, OFlags::WRONLY | OFlags::CREATE);
    for (which, folder) in [("readable", readable), ("writable", writable)] {
        let answer = |what: &str, said| answer(&format!("{which}: {what}"), said);
        answer("read a file", open(folder, "in", read));
        answer("list", open(folder, ".", read | OFlags::DIRECTORY));
        let own = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(folder));
        let opened = rustix::fs::openat(CWD, own, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        answer("open it by its name", opened.map(drop));
        answer("make a file", open(folder, "new", write));
        answer("write an old one", open(folder, "old", OFlags::WRONLY | OFlags::TRUNC));
        answer("make a folder", rustix::fs::mkdirat(folder, "sub", Mode::from(0o777)));
        answer("rename", rustix::fs::renameat_with(folder, "old", folder, "sub/old", RenameFlags::empty()));
        answer("make a link", rustix::fs::symlinkat("/etc/passwd", folder, "link"));
        answer("remove", rustix::fs::unlinkat(folder, "sub/old", AtFlags::empty()));
        // None of what follows is for a component.
        answer("follow a link out", open(folder, "link", read));
        answer("follow a link that was there", open(folder, "out", read));
        answer("read above", open(folder, "../secret", read));
        answer("write above", open(folder, "../new", write));
        answer("list above", open(folder, "..", read | OFlags::DIRECTORY));
        answer("make a pipe", rustix::fs::mknodat(folder, "pipe", FileType::Fifo, Mode::from(0o666), 0));
        answer("change rights", rustix::fs::chmodat(folder, "in", Mode::from(0o777), AtFlags::empty()));
        answer("read what is the owner's alone", open(folder, "private", read));
    }
    answer("move from one to the other", rustix::fs::renameat(readable, "in", writable, "in"));
    answer("link from one into the other", rustix::fs::linkat(readable, "in", writable, "linked", AtFlags::empty()));
    answer("read the machine", rustix::fs::openat(CWD, "/etc/passwd", read, Mode::empty()).map(drop));
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
    with(spec, what, env, &[])
}

/// With these folders beside the rest.
pub(crate) fn with(spec: &Spec, what: &str, env: &[(&str, &str)], folders: &[fs::File]) -> Confined {
    let (line, theirs) = UnixStream::pair().unwrap();
    crate::hand(&line);
    for folder in folders {
        handoff::send(&line, &[folder.as_fd()]).unwrap();
    }
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
