//! Whether this machine can run tasks, and what a job can ask for in a constraint.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use model::ProviderKind;

use super::cgroup;
use super::config::AgentConfig;
use crate::plugin::driver::{Fact, Fingerprint, Health};

/// How often it is looked again.
const PERIOD: Duration = Duration::from_secs(30);
/// A program that does not say its version for this long does not work.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is wrong where there is no `sidereal`.
pub const MISSING: &str = "the program `sidereal` is not on this machine: put it beside the plugin or on the PATH, or name \
                           it by `sidereal` in the plugin's configuration";

/// A fingerprint at once, and again whenever it has changed or some time has passed.
pub fn stream(agent: AgentConfig) -> BoxStream<'static, Fingerprint> {
    futures::stream::unfold((agent, false), |(agent, again)| async move {
        if again {
            tokio::time::sleep(PERIOD).await;
        }
        Some((look(&agent).await, (agent, true)))
    })
    .boxed()
}

async fn look(agent: &AgentConfig) -> Fingerprint {
    let without = |health, description: String| Fingerprint { health, description, attributes: Vec::new() };
    let Some(sidereal) = agent.sidereal() else { return without(Health::Undetected, MISSING.to_owned()) };
    let version = match version(&sidereal).await {
        Ok(version) => version,
        Err(why) => return without(Health::Unhealthy, format!("{} does not work: {why}", sidereal.display())),
    };
    if let Err(cause) = writable(&agent.state_dir()) {
        return without(Health::Unhealthy, format!("{} cannot be written: {cause}", agent.state_dir().display()));
    }
    let text = |name: &str, value: String| (format!("driver.wasm.{name}"), Fact::Text(value));
    let flag = |name: &str, value| (format!("driver.wasm.{name}"), Fact::Flag(value));
    let mut providers: Vec<&str> = ProviderKind::ALL
        .into_iter()
        .filter(|kind| !matches!(kind, ProviderKind::Component | ProviderKind::External))
        .map(ProviderKind::as_str)
        .collect();
    providers.sort_unstable();
    let attributes = vec![
        ("driver.wasm".to_owned(), Fact::Flag(true)),
        text("version", env!("CARGO_PKG_VERSION").to_owned()),
        text("sidereal", version),
        text("providers", providers.join(",")),
        text("worlds", "wasi:http@0.2,wasi:http@0.3,wasi:cli@0.2,wasi:cli@0.3,wasi_snapshot_preview1".to_owned()),
        flag("unsigned", agent.allow_unsigned),
        // What is not there is said: see docs/nomad.md.
        flag("isolation.cgroup", agent.enforce_resources && cgroup::available()),
        flag("isolation.seccomp", false),
        flag("exec", false),
        flag("commands", true),
    ];
    Fingerprint { health: Health::Healthy, description: "Healthy".to_owned(), attributes }
}

async fn version(sidereal: &Path) -> Result<String, String> {
    let output = tokio::process::Command::new(sidereal)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, output).await;
    let output = output.map_err(|_| "it does not answer".to_owned())?.map_err(|cause| cause.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    let version = said.trim().strip_prefix("sidereal ").filter(|_| output.status.success());
    version.map(str::to_owned).ok_or_else(|| "it does not say its version".to_owned())
}

fn writable(dir: &PathBuf) -> std::io::Result<()> {
    std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).recursive(true).create(dir)?;
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK)?;
    Ok(())
}
