//! The two blocks a person writes: `config` of the agent's `plugin` block, and `config` of a task.

use std::collections::BTreeMap;
use std::path::PathBuf;

use model::Limits;
use model::claims::{KeyKind, PublicKey};
use model::egress::Range;
use model::rules::{LIMIT_FIELDS, LimitField, LimitUnit};
use model::tenant::{Quotas, TenantSettings};
use model::unit::{ByteSize, Millis};
use sandbox::Layer;
use serde::Deserialize;

use plugin::config::{or_default, text_map};
use plugin::driver::Spec;
use plugin::hcl::Fields;

/// Where state is kept when the agent's configuration does not say.
const STATE_DIR: &str = "/var/lib/sidereal-nomad";
/// What a task may keep when the agent's configuration does not say.
const STORE_BYTES: ByteSize = ByteSize::mib(1024);

/// The agent's `plugin "nomad-driver-wasm" { config { … } }`. Every field has a default that works.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AgentConfig {
    #[serde(default)]
    pub(super) sidereal: Option<PathBuf>,
    #[serde(default)]
    state_dir: Option<PathBuf>,
    /// Account keys whose signatures are accepted.
    #[serde(default, deserialize_with = "or_default")]
    pub trust_anchors: Vec<String>,
    /// Unsigned components run.
    #[serde(default, deserialize_with = "or_default")]
    pub allow_unsigned: bool,
    /// Keys, token ids and digests of which no component starts.
    #[serde(default, deserialize_with = "or_default")]
    pub revoked: Vec<String>,
    /// The largest `limits` that a job may name, where those are not the platform's.
    #[serde(default, deserialize_with = "text_map")]
    ceilings: BTreeMap<String, String>,
    /// What a task may keep in built-in providers.
    #[serde(default)]
    store_bytes: Option<String>,
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
            revoked: Vec::new(),
            ceilings: BTreeMap::new(),
            store_bytes: None,
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
            .texts("revoked")
            .text_map("ceilings")
            .maybe_text("store_bytes")
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
        let mut named = self.waive.iter().flatten().filter(|name| *name != MISSING);
        named
            .try_for_each(|name| name.parse::<Layer>().map(drop))
            .map_err(|why| format!("{why}; `{MISSING}` stands for whatever this machine refuses"))
    }

    /// What a job's `limits` may be at most.
    ///
    /// # Errors
    /// The first key of `ceilings` that is none, or what is wrong with its value.
    pub fn ceilings(&self) -> Result<Limits, String> {
        let mut ceilings = Limits::ceiling();
        for (field, value) in limits("ceilings", &self.ceilings, &Limits::ceiling())? {
            (field.set)(&mut ceilings, value);
        }
        Ok(ceilings)
    }

    /// What a task may use beside what its job and its `resources` block say.
    ///
    /// # Errors
    /// What is wrong with `store_bytes`.
    pub fn quotas(&self) -> Result<Quotas, String> {
        let written = self.store_bytes.as_deref().map(str::parse::<ByteSize>).transpose();
        let most = written.map_err(|cause| format!("`store_bytes`: {cause}"))?.unwrap_or(STORE_BYTES);
        let quotas = Quotas { store_bytes: Some(most), ..Quotas::default() };
        match quotas.problems().first() {
            Some(problem) => Err(format!("`store_bytes`: {problem}")),
            None => Ok(quotas),
        }
    }

    /// What of whom it trusts, what it grants and how much cannot be, in words.
    ///
    /// # Errors
    /// The first such setting, and why.
    pub fn check_grants(&self) -> Result<(), String> {
        for range in &self.egress {
            range.parse::<Range>().map_err(|cause| format!("`egress`: {cause}"))?;
        }
        for anchor in &self.trust_anchors {
            // A mistyped anchor may be a seed: never repeat it.
            if !PublicKey::parse(anchor).is_ok_and(|key| key.kind() == KeyKind::Account) {
                return Err(
                    "`trust_anchors` holds something that is no account's public key (A…, 56 characters)".into()
                );
            }
        }
        if let Some(problem) = TenantSettings::revoked_problems(&self.revoked).first() {
            return Err(format!("`revoked`: {problem}"));
        }
        self.ceilings()?;
        self.quotas().map(drop)
    }

    /// Fails where no task could have its socket: names of sockets are short, unix(7).
    pub fn check_state_dir(&self) -> Result<(), String> {
        const LONGEST: usize = 107 - "/tasks/0123456789ab/".len() - api::task::SOCKET.len();
        let dir = self.state_dir();
        if !dir.is_absolute() {
            return Err(format!("{} is no absolute path", dir.display()));
        }
        if dir.as_os_str().len() > LONGEST {
            return Err(format!("{} is longer than {LONGEST} characters, and tasks have sockets in it", dir.display()));
        }
        Ok(())
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
    /// Variables of the task's environment that reach the component: they are in its own, and `wasi:config` answers with them too.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// Folders of the task that the component may use, by path: `/local`, `/alloc/data/app`.
    #[serde(default, deserialize_with = "or_default")]
    pub folder: BTreeMap<String, FolderOptions>,
    /// Where outgoing HTTP may go.
    #[serde(default, deserialize_with = "or_default")]
    pub allow_hosts: Vec<String>,
    /// What one call and one instance may use, where that is not the default: `cpu`, `wall`, `memory`, …
    #[serde(default, deserialize_with = "text_map")]
    pub limits: BTreeMap<String, String>,
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
            .text_map("limits")
            .spec()
    }

    /// What of [`TaskOptions::limits`] is none, or more than the agent's configuration lets a job have, in words.
    ///
    /// # Errors
    /// The first such key, and how it is written.
    pub fn check_limits(&self, ceilings: &Limits) -> Result<(), String> {
        limits("limits", &self.limits, ceilings).map(drop)
    }
}

/// The limits that the map `named` has, each in milliseconds, bytes or pieces.
///
/// # Errors
/// The first that is none, or out of its bounds.
fn limits(
    named: &str,
    written: &BTreeMap<String, String>,
    ceilings: &Limits,
) -> Result<Vec<(&'static LimitField, u64)>, String> {
    let one = |(name, value): (&String, &String)| {
        let Some(field) = LIMIT_FIELDS.iter().find(|field| field.name == name) else {
            let known: Vec<&str> = LIMIT_FIELDS.iter().map(|field| field.name).collect();
            return Err(format!("`{named}` names {name}, which is none; there are {}", known.join(", ")));
        };
        let read = match field.unit {
            LimitUnit::Duration => value.parse::<Millis>().map(|value| value.0).ok(),
            LimitUnit::Size => value.parse::<ByteSize>().map(|value| value.0).ok(),
            LimitUnit::Count => value.parse::<u32>().map(u64::from).ok(),
        };
        let (least, most) = (field.floor, (field.get)(ceilings));
        read.filter(|value| (least..=most).contains(value)).map(|value| (field, value)).ok_or_else(|| {
            let (least, most) = (field.show(least), field.show(most));
            format!("`{named}` has {name} = \"{value}\"; write {least} to {most}")
        })
    };
    written.iter().map(one).collect()
}
