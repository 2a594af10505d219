//! What a task in a network of its own reaches there. Whoever listens at an address of that network is of the task's group (a task
//! beside it, a sidecar of a service mesh), so what the job names there is granted, and its client's egress has no say. Port by
//! port: a name that somebody else lets point there opens nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use api::task::TaskSpec;
use model::LockedApp;
use model::egress::{AllowedHost, Destination, endpoint_of};
use model::tenant::TenantSettings;
use node::dialer::is_own;

/// What the task trusts, may use and reach: what its starter says, and in a network of its own what the job names there.
pub fn settings(spec: &TaskSpec, app: &LockedApp) -> TenantSettings {
    let mut settings = spec.settings.clone();
    if spec.network.is_some() {
        settings.egress.extend(granted(app, |address| address.is_loopback() || is_own(address)));
    }
    settings
}

/// The places at addresses that are `own` which links and `allow-hosts` of the app name, as egress ranges.
fn granted(app: &LockedApp, own: impl Fn(IpAddr) -> bool) -> Vec<String> {
    let links = app.providers.values().filter_map(endpoint_of);
    let hosts = app.components.values().flat_map(|component| &component.allow_hosts);
    let hosts = hosts.filter_map(|text| AllowedHost::parse(text)?.place());
    let places = links.chain(hosts).flat_map(|(host, port)| {
        let addresses = addresses(&host).into_iter();
        addresses.map(move |address| SocketAddr::new(address, port))
    });
    places.filter(|place| own(place.ip())).map(|place| place.to_string()).collect()
}

/// What is meant by a host, where no nameserver is needed to know.
fn addresses(host: &Destination) -> Vec<IpAddr> {
    match host {
        Destination::Address(address) => vec![*address],
        Destination::Name(name) if name == "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        Destination::Name(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_job_names_in_its_own_network_is_granted_port_by_port() {
        let redis = |url: &str| serde_json::json!({"type": "keyvalue-redis", "config": {"url": url}});
        let hosts = [
            "http://10.88.0.2:9000",
            "tcp://[::1]:5432",
            "https://api.example.com",
            "http://10.1.0.5:4646",
            "http://*.example.com:8080",
        ];
        let component = serde_json::json!({"digest": model::Digest::of(b"x"), "size": 1, "world": "p2", "imports": [],
            "exports": [], "allow_hosts": hosts});
        let app: LockedApp = serde_json::from_value(serde_json::json!({"name": "a", "components": {"c": component},
            "providers": {"a": redis("redis://127.0.0.1:6379"), "b": redis("redis://localhost:7000"),
                "c": redis("redis://redis.example")}}))
        .unwrap();
        let own = |address: IpAddr| address.is_loopback() || address == IpAddr::from([10, 88, 0, 2]);
        let places = granted(&app, own);
        assert_eq!(places, ["127.0.0.1:6379", "127.0.0.1:7000", "[::1]:7000", "10.88.0.2:9000", "[::1]:5432"]);
        for place in places {
            assert!(place.parse::<model::egress::Range>().is_ok(), "{place}");
        }
    }
}
