//! What a driver says, as agents read it: fingerprints, figures of use, capabilities.

use std::collections::HashMap;
use std::time::SystemTime;

use crate::contracts::hashicorp::nomad::plugins::drivers::proto::driver_capabilities::{FsIsolation, MountConfigs};
use crate::contracts::hashicorp::nomad::plugins::drivers::proto::fingerprint_response::HealthState;
use crate::contracts::hashicorp::nomad::plugins::drivers::proto::{
    CpuUsage, DriverCapabilities, DriverTaskEvent, FingerprintResponse, MemoryUsage, TaskResourceUsage, TaskStats,
    cpu_usage, memory_usage,
};
use crate::contracts::hashicorp::nomad::plugins::shared::structs::{Attribute, attribute};
use crate::driver::{Capabilities, Event, Fact, Files, Fingerprint, Health, Usage};

pub(crate) fn capabilities(has: Capabilities) -> DriverCapabilities {
    DriverCapabilities {
        send_signals: has.signals,
        exec: has.exec,
        fs_isolation: match has.files {
            Files::Machine => FsIsolation::None.into(),
            Files::Root => FsIsolation::Chroot.into(),
            Files::Own => FsIsolation::Image.into(),
        },
        network_isolation_modes: has.networks.iter().map(|mode| i32::from(*mode)).collect(),
        must_create_network: has.creates_networks,
        mount_configs: if has.mounts { MountConfigs::AnyMounts.into() } else { MountConfigs::NoMounts.into() },
        disable_log_collection: has.own_logs,
        dynamic_workload_users: has.dynamic_users,
    }
}

pub(crate) fn event(event: Event) -> DriverTaskEvent {
    DriverTaskEvent {
        task_id: event.task,
        alloc_id: event.alloc,
        task_name: event.name,
        timestamp: Some(SystemTime::now().into()),
        message: event.message,
        annotations: event.annotations.into_iter().collect(),
    }
}

pub(crate) fn fingerprint(seen: Fingerprint) -> FingerprintResponse {
    let attribute = |(name, fact)| {
        let (value, unit) = match fact {
            Fact::Text(text) => (attribute::Value::StringVal(text), ""),
            Fact::Number(number) => (attribute::Value::IntVal(number), ""),
            Fact::Measure(number, unit) => (attribute::Value::IntVal(number), unit),
            Fact::Flag(flag) => (attribute::Value::BoolVal(flag), ""),
        };
        (name, Attribute { value: Some(value), unit: unit.to_owned() })
    };
    FingerprintResponse {
        attributes: seen.attributes.into_iter().map(attribute).collect(),
        health: match seen.health {
            Health::Undetected => HealthState::Undetected.into(),
            Health::Unhealthy => HealthState::Unhealthy.into(),
            Health::Healthy => HealthState::Healthy.into(),
        },
        health_description: seen.description,
        err: String::new(),
    }
}

pub(crate) fn stats(id: &str, usage: Usage, mhz: f64) -> TaskStats {
    use cpu_usage::Fields as Cpu;
    use memory_usage::Fields as Memory;
    let percent = |share: f64| share * 100.0;
    let cpu = CpuUsage {
        system_mode: percent(usage.system),
        user_mode: percent(usage.user),
        total_ticks: (usage.user + usage.system) * mhz,
        percent: percent(usage.user + usage.system),
        measured_fields: [Cpu::SystemMode, Cpu::UserMode, Cpu::TotalTicks, Cpu::Percent].map(Into::into).to_vec(),
        ..CpuUsage::default()
    };
    let memory = MemoryUsage {
        rss: usage.rss,
        usage: usage.rss,
        max_usage: usage.max_rss,
        measured_fields: [Memory::Rss, Memory::Usage, Memory::MaxUsage].map(Into::into).to_vec(),
        ..MemoryUsage::default()
    };
    let used = TaskResourceUsage { cpu: Some(cpu), memory: Some(memory) };
    TaskStats {
        id: id.to_owned(),
        timestamp: Some(SystemTime::now().into()),
        agg_resource_usage: Some(used),
        resource_usage_by_pid: HashMap::new(),
    }
}

/// What one core does, MHz: what agents show CPU use against. 1000 where the kernel does not say.
pub(crate) fn base_mhz() -> f64 {
    let most = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/base_frequency").ok();
    let khz = most.and_then(|text| text.trim().parse::<f64>().ok());
    let now = || {
        let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let line = text.lines().find(|line| line.starts_with("cpu MHz"))?;
        line.split(':').nth(1)?.trim().parse::<f64>().ok()
    };
    khz.map(|khz| khz / 1000.0).or_else(now).unwrap_or(1000.0)
}
