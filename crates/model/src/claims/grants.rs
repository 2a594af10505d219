//! Which interfaces may a signed component import? Those that hold nothing by themselves, and those its signer granted. An
//! import of sockets holds nothing until the app opens addresses to it; then its signer has to have granted it too.

use std::collections::BTreeSet;

use crate::interface::{ContractId, InterfaceId};

/// Contracts that need no grant: they reach nothing that the platform does not hand over separately.
const BASELINE: [&str; 9] = [
    "wasi:io",
    "wasi:cli",
    "wasi:clocks",
    "wasi:random",
    "wasi:config",
    "wasi:logging",
    // Chooses among links that the component has.
    "wasmcloud:bus",
    // Language runtimes import both. Directories are given by whoever runs a task, never by the app; addresses by the app's
    // `allow-hosts`, and then see `ungranted_sockets`.
    "wasi:filesystem",
    SOCKETS,
];
const SOCKETS: &str = "wasi:sockets";

/// Whether every signed component may import it.
pub fn is_baseline(import: &InterfaceId) -> bool {
    let contract = import.contract.to_string();
    BASELINE.contains(&contract.as_str()) || (contract == "wasi:http" && import.interface == "types")
}

/// Whether one entry of a grant covers an import: `wasi:keyvalue` all its interfaces, `wasi:keyvalue/store` one of them
/// in every version, `wasi:keyvalue/store@0.2.0-draft` one version. Anything else, such as the capability names of older
/// wasmCloud, covers nothing.
fn covers(entry: &str, import: &InterfaceId) -> bool {
    if let Ok(contract) = entry.parse::<ContractId>() {
        return contract == import.contract;
    }
    entry.parse::<InterfaceId>().is_ok_and(|granted| {
        granted.contract == import.contract
            && granted.interface == import.interface
            && (granted.version.is_none() || granted.version == import.version)
    })
}

/// The first import that is neither baseline nor granted.
pub(super) fn missing<'a>(granted: &[String], imports: &'a [InterfaceId]) -> Option<&'a InterfaceId> {
    ungranted(granted, imports).next()
}

/// Every import that is neither baseline nor granted, in order.
pub fn ungranted<'a>(granted: &[String], imports: &'a [InterfaceId]) -> impl Iterator<Item = &'a InterfaceId> {
    imports.iter().filter(|import| !is_baseline(import) && !granted.iter().any(|entry| covers(entry, import)))
}

/// The first import of sockets that is not granted: refused where `allow-hosts` opens addresses to them.
pub fn ungranted_sockets<'a>(granted: &[String], imports: &'a [InterfaceId]) -> Option<&'a InterfaceId> {
    imports.iter().filter(|import| is_sockets(import)).find(|import| !granted.iter().any(|entry| covers(entry, import)))
}

fn is_sockets(import: &InterfaceId) -> bool {
    import.contract.to_string() == SOCKETS
}

/// The contracts a component needs granted, in order; with those of sockets where `allow-hosts` opens addresses to them.
pub fn needed(imports: &[InterfaceId], sockets: bool) -> Vec<String> {
    let needs = |import: &&InterfaceId| !is_baseline(import) || (sockets && is_sockets(import));
    let contracts: BTreeSet<_> = imports.iter().filter(needs).map(|i| i.contract.to_string()).collect();
    contracts.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_cover_what_they_name_and_nothing_near_it() {
        let store: InterfaceId = "wasi:keyvalue/store@0.2.0-draft".parse().unwrap();
        for good in ["wasi:keyvalue", "wasi:keyvalue/store", "wasi:keyvalue/store@0.2.0-draft"] {
            assert!(covers(good, &store), "{good}");
        }
        for bad in [
            "",
            "*",
            "wasi",
            "wasi:*",
            "wasi:key",
            "wasi:keyvalue/atomics",
            "wasi:keyvalue/store@0.2.0",
            "wasmcloud:keyvalue",
        ] {
            assert!(!covers(bad, &store), "{bad}");
        }
    }

    #[test]
    fn sockets_are_granted_where_they_reach_something() {
        let imports: Vec<InterfaceId> =
            ["wasi:sockets/tcp@0.2.12", "wasi:sockets/udp@0.2.12", "wasi:keyvalue/store@0.2.0-draft"]
                .map(|text| text.parse().unwrap())
                .into();
        let first = |granted: &[&str]| {
            let granted: Vec<String> = granted.iter().map(|&entry| entry.to_owned()).collect();
            ungranted_sockets(&granted, &imports).map(ToString::to_string)
        };
        assert_eq!(first(&[]).as_deref(), Some("wasi:sockets/tcp@0.2.12"));
        assert_eq!(first(&["wasi:sockets/tcp", "wasi:keyvalue"]).as_deref(), Some("wasi:sockets/udp@0.2.12"));
        assert_eq!(first(&["wasi:sockets"]), None);
        assert_eq!(needed(&imports, false), ["wasi:keyvalue"]);
        assert_eq!(needed(&imports, true), ["wasi:keyvalue", "wasi:sockets"]);
    }

    #[test]
    fn outgoing_http_and_stores_are_not_baseline() {
        for (text, baseline) in [
            ("wasi:http/types@0.2.12", true),
            ("wasi:http/outgoing-handler@0.2.12", false),
            ("wasi:http/client@0.3.0", false),
            ("wasi:keyvalue/store@0.2.0-draft", false),
            ("acme:unknown/thing@1.0.0", false),
            ("wasi:cli/stdout@0.3.0", true),
        ] {
            assert_eq!(is_baseline(&text.parse().unwrap()), baseline, "{text}");
        }
    }
}
