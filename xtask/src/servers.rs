//! Servers that tests talk to and today's Debian does not have: Consul from the last suite that had it, a NATS with
//! atomic batches from the next one. Nothing of them is installed: a package is unpacked below `target`, fetched and verified
//! by apt in directories of its own ([`Archive`], which takes packages of any suite).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// A server and where it comes from.
struct Server {
    name: &'static str,
    /// Debian's package.
    package: &'static str,
    /// Of which suite.
    suite: &'static str,
    /// The program in it.
    program: &'static str,
    /// Variables that name another one.
    named: &'static [&'static str],
    /// What to set instead.
    instead: &'static str,
}

const SERVERS: [Server; 2] = [
    Server {
        name: "consul",
        package: "consul",
        suite: "bullseye",
        program: "usr/bin/consul",
        named: &["CONSUL_BIN", "CONSUL_HTTP_ADDR"],
        instead: "set CONSUL_BIN to a program, or CONSUL_HTTP_ADDR and CONSUL_HTTP_TOKEN to a server",
    },
    Server {
        name: "nats",
        package: "nats-server",
        suite: "forky",
        program: "usr/sbin/nats-server",
        named: &["NATS_SERVER_BIN"],
        instead: "set NATS_SERVER_BIN to a `nats-server` of version 2.12 or later",
    },
];

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Unpacks what is not there yet; which servers cannot be had, and what to do about each.
pub fn ensure(root: &Path) -> Vec<String> {
    let mut missing = Vec::new();
    for server in &SERVERS {
        let place = root.join("target/servers").join(server.name);
        let named = server.named.iter().any(|name| std::env::var_os(name).is_some());
        if named || place.join(server.program).is_file() {
            continue;
        }
        if let Err(cause) = unpack(server, &place) {
            missing.push(format!("{} to test against: {cause:#}; {}", server.package, server.instead));
        }
    }
    missing
}

fn unpack(server: &Server, place: &Path) -> anyhow::Result<()> {
    Archive::open(server.suite, place)?.unpack(server.package)
}

/// A suite of Debian's archive, with directories of apt's own beside the folder that a package of it goes to.
pub struct Archive {
    suite: String,
    settings: PathBuf,
    work: PathBuf,
    place: PathBuf,
}

impl Archive {
    /// Fetches the list of its packages.
    ///
    /// # Errors
    /// When apt cannot be run, or the suite cannot be had.
    pub fn open(suite: &str, place: &Path) -> anyhow::Result<Self> {
        let work = place.with_extension("apt");
        for dir in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(work.join(dir))?;
        }
        let work = work.canonicalize()?;
        let sources = work.join("sources.list");
        std::fs::write(&sources, format!("deb [signed-by={KEYRING}] {} {suite} main\n", archive()?))?;
        let settings = work.join("apt.conf");
        let shown = work.display();
        std::fs::write(
            &settings,
            format!(
                "Dir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"-\";\nDir::State::lists \"{shown}/lists\";\nDir::Cache \"{shown}/cache\";\n",
                sources.display()
            ),
        )?;
        let this = Self { suite: suite.to_owned(), settings, work, place: place.to_owned() };
        run(this.apt("apt-get").args(["-q", "update"]))?;
        Ok(this)
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.env("APT_CONFIG", &self.settings).current_dir(&self.work);
        apt
    }

    /// The package that one which is only a name stands for: the first it depends on.
    ///
    /// # Errors
    /// When there is none.
    pub fn behind(&self, name: &str) -> anyhow::Result<String> {
        let said =
            self.apt("apt-cache").args(["depends", "--important", name]).output().context("cannot run apt-cache")?;
        let said = String::from_utf8(said.stdout)?;
        let first = said.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        first.map(str::to_owned).with_context(|| format!("Debian's {} has no {name}", self.suite))
    }

    /// Unpacks one into the folder; nothing else is left.
    ///
    /// # Errors
    /// When it cannot be had or unpacked.
    pub fn unpack(self, package: &str) -> anyhow::Result<()> {
        eprintln!("fetching {package} from Debian's {}", self.suite);
        run(self.apt("apt-get").args(["-q", "download", package]))?;
        let file = std::fs::read_dir(&self.work)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt downloaded nothing")?;
        run(Command::new("dpkg-deb").arg("-x").arg(file).arg(&self.place))?;
        std::fs::remove_dir_all(&self.work)?;
        Ok(())
    }
}

/// Where this machine gets its own packages of Debian from.
fn archive() -> anyhow::Result<String> {
    let listed = Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]).output();
    let listed = String::from_utf8(listed.context("cannot run apt-get")?.stdout)?;
    let main = listed.lines().find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    main.map(str::to_owned).context("apt has no archive of Debian among its sources")
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdout(Stdio::null()).status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed with {status}");
    }
    Ok(())
}
