//! A node with two tenants: one whose components are hostile, and one that only wants to be served.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::cases::{COMPONENTS, Case, End, REQUESTS, Refused, STREAMS, Send};
use super::raw::{Seen, exchange};
use crate::platform::{Platform, until, write_app};

/// The hostile tenant.
pub const NOISY: &str = "noisy";
/// What the victim keeps where the hostile tenant looks for it.
pub const SECRET: &str = "nobody-elses";
/// The limits of hostile components: as usual, but for time.
const LIMITS: &str = "limits = { cpu = \"300ms\", wall = \"12s\", memory = \"128MiB\", response-body = \"8MiB\" }";

/// The node.
pub struct Arena {
    /// It.
    pub platform: Platform,
    dir: tempfile::TempDir,
    hosts: Vec<u32>,
}

/// Where a request of a case goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The app, and its host name before `.localhost`.
    pub app: &'static str,
    /// Which of the app's components is asked.
    pub component: &'static str,
}

/// All cases that are set off by a request, and where.
pub fn all() -> impl Iterator<Item = (&'static Case, Place)> {
    let of = |app, cases: &'static [Case]| cases.iter().map(move |case| (case, Place { app, component: "main" }));
    let own = COMPONENTS.iter().map(|case| (case, Place { app: "components", component: case.name }));
    of("hostile", REQUESTS).chain(of("streams", STREAMS)).chain(own)
}

fn hostile(name: &str) -> PathBuf {
    crate::guest(&format!("hostile-{}", name.replace('_', "-")))
}

impl Arena {
    /// Starts it, and deploys both tenants' apps. The platform's own log goes into a file.
    ///
    /// # Errors
    /// When something does not come up.
    pub fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let log = std::fs::File::create(dir.path().join("platform.log"))?;
        let platform = Platform::start_logging(&dir.path().join("data"), &["--shards", "1"], Stdio::from(log))?;
        let keys = platform.ok(&["keys", "list"])?;
        let account =
            keys.as_array().into_iter().flatten().find(|key| key["name"] == "account").context("no account")?;
        let account = account["key"].as_str().context("no key")?;
        platform.ok(&["tenant", "create", NOISY, "--trust", account, "--shards", "1"])?;
        let mut arena = Self { platform, dir, hosts: Vec::new() };
        arena.victim()?;
        arena.deploy(
            "hostile",
            &write(
                &arena.folder("hostile"),
                "hostile",
                "allow-hosts = [\"http://allowed.invalid\"]\n\
            links = { \"wasi:keyvalue\" = \"embedded\", \"wasi:blobstore\" = \"folder\" }",
            )?,
        )?;
        arena.deploy("streams", &write(&arena.folder("streams"), "streams", "")?)?;
        arena.components()?;
        arena.hosts = arena.platform.hosts();
        Ok(arena)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn deploy(&self, app: &str, folder: &Path) -> anyhow::Result<()> {
        let folder = folder.to_str().context("a path that is no text")?;
        self.platform.ok(&["--tenant", NOISY, "deploy", folder]).with_context(|| format!("deploying {app}"))?;
        Ok(())
    }

    /// The victim answers requests, and keeps something under the names the hostile tenant guesses.
    fn victim(&self) -> anyhow::Result<()> {
        let folder = self.folder("victim");
        write_app(&folder, "victim", "hello", "")?;
        self.platform.ok(&["deploy", folder.to_str().context("a path that is no text")?])?;
        let folder = self.folder("store");
        write_app(&folder, "store", "kv-probe", "links = { \"wasi:keyvalue\" = \"embedded\" }")?;
        self.platform.ok(&["deploy", folder.to_str().context("a path that is no text")?])?;
        let answer = self.platform.get("store.localhost", &format!("/set/default/secret/{SECRET}"))?;
        ensure!(answer.status == 200, "the victim cannot keep anything: {answer:?}");
        Ok(())
    }

    /// Every component of its own, in one app.
    fn components(&self) -> anyhow::Result<()> {
        let folder = self.folder("components");
        std::fs::create_dir_all(&folder)?;
        let mut text = "schema = 1\nname = \"components\"\n".to_owned();
        for case in COMPONENTS {
            let name = case.name.replace('_', "-");
            std::fs::copy(hostile(case.name), folder.join(format!("{name}.wasm")))?;
            write!(text, "[components.{name}]\nsource = \"{name}.wasm\"\n{LIMITS}\n")?;
            write!(
                text,
                "[[routes]]\nhost = \"components.localhost\"\npath = \"/{}\"\ncomponent = \"{name}\"\n",
                case.name
            )?;
        }
        std::fs::write(folder.join("app.toml"), text)?;
        self.deploy("components", &folder)
    }

    /// Sends what sets a case off.
    ///
    /// # Errors
    /// When the ingress does not take it.
    pub fn ask(&self, case: &Case, place: Place) -> anyhow::Result<Seen> {
        exchange(self.platform.ingress, &format!("{}.localhost", place.app), &format!("/{}", case.name), case.send)
    }

    /// Sends what sets a case off, and checks its end.
    ///
    /// # Errors
    /// What is otherwise than it must be.
    pub fn check(&self, case: &Case, place: Place) -> anyhow::Result<()> {
        let seen = self.ask(case, place)?;
        let why = match case.end {
            End::Fault(code, why) => {
                ensure!(seen.fault.as_deref() == Some(code), "not `{code}`: {seen:?}");
                ensure!(seen.status >= 500 && seen.whole && !seen.body.trim().is_empty(), "no whole answer: {seen:?}");
                why
            }
            End::Says(text) => {
                ensure!(seen.status == 200 && seen.whole && seen.body == text, "not `{text}`: {seen:?}");
                return Ok(());
            }
            End::BrokenOff(why) => {
                ensure!(seen.status == 200 && !seen.whole, "its answer looks whole: {seen:?}");
                why
            }
        };
        let mut said = String::new();
        let known = until(Duration::from_secs(10), || {
            said = self.last_fault(place).unwrap_or_default();
            said.contains(why)
        });
        known.with_context(|| format!("the status says `{said}`, not `{why}`"))
    }

    /// Why the last call of a component failed, as `sidereal status` says it.
    ///
    /// # Errors
    /// When there is no status.
    pub fn last_fault(&self, place: Place) -> anyhow::Result<String> {
        let status = self.component(place)?;
        Ok(status["last_fault"].as_str().unwrap_or_default().to_owned())
    }

    /// The status of a component.
    ///
    /// # Errors
    /// When there is none.
    pub fn component(&self, place: Place) -> anyhow::Result<serde_json::Value> {
        let status = self.platform.ok(&["--tenant", NOISY, "status", place.app])?;
        let name = place.component.replace('_', "-");
        let hosts = status["shards"].as_array().context("no shards")?;
        let mut found =
            hosts.iter().flat_map(|host| host.as_array().into_iter().flatten()).map(|app| &app["components"][&name]);
        found.rfind(|component| component.is_object()).cloned().with_context(|| format!("no `{name}` in {status}"))
    }

    /// Deploys what must not come to be.
    ///
    /// # Errors
    /// When it is not refused, or with another reason.
    pub fn refused(&self, case: &Refused) -> anyhow::Result<()> {
        let bytes = std::fs::read(hostile(case.name))?;
        let (code, said) = self.attempt(&bytes, case.name == "no_handler")?;
        ensure!(code == case.code && said.contains(case.says), "refused with `{code}`, not `{}`: {said}", case.code);
        Ok(())
    }

    /// Deploys bytes as a component, `routed` where requests are to reach it; the code and everything that was said when that is refused.
    ///
    /// # Errors
    /// When it is not refused.
    pub fn attempt(&self, bytes: &[u8], routed: bool) -> anyhow::Result<(String, String)> {
        self.put(bytes, routed)?.context("it was deployed")
    }

    /// The same, where it may as well be deployed: `None`, then. A request gets to it by [`Arena::call`].
    ///
    /// # Errors
    /// When nothing is said of it.
    pub fn put(&self, bytes: &[u8], routed: bool) -> anyhow::Result<Option<(String, String)>> {
        let folder = self.folder("refused");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("component.wasm"), bytes)?;
        let mut text =
            format!("schema = 1\nname = \"refused\"\n[components.main]\nsource = \"component.wasm\"\n{LIMITS}\n");
        if routed {
            text.push_str("[[routes]]\nhost = \"refused.localhost\"\ncomponent = \"main\"\n");
        }
        std::fs::write(folder.join("app.toml"), text)?;
        let out = self.platform.cli(&[
            "--tenant",
            NOISY,
            "-o",
            "json",
            "deploy",
            folder.to_str().context("a path that is no text")?,
        ])?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        if out.status.success() {
            return Ok(None);
        }
        let envelope: serde_json::Value = serde_json::from_str(said.lines().last().unwrap_or_default())
            .with_context(|| format!("no envelope: {said}{}", String::from_utf8_lossy(&out.stderr)))?;
        let code = envelope["error"]["code"].as_str().context("no code")?.to_owned();
        Ok(Some((code, said)))
    }

    /// Asks what was deployed by [`Arena::put`].
    ///
    /// # Errors
    /// When the ingress does not answer.
    pub fn call(&self) -> anyhow::Result<Seen> {
        exchange(self.platform.ingress, "refused.localhost", "/", Send::Get)
    }

    /// What must hold when all is over: the same host processes, a platform that said nothing of a panic, and a victim
    /// that still has what is its own.
    ///
    /// # Errors
    /// What does not hold.
    pub fn unharmed(&self) -> anyhow::Result<()> {
        let hosts = self.platform.hosts();
        ensure!(hosts == self.hosts, "hosts were {:?} and are {hosts:?}", self.hosts);
        self.quiet()?;
        let kept = self.platform.get("store.localhost", "/get/default/secret")?;
        ensure!(kept.body == SECRET, "the victim has `{}`", kept.body);
        Ok(())
    }

    /// The platform's own log tells of no panic and no abort.
    ///
    /// # Errors
    /// The line that does.
    pub fn quiet(&self) -> anyhow::Result<()> {
        let log = std::fs::read_to_string(self.dir.path().join("platform.log"))?;
        match log
            .lines()
            .find(|line| ["panicked", "SIGABRT", "SIGSEGV", "stack overflow"].iter().any(|word| line.contains(word)))
        {
            Some(line) => bail!("the platform says: {line}"),
            None => Ok(()),
        }
    }

    /// The processes of the node: itself and its hosts.
    pub fn processes(&self) -> Vec<u32> {
        let mut all = self.platform.hosts();
        all.push(self.platform.pid());
        all
    }
}

fn write(folder: &Path, name: &str, rest: &str) -> anyhow::Result<PathBuf> {
    let guest = if name == "streams" { "hostile-p3" } else { "hostile" };
    write_app(folder, name, guest, &format!("{LIMITS}\n{rest}"))?;
    Ok(folder.to_owned())
}
