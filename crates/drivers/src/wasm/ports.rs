//! The ports that the agent gave a group: where its task listens, and where those beside it do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use plugin::Failure;
use plugin::driver::TaskConfig;

/// A port that the agent gave the group, or the task.
struct Port<'a> {
    label: &'a str,
    /// On the client.
    value: i32,
    /// In a namespace, where it is another one there.
    to: i32,
    /// The client's address.
    host_ip: &'a str,
}

fn ports(task: &TaskConfig) -> Vec<Port<'_>> {
    let resources = task.resources.as_ref();
    let mapped = resources.into_iter().flat_map(|resources| &resources.ports);
    let mapped = mapped.map(|port| Port { label: &port.label, value: port.value, to: port.to, host_ip: &port.host_ip });
    let networks = resources.and_then(|resources| resources.allocated_resources.as_ref());
    let networks = networks.into_iter().flat_map(|allocated| &allocated.networks);
    let reserved = networks.flat_map(|network| {
        let ports = network.reserved_ports.iter().chain(&network.dynamic_ports);
        ports.map(|port| Port { label: &port.label, value: port.value, to: 0, host_ip: &network.ip })
    });
    mapped.chain(reserved).collect()
}

/// What listens at the ports that the agent gave the group is the group's: its tasks may reach each, as `NOMAD_ADDR_…` names it, and
/// nothing else of the client whose address it is. That environment is not asked, for a job may write there what it likes.
pub(super) fn beside(task: &TaskConfig) -> impl Iterator<Item = String> {
    ports(task).into_iter().filter_map(|port| {
        let number = u16::try_from(port.value).ok().filter(|number| *number > 0)?;
        Some(SocketAddr::new(port.host_ip.parse().ok()?, number).to_string())
    })
}

/// Where a port of this label is listened to: in a namespace on every address of it, under the number inside.
pub(super) fn listen(task: &TaskConfig, label: &str, inside: bool) -> Result<SocketAddr, Failure> {
    let all = ports(task);
    let Some(found) = all.iter().find(|port| port.label == label) else {
        let labels: Vec<&str> = all.iter().map(|port| port.label).collect();
        let known = match labels.is_empty() {
            true => "it has no ports".to_owned(),
            false => format!("it has {}", labels.join(", ")),
        };
        return Err(Failure::unrecoverable(format!(
            "`http` names the port `{label}`, which the group's network does not have; {known}"
        )));
    };
    let wrong = || Failure::unrecoverable(format!("the port `{label}` was given no address to listen at"));
    let port = if inside && found.to > 0 { found.to } else { found.value };
    let port = u16::try_from(port).ok().filter(|port| *port > 0);
    let address = match inside {
        true => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        false => found.host_ip.parse().map_err(|_| wrong())?,
    };
    Ok(SocketAddr::new(address, port.ok_or_else(wrong)?))
}

#[cfg(test)]
mod tests {
    use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{PortMapping, Resources};

    use super::*;

    #[test]
    fn what_the_agent_placed_beside_a_task_is_granted_port_by_port() {
        let port = |label: &str, value, to, host_ip: &str| PortMapping {
            label: label.into(),
            value,
            to,
            host_ip: host_ip.into(),
        };
        let ports = vec![
            port("http", 20000, 8080, "10.1.2.3"),
            port("redis", 28000, 6379, "fd00::7"),
            port("none", 0, 0, "10.1.2.3"),
            port("nowhere", 1, 0, ""),
        ];
        let task = TaskConfig {
            resources: Some(Resources { ports, ..Resources::default() }),
            // The job's own, and no word of the agent's.
            env: [("NOMAD_ADDR_api".to_owned(), "10.1.2.3:4646".to_owned())].into(),
            ..TaskConfig::default()
        };
        let granted: Vec<String> = beside(&task).collect();
        assert_eq!(granted, ["10.1.2.3:20000", "[fd00::7]:28000"]);
        for range in granted {
            assert!(range.parse::<model::egress::Range>().is_ok(), "{range}");
        }
    }
}
