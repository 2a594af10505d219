//! The two blocks that a person writes, with one field of each kind that a driver of virtual machines needs.

use std::collections::BTreeMap;

use plugin::config::{or_default, text_map, whole, whole_map, wholes};
use plugin::driver::Spec;
use plugin::hcl::Fields;
use serde::{Deserialize, Deserializer};

/// What an agent that says nothing gives a task.
const MOST: u64 = 8;

/// `plugin "sample-driver" { config { … } }`
#[derive(Debug, Deserialize)]
pub struct AgentConfig {
    /// The most processors of a task.
    #[serde(default = "most", deserialize_with = "most_or")]
    pub most: u64,
}

fn most() -> u64 {
    MOST
}

fn most_or<'de, D: Deserializer<'de>>(source: D) -> Result<u64, D::Error> {
    Ok(whole(source)?.unwrap_or(MOST))
}

fn must<'de, D: Deserializer<'de>>(source: D) -> Result<u64, D::Error> {
    whole(source)?.ok_or_else(|| serde::de::Error::custom("a number is missing"))
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self { most: MOST }
    }
}

impl AgentConfig {
    /// As the agent checks it.
    pub fn schema() -> Spec {
        Fields::new().number_or("most", 8).spec()
    }
}

/// `config { … }` of a task.
#[derive(Debug, Deserialize)]
pub struct TaskOptions {
    /// Processors.
    #[serde(deserialize_with = "must")]
    pub vcpus: u64,
    /// How long the clock runs.
    #[serde(deserialize_with = "must")]
    pub seconds: u64,
    /// MiB that may be taken back.
    #[serde(default, deserialize_with = "whole")]
    pub balloon: Option<u64>,
    /// What boots.
    pub kernel: String,
    /// Which processors of the machine.
    #[serde(default, deserialize_with = "wholes")]
    pub cores: Vec<u64>,
    /// Bounds by name.
    #[serde(default, deserialize_with = "whole_map")]
    pub limits: BTreeMap<String, u64>,
    /// Facts for what boots.
    #[serde(default, deserialize_with = "text_map")]
    pub metadata: BTreeMap<String, String>,
    /// Disks by name.
    #[serde(default, deserialize_with = "or_default")]
    pub drive: BTreeMap<String, Drive>,
}

/// `drive "data" { … }`
#[derive(Debug, Deserialize)]
pub struct Drive {
    /// The file.
    pub path: String,
    /// MiB.
    #[serde(deserialize_with = "must")]
    pub size: u64,
    /// It may be written to.
    #[serde(default, deserialize_with = "or_default")]
    pub writable: bool,
}

impl TaskOptions {
    /// As the agent checks it.
    pub fn schema() -> Spec {
        let drive = Fields::new().text("path").number_or("size", 64).flag("writable", false);
        Fields::new()
            .number("vcpus")
            .number_or("seconds", 3600)
            .maybe_number("balloon")
            .text_or("kernel", "vmlinux-${arch} \"small\"")
            .numbers("cores")
            .number_map("limits")
            .text_block("metadata")
            .labelled("drive", "name", drive)
            .spec()
    }

    /// All of it as facts of the task, for whoever inspects it.
    pub fn facts(&self) -> BTreeMap<String, String> {
        let fact = |name: &str, value: String| (name.to_owned(), value);
        let drives = self.drive.iter().map(|(name, drive)| {
            fact(&format!("drive.{name}"), format!("{} {} {}", drive.path, drive.size, drive.writable))
        });
        let mut facts: BTreeMap<String, String> = drives.collect();
        facts.extend([
            fact("vcpus", self.vcpus.to_string()),
            fact("seconds", self.seconds.to_string()),
            fact("balloon", format!("{:?}", self.balloon)),
            fact("kernel", self.kernel.clone()),
            fact("cores", format!("{:?}", self.cores)),
            fact("limits", format!("{:?}", self.limits)),
            fact("metadata", format!("{:?}", self.metadata)),
        ]);
        facts
    }
}
