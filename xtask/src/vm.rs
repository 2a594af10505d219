//! Tests on a machine that this one may not be: Debian's kernel in QEMU, where every controller is in the one tree of control
//! groups of version 2, as today's distributions have it, and where an ordinary user has nothing but what was given to him.
//! Its files are this machine's own, for reading; what is written there is in its memory, and gone with it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::packages::{self, Need};
use crate::servers::Archive;

/// What is asked for.
#[derive(clap::Args)]
pub struct Wanted {
    /// Minutes until it is given up.
    #[arg(long, default_value_t = 40)]
    minutes: u64,
    /// Computes every instruction, also where this machine could run the other one beside itself: 10 to 20 times slower.
    #[arg(long)]
    emulated: bool,
    /// The folder of a crate whose tests are run, and which; a choice of all where absent.
    folder: Option<PathBuf>,
    /// What their names contain.
    filters: Vec<String>,
}

/// What is run where nothing is named. As `service`: as root in a group below another one, as a service manager starts services;
/// as `tree`: as root in the root of the tree; as `user`: as an ordinary user in a group that somebody else has.
const CHOICE: &[(&str, &str, &[&str])] = &[
    ("service", "crates/sandbox", &[]),
    ("service", "tests", &["isolation::", "delegated::", "quotas::", "a_process_of_databases_sees"]),
    (
        "service",
        "crates/drivers",
        &[
            "given::",
            "shares::",
            "a_task_that_runs_out",
            "a_task_with_folders",
            "a_program_that_eats",
            "leaves_nothing",
        ],
    ),
    ("tree", "crates/sandbox", &[]),
    ("tree", "tests", &["the_golden_isolation_audit", "a_kill_leaves_nothing"]),
    ("user", "tests", &["demo::one_command", "a_layer_that_is_waived", "an_ordinary_user"]),
];

/// The suite of Debian whose kernel it is. An older one does not mount this machine's files by itself.
const SUITE: &str = "trixie";

/// What the guest says last, and whether all went well.
const END: &str = "sidereal-vm-ended ";

/// Boots it, runs the tests, and shows what they say.
///
/// # Errors
/// Where there can be no such machine here, with what is missing; where something does not build, or a test fails.
pub fn run(root: &Path, wanted: &Wanted) -> anyhow::Result<()> {
    let place = root.join("target/vm");
    fs::create_dir_all(&place)?;
    let machine = Machine::find(&place, wanted.emulated).map_err(|cause| {
        anyhow::anyhow!("NOT RUN: the tests on a machine with control groups of version 2: {cause:#}")
    })?;
    let built = crate::test::built(root)?;
    crate::guests::build(root, "guests")?;
    let init = place.join("init");
    fs::write(&init, script(root, &built, wanted, machine.accelerator == "tcg")?)?;
    fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    machine.run(&place, &init, wanted)
}

/// What the guest does, for the shell of this machine.
fn script(root: &Path, built: &BTreeMap<PathBuf, PathBuf>, wanted: &Wanted, slow: bool) -> anyhow::Result<String> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let target = root.join("target");
    let name = |name: &str| quoted(&target.join(name).to_string_lossy());
    let mut script = INIT.to_owned();
    if slow {
        script += "export RUST_TEST_THREADS=1 SIDEREAL_PATIENCE=5\n";
    }
    script += &format!("export SIDEREAL_BIN={} SIDEREAL_GUESTS={}\n", name("release/sidereal"), name("guests"));
    let mut add = |place: &str, folder: &Path, filters: &[String]| {
        let program = built.get(folder).with_context(|| format!("{} has no tests/all", folder.display()))?;
        let words = [root.join(folder).to_string_lossy().into_owned(), program.to_string_lossy().into_owned()];
        let words: Vec<String> = words.iter().chain(filters).map(|word| quoted(word)).collect();
        script += &format!("run {place} {}\n", words.join(" "));
        anyhow::Ok(())
    };
    match &wanted.folder {
        Some(folder) => add("service", folder, &wanted.filters)?,
        None => {
            for (place, folder, filters) in CHOICE {
                let filters: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
                add(place, Path::new(folder), &filters)?;
            }
        }
    }
    Ok(script + "finish\n")
}

/// The guest's first process.
const INIT: &str = include_str!("vm.sh");

/// What it takes to boot one here.
struct Machine {
    kernel: PathBuf,
    files: PathBuf,
    accelerator: &'static str,
}

impl Machine {
    fn find(place: &Path, emulated: bool) -> anyhow::Result<Self> {
        ensure!(cfg!(target_arch = "x86_64"), "it is of x86-64, and this machine is not");
        let on_path = || packages::on_path("qemu-system-x86_64");
        packages::ensure(&[Need { found: on_path, why: "a machine of its own", packages: &["qemu-system-x86"] }])?;
        // Where it does not come with QEMU it is a package of its own.
        let why = "its files, which are this machine's";
        packages::ensure(&[Need { found: || files().is_some(), why, packages: &["virtiofsd"] }])?;
        let files = files().context("virtiofsd is not where Debian has it")?;
        let suite = place.join(SUITE);
        let kernel = || {
            let entries = fs::read_dir(suite.join("boot")).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("/vmlinuz-"))
        };
        if kernel().is_none() {
            let archive = Archive::open(SUITE, &suite)?;
            let package = archive.behind("linux-image-cloud-amd64")?;
            archive.unpack(&package)?;
        }
        let kernel = kernel().context("Debian's package of the kernel has none")?;
        Ok(Self { kernel, files, accelerator: if !emulated && virtualizes() { "kvm" } else { "tcg" } })
    }

    /// Boots it, shows what it says, and waits for its end.
    fn run(&self, place: &Path, init: &Path, wanted: &Wanted) -> anyhow::Result<()> {
        // Named from its own folder: the name of a socket is short.
        let socket = format!("files-{}", std::process::id());
        let mut files = Command::new(&self.files);
        files
            .arg(format!("--socket-path={socket}"))
            .args(["-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot"])
            .current_dir(place);
        let said = fs::File::create(place.join("files.log"))?;
        files.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let mut files = Ended(files.spawn().context("cannot run virtiofsd")?);
        let by = Instant::now() + Duration::from_secs(20);
        while !place.join(&socket).exists() {
            ensure!(
                files.0.try_wait()?.is_none() && Instant::now() < by,
                "virtiofsd makes no socket: {}/files.log says why",
                place.display()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let (minutes, append) = (
            format!("{}m", wanted.minutes),
            format!("root=files rootfstype=virtiofs ro init={} console=ttyS0 quiet panic=-1", init.display()),
        );
        eprintln!("── {} by {}", self.kernel.display(), self.accelerator);
        let mut qemu = Command::new("timeout");
        qemu.args(["--foreground", &minutes, "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-machine", "q35,memory-backend=memory", "-accel", self.accelerator, "-cpu", "max", "-smp", "2"])
            .args(["-m", "4G", "-object", "memory-backend-memfd,id=memory,size=4G,share=on"])
            .args(["-chardev", &format!("socket,id=files,path={socket}")])
            .args(["-device", "vhost-user-fs-pci,chardev=files,tag=files"])
            .args(["-display", "none", "-serial", "stdio", "-rtc", "base=utc"])
            .arg("-kernel")
            .arg(&self.kernel)
            .args(["-append", &append])
            .current_dir(place)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut qemu = Ended(qemu.spawn().context("cannot run qemu-system-x86_64")?);
        let mut failed = None;
        let said = qemu.0.stdout.take().context("QEMU has no output")?;
        for line in BufReader::new(said).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            match line.trim_end().strip_prefix(END) {
                Some(count) => failed = Some(count.to_owned()),
                None => println!("{}", line.trim_end()),
            }
        }
        let status = qemu.0.wait()?;
        drop(fs::remove_file(place.join(&socket)));
        match failed.as_deref() {
            Some("0") => Ok(()),
            Some(count) => bail!("{count} of the runs in the machine failed"),
            None => bail!("the machine ended before its tests did ({status}; 124: after {} minutes)", wanted.minutes),
        }
    }
}

/// Whether this machine runs the code of another one by itself. Some have the device and processors that do not.
fn virtualizes() -> bool {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let able = processors.split_whitespace().any(|word| word == "vmx" || word == "svm");
    able && fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Where Debian has what serves this machine's files: with QEMU once, by itself since.
fn files() -> Option<PathBuf> {
    let places = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"].map(PathBuf::from);
    places.into_iter().find(|place| place.is_file())
}

/// A process that does not outlive its use.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
