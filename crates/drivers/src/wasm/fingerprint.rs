//! Whether this machine can run tasks, and what a job can ask for in a constraint.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use api::task::{TaskOffer, VERSION};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use model::ProviderKind;
use sandbox::Layer;
use tokio::sync::mpsc;

use super::cgroup;
use super::config::{AgentConfig, MISSING as MISSING_LAYERS};
use plugin::Failure;
use plugin::driver::{Fact, Fingerprint, Health};

/// How often it is looked again.
const PERIOD: Duration = Duration::from_secs(30);
/// Layers are tried once in so many looks.
const LAYERS_EVERY: u32 = 40;
/// A program that has not tried all layers after so long does not work.
const TRYING: Duration = Duration::from_secs(60);
/// A program that does not say its version for this long does not work.
const PATIENCE: Duration = Duration::from_secs(5);
/// After this long something is said, whatever is known.
const FIRST: Duration = Duration::from_millis(400);
/// What is said then.
const WAITS: &str = "the program `sidereal` is being tried and has not answered yet";

/// What is wrong where there is no `sidereal`: where the plugin's configuration names one, that is not there.
pub fn missing(agent: &AgentConfig) -> String {
    match &agent.sidereal {
        Some(configured) => format!(
            "{} is no file of this machine, and `sidereal` in the plugin's configuration names it as the program that runs \
             tasks: put it there, correct the path, or take it away where `sidereal` is beside the plugin or on the PATH",
            configured.display()
        ),
        None => {
            "the program `sidereal` is not on this machine: put it beside the plugin or on the PATH, or name it by \
                 `sidereal` in the plugin's configuration"
                .to_owned()
        }
    }
}

/// Layers that the machine refuses, and why.
pub type Refused = BTreeMap<Layer, String>;

/// What the last look at the machine found; nothing before the first has ended.
#[derive(Debug, Clone, Default)]
pub struct Known(Arc<RwLock<Option<Refused>>>);

impl Known {
    fn set(&self, refused: Option<Refused>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = refused;
    }

    /// Forgets it: it is of another program.
    pub fn forget(&self) {
        self.set(None);
    }

    /// Which layers a task does without because the machine refuses them, and why. What it refuses for a moment, as the task
    /// starts, is not among them: the task would do without for as long as it lives.
    ///
    /// # Errors
    /// Recoverable, where the program does not say; unrecoverable, where tasks must have a layer that is refused.
    pub async fn refused(&self, sidereal: &Path, waive: &[String]) -> Result<Refused, Failure> {
        let of_programs = |mut refused: Refused| {
            // Control groups are the plugin's own to make, or to do without.
            refused.retain(|layer, _| *layer != Layer::Cgroup);
            refused
        };
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).clone().map(of_programs);
        let mut refused = match &known {
            Some(known) if known.is_empty() => Refused::new(),
            _ => {
                let asked = refused_now(sidereal).await.map(of_programs);
                asked.map_err(Failure::recoverable)?
            }
        };
        // That look may have come at a bad moment too.
        refused.retain(|layer, _| known.as_ref().is_none_or(|known| known.contains_key(layer)));
        layers(&refused, waive).map_err(|why| Failure::unrecoverable(format!("{why} [isolation-refused]")))?;
        refused.retain(|layer, _| !waive.iter().any(|name| name == layer.as_str()));
        Ok(refused)
    }
}

/// A fingerprint at once, and again whenever it has changed or some time has passed. What it finds of the layers is in `found`.
pub fn stream(agent: AgentConfig, found: Known) -> BoxStream<'static, Fingerprint> {
    let (tell, told) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut known = None;
        for looks in 0_u32.. {
            // To try the layers takes processes; what a machine refuses seldom changes.
            if looks.is_multiple_of(LAYERS_EVERY) {
                known = None;
            }
            let mut look = Box::pin(look(&agent, &mut known, &found));
            // The agent is not ready before it has heard something.
            let first = if looks == 0 { FIRST } else { TRYING * 2 };
            let seen = match tokio::time::timeout(first, &mut look).await {
                Ok(seen) => seen,
                Err(_) => {
                    let waits =
                        Fingerprint { health: Health::Unhealthy, description: WAITS.into(), attributes: Vec::new() };
                    if tell.send(waits).await.is_err() {
                        return;
                    }
                    look.await
                }
            };
            if tell.send(seen).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => {}
                () = tell.closed() => return,
            }
        }
    });
    futures::stream::unfold(told, |mut told| async move { Some((told.recv().await?, told)) }).boxed()
}

async fn look(agent: &AgentConfig, known: &mut Option<Isolation>, found: &Known) -> Fingerprint {
    let without = |health, description: String| Fingerprint { health, description, attributes: Vec::new() };
    let Some(sidereal) = agent.sidereal() else { return without(Health::Undetected, missing(agent)) };
    let version = match version(&sidereal).await {
        Ok(version) => version,
        Err(why) => return without(Health::Unhealthy, format!("{} does not work: {why}", sidereal.display())),
    };
    if let Err(cause) = writable(&agent.state_dir()) {
        return without(Health::Unhealthy, format!("{} cannot be used: {cause}", agent.state_dir().display()));
    }
    // Each start would fail for it.
    if agent.enforce_resources
        && let Err(cause) = cgroup::tried()
    {
        return without(Health::Unhealthy, cgroup::unenforced(&cause));
    }
    if known.as_ref().is_none_or(|known| known.version != version) {
        // What was found is of another program: starts are to ask this one.
        if known.is_some() {
            found.forget();
        }
        match refused_now(&sidereal).await {
            Ok(refused) => {
                found.set(Some(refused.clone()));
                *known = Some(Isolation { version: version.clone(), refused });
            }
            Err(why) => {
                *known = None;
                return without(Health::Unhealthy, why);
            }
        }
    }
    let refused = known.as_ref().map(|known| known.refused.clone()).unwrap_or_default();
    let waive = agent.waive();
    let layers = match layers(&refused, &waive) {
        Ok(layers) => layers,
        Err(why) => return without(Health::Unhealthy, why),
    };
    let text = |name: &str, value: String| (format!("driver.wasm.{name}"), Fact::Text(value));
    let flag = |name: &str, value| (format!("driver.wasm.{name}"), Fact::Flag(value));
    let offered =
        ProviderKind::ALL.into_iter().filter(|kind| !matches!(kind, ProviderKind::Component | ProviderKind::External));
    let providers: BTreeSet<&str> = offered.clone().map(ProviderKind::as_str).collect();
    let contracts: BTreeSet<&str> = offered.flat_map(ProviderKind::contracts).copied().collect();
    let list = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(",");
    let mut attributes = vec![
        ("driver.wasm".to_owned(), Fact::Flag(true)),
        text("version", env!("CARGO_PKG_VERSION").to_owned()),
        text("sidereal", version),
        text("contracts", list(contracts)),
        text("providers", list(providers)),
        text("worlds", "wasi:http@0.2,wasi:http@0.3,wasi:cli@0.2,wasi:cli@0.3,wasi_snapshot_preview1".to_owned()),
        flag("unsigned", agent.allow_unsigned),
        flag("isolation.cgroup", agent.enforce_resources),
        flag("exec", false),
        flag("commands", true),
    ];
    attributes.extend(layers.into_iter().map(|(layer, on)| flag(&format!("isolation.{layer}"), on)));
    Fingerprint { health: Health::Healthy, description: "Healthy".to_owned(), attributes }
}

/// What a machine refuses of the layers, as one version of the program finds it.
struct Isolation {
    version: String,
    refused: Refused,
}

/// Each layer but that of the control groups, which tasks have from the plugin, and whether tasks have it.
fn layers(refused: &Refused, waive: &[String]) -> Result<Vec<(Layer, bool)>, String> {
    let waived = |layer: &Layer| waive.iter().any(|name| name == layer.as_str());
    let missing = waive.iter().any(|name| name == MISSING_LAYERS);
    let of_programs = Layer::ALL.into_iter().filter(|layer| *layer != Layer::Cgroup);
    let short: Vec<String> = of_programs
        .clone()
        .filter(|layer| !missing && !waived(layer))
        .filter_map(|layer| Some(format!("`{layer}` ({}): {}", refused.get(&layer)?, layer.help())))
        .collect();
    if !short.is_empty() {
        return Err(format!(
            "this machine does not let components be isolated by {}; to go on without, name the layers in `waive` of the \
             plugin's configuration",
            short.join("; ")
        ));
    }
    Ok(of_programs.map(|layer| (layer, !waived(&layer) && !refused.contains_key(&layer))).collect())
}

/// Asks the program what this machine refuses. Nothing is known of one that runs other tasks than this plugin writes.
async fn refused_now(sidereal: &Path) -> Result<Refused, String> {
    let said = run(sidereal, "layers", TRYING).await;
    said.and_then(|said| offered(&said)).map_err(|why| format!("{} cannot run tasks: {why}", sidereal.display()))
}

fn offered(said: &str) -> Result<Refused, String> {
    let unsaid = |cause: &dyn std::fmt::Display| format!("it does not say how it isolates: {cause}");
    let TaskOffer { tasks, refused } = serde_json::from_str(said).map_err(|cause| unsaid(&cause))?;
    if tasks != VERSION {
        let its = if tasks == 0 { "an older version".to_owned() } else { format!("version {tasks}") };
        return Err(format!(
            "it runs tasks of {its}, and this plugin writes version {VERSION}; install `sidereal` and the plugin of one release"
        ));
    }
    let layers = refused.into_iter().map(|(name, why)| name.parse::<Layer>().map(|layer| (layer, why)));
    layers.collect::<Result<_, _>>().map_err(|cause: String| unsaid(&cause))
}

async fn version(sidereal: &Path) -> Result<String, String> {
    let said = run(sidereal, "--version", PATIENCE).await?;
    said.trim().strip_prefix("sidereal ").map(str::to_owned).ok_or_else(|| "it does not say its version".to_owned())
}

/// What the program answers.
async fn run(sidereal: &Path, ask: &str, patience: Duration) -> Result<String, String> {
    let output = tokio::process::Command::new(sidereal)
        .arg(ask)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(patience, output).await;
    let output = output.map_err(|_| "it does not answer".to_owned())?.map_err(|cause| cause.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("it ended with {}", output.status)),
    }
}

fn writable(dir: &PathBuf) -> std::io::Result<()> {
    std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).recursive(true).create(dir)?;
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK)?;
    let found = std::fs::metadata(dir)?;
    // Tasks are found and ended by what is in there.
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(std::io::Error::other("others may write to it: it must be this user's, with mode 0700"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two programs of an install may be of two releases for a while.
    #[test]
    fn a_program_of_another_release_runs_no_task_of_this_one() {
        let said = |tasks: u32| format!(r#"{{"tasks":{tasks},"refused":{{"net":"no"}}}}"#);
        assert_eq!(offered(&said(VERSION)).unwrap(), [(Layer::Net, "no".to_owned())].into());
        for (said, why) in [
            (said(VERSION + 1), format!("tasks of version {}, and this plugin writes version {VERSION};", VERSION + 1)),
            // As the releases before said it.
            (r#"{"net":"no"}"#.to_owned(), "it runs tasks of an older version".to_owned()),
            (said(VERSION).replace("net", "hull"), "how it isolates: `hull`".to_owned()),
            ("no".to_owned(), "how it isolates".to_owned()),
        ] {
            let refused = offered(&said).unwrap_err();
            assert!(refused.contains(&why), "{refused}");
        }
    }

    #[test]
    fn layers_are_on_that_are_neither_refused_nor_waived() {
        let refused: BTreeMap<Layer, String> = [(Layer::Uid, "only root can".to_owned())].into();
        let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let on = |refused: &BTreeMap<Layer, String>, waive: &[&str]| -> Result<Vec<String>, String> {
            let on = layers(refused, &texts(waive))?.into_iter().filter(|(_, on)| *on);
            Ok(on.map(|(layer, _)| layer.to_string()).collect())
        };
        let all = on(&BTreeMap::new(), &[]).unwrap();
        assert_eq!((all.len(), all.contains(&"cgroup".to_owned())), (10, false));
        for waive in [&["missing"][..], &["uid"]] {
            let on = on(&refused, waive).unwrap();
            assert!(on.len() == 9 && !on.contains(&"uid".to_owned()), "{on:?}");
        }
        assert!(!on(&BTreeMap::new(), &["seccomp"]).unwrap().contains(&"seccomp".to_owned()));
        let why = on(&refused, &["net"]).unwrap_err();
        assert!(why.contains("`uid` (only root can): run the platform as root") && why.contains("`waive`"), "{why}");
    }
}
