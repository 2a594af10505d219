//! The two blocks a person writes: `config` of the agent's `plugin` block, and `config` of a task.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sandbox::Layer;
use serde::Deserialize;

use crate::plugin::config::{or_default, text_map};
use crate::plugin::driver::Spec;
use crate::plugin::hcl::Fields;

/// Where state is kept when the agent's configuration does not say.
const STATE_DIR: &str = "/var/lib/sidereal-nomad";

/// The agent's `plugin "nomad-driver-wasm" { config { … } }`. Every field has a default that works.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AgentConfig {
    #[serde(default)]
    sidereal: Option<PathBuf>,
    #[serde(default)]
    state_dir: Option<PathBuf>,
    /// Account keys whose signatures are accepted.
    #[serde(default, deserialize_with = "or_default")]
    pub trust_anchors: Vec<String>,
    /// Unsigned components run.
    #[serde(default, deserialize_with = "or_default")]
    pub allow_unsigned: bool,
    /// Address ranges outside the public internet that tasks may connect to.
    #[serde(default, deserialize_with = "or_default")]
    pub egress: Vec<String>,
    /// A task whose `resources` block cannot be enforced does not start.
    #[serde(default = "yes")]
    pub enforce_resources: bool,
    #[serde(default)]
    waive: Option<Vec<String>>,
}

/// Stands for whatever layers the machine refuses.
pub const MISSING: &str = "missing";

fn yes() -> bool {
    true
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            sidereal: None,
            state_dir: None,
            trust_anchors: Vec::new(),
            allow_unsigned: false,
            egress: Vec::new(),
            enforce_resources: yes(),
            waive: None,
        }
    }
}

impl AgentConfig {
    /// As the agent checks it.
    pub fn schema() -> Spec {
        Fields::new()
            .maybe_text("sidereal")
            .maybe_text("state_dir")
            .texts("trust_anchors")
            .flag("allow_unsigned", false)
            .texts("egress")
            .flag("enforce_resources", true)
            .texts("waive")
            .spec()
    }

    /// The program that runs tasks: what is configured, else the one beside this plugin, else the first on the `PATH`.
    pub fn sidereal(&self) -> Option<PathBuf> {
        if let Some(configured) = &self.sidereal {
            return configured.is_file().then(|| configured.clone());
        }
        let own = std::env::current_exe().ok();
        let beside = own.and_then(|own| Some(own.parent()?.join("sidereal")));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = std::env::split_paths(&path).map(|dir| dir.join("sidereal"));
        beside.into_iter().chain(on_path).find(|file| file.is_file())
    }

    /// Layers of isolation that tasks do without: those that are written, else whatever the machine refuses.
    pub fn waive(&self) -> Vec<String> {
        self.waive.clone().unwrap_or_else(|| vec![MISSING.to_owned()])
    }

    /// What of [`AgentConfig::waive`] is no layer, in words.
    ///
    /// # Errors
    /// The first such name, with those that there are.
    pub fn check_waive(&self) -> Result<(), String> {
        let named = self.waive.iter().flatten().filter(|name| *name != MISSING);
        named
            .map(|name| name.parse::<Layer>().map(drop))
            .collect::<Result<(), _>>()
            .map_err(|why| format!("{why}; `{MISSING}` stands for whatever this machine refuses"))
    }

    /// Where the tasks' state and compiled code are kept.
    pub fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| PathBuf::from(STATE_DIR))
    }
}

/// A task's `config { … }`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TaskOptions {
    /// A path in the task's directory, or an OCI reference with its digest.
    pub component: String,
    /// Where HTTP is answered.
    #[serde(default)]
    pub http: Option<HttpOptions>,
    /// Arguments of a program.
    #[serde(default, deserialize_with = "or_default")]
    pub args: Vec<String>,
    /// Links by contract, `wasi:keyvalue`, or contract and label, `wasi:keyvalue#cache`.
    #[serde(default, deserialize_with = "or_default")]
    pub link: BTreeMap<String, LinkOptions>,
    /// Answers of `wasi:config`.
    #[serde(default, deserialize_with = "text_map")]
    pub settings: BTreeMap<String, String>,
    /// Variables of the task's environment that reach the component: a program as its environment, and `wasi:config` answers
    /// with them too.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Folders of the task that the component may use, by path: `/local`, `/alloc/data/app`.
    #[serde(default, deserialize_with = "or_default")]
    pub folder: BTreeMap<String, FolderOptions>,
    /// Where outgoing HTTP may go.
    #[serde(default, deserialize_with = "or_default")]
    pub allow_hosts: Vec<String>,
}

/// `folder "/local" { writable = true }`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct FolderOptions {
    /// The component may change what is in it.
    #[serde(default, deserialize_with = "or_default")]
    pub writable: bool,
}

/// `http { port = "label" }`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct HttpOptions {
    /// The label of a port of the group's network.
    pub port: String,
}

/// `link "wasi:keyvalue" { provider = "redis" … }`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct LinkOptions {
    /// A built-in provider, or a type of provider.
    pub provider: String,
    /// Where it is.
    #[serde(default)]
    pub url: Option<String>,
    /// Its other settings, and the link's.
    #[serde(default, deserialize_with = "text_map")]
    pub settings: BTreeMap<String, String>,
    /// Settings that are secrets: files in the task's directory.
    #[serde(default, deserialize_with = "text_map")]
    pub secret_files: BTreeMap<String, String>,
}

impl TaskOptions {
    /// As the agent checks it.
    pub fn schema() -> Spec {
        let link = Fields::new().text("provider").maybe_text("url").text_map("settings").text_map("secret_files");
        Fields::new()
            .text("component")
            .block("http", Fields::new().text("port"))
            .texts("args")
            .labelled("link", "contract", link)
            .labelled("folder", "path", Fields::new().flag("writable", false))
            .text_map("settings")
            .texts("env")
            .texts("allow_hosts")
            .spec()
    }
}
