//! The interfaces this version offers to components: what is there for everybody, what needs a link, and what a
//! component that asks for something else probably meant.

use std::fmt;

use crate::interface::{ContractId, InterfaceId};
use crate::rules::nearest;

/// Which versions of a package are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// Every release `major.minor.*`: WASI keeps them compatible. The patch is the one the platform was built with.
    Track(u64, u64, u64),
    /// This version only: a draft.
    Exact(&'static str),
    /// The package without a version.
    Unversioned,
}

impl fmt::Display for Offered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Track(major, minor, patch) => write!(f, "{major}.{minor}.{patch}"),
            Self::Exact(version) => f.write_str(version),
            Self::Unversioned => f.write_str("none"),
        }
    }
}

impl Offered {
    /// Whether `version` is of the same track: a release candidate of what is offered.
    fn near(self, version: Option<&semver::Version>) -> bool {
        matches!((self, version), (Self::Track(major, minor, _), Some(v)) if (v.major, v.minor) == (major, minor))
    }

    /// Whether a component built against `version` can be served.
    pub fn accepts(self, version: Option<&semver::Version>) -> bool {
        match (self, version) {
            (Self::Unversioned, version) => version.is_none(),
            (_, None) => false,
            (Self::Track(major, minor, _), Some(v)) => v.major == major && v.minor == minor && v.pre.is_empty(),
            (Self::Exact(text), Some(v)) => v.to_string() == text,
        }
    }
}

/// A package of the platform, or one version of it.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// `namespace:package`.
    pub contract: &'static str,
    /// Which versions.
    pub version: Offered,
    /// Its interfaces, by name.
    pub interfaces: &'static [&'static str],
    /// Whether a component that imports it needs a link to a provider.
    pub by_link: bool,
}

const P2: Offered = Offered::Track(0, 2, 12);
const P3: Offered = Offered::Track(0, 3, 0);

const fn free(contract: &'static str, version: Offered, interfaces: &'static [&'static str]) -> Offer {
    Offer { contract, version, interfaces, by_link: false }
}

/// Everything that is offered. Filesystem and sockets are there because language runtimes import them; the one holds no
/// directories, the other reaches what `allow-hosts` name and nothing else.
pub const OFFERS: &[Offer] = &[
    free(
        "wasi:cli",
        P2,
        &[
            "environment",
            "exit",
            "stdin",
            "stdout",
            "stderr",
            "terminal-input",
            "terminal-output",
            "terminal-stdin",
            "terminal-stdout",
            "terminal-stderr",
        ],
    ),
    free("wasi:io", P2, &["error", "poll", "streams"]),
    free("wasi:clocks", P2, &["monotonic-clock", "wall-clock"]),
    free("wasi:random", P2, &["random", "insecure", "insecure-seed"]),
    free("wasi:http", P2, &["types", "outgoing-handler"]),
    free("wasi:filesystem", P2, &["types", "preopens"]),
    free(
        "wasi:sockets",
        P2,
        &["network", "instance-network", "ip-name-lookup", "tcp", "tcp-create-socket", "udp", "udp-create-socket"],
    ),
    free(
        "wasi:cli",
        P3,
        &[
            "environment",
            "exit",
            "types",
            "stdin",
            "stdout",
            "stderr",
            "terminal-input",
            "terminal-output",
            "terminal-stdin",
            "terminal-stdout",
            "terminal-stderr",
        ],
    ),
    free("wasi:clocks", P3, &["types", "monotonic-clock", "system-clock"]),
    free("wasi:random", P3, &["random", "insecure", "insecure-seed"]),
    free("wasi:http", P3, &["types", "client"]),
    free("wasi:filesystem", P3, &["types", "preopens"]),
    free("wasi:sockets", P3, &["types", "ip-name-lookup"]),
    free("wasi:config", Offered::Exact("0.2.0-rc.1"), &["store"]),
    free("wasi:config", Offered::Exact("0.2.0-draft"), &["store", "runtime"]),
    free("wasi:logging", Offered::Exact("0.1.0-draft"), &["logging"]),
    free("wasi:logging", Offered::Unversioned, &["logging"]),
    free("wasmcloud:bus", Offered::Track(2, 0, 1), &["lattice"]),
    free("wasmcloud:bus", Offered::Track(1, 0, 0), &["lattice"]),
    Offer {
        contract: "wasi:keyvalue",
        version: Offered::Exact("0.2.0-draft"),
        interfaces: &["store", "atomics", "batch"],
        by_link: true,
    },
    Offer {
        contract: "wasi:blobstore",
        version: Offered::Exact("0.2.0-draft"),
        interfaces: &["types", "container", "blobstore"],
        by_link: true,
    },
    free("wasmcloud:messaging", Offered::Exact("0.2.0"), &["types"]),
    Offer {
        contract: "wasmcloud:messaging",
        version: Offered::Exact("0.2.0"),
        interfaces: &["consumer"],
        by_link: true,
    },
    Offer {
        contract: "wasmcloud:secrets",
        version: Offered::Exact("0.1.0-draft"),
        interfaces: &["store", "reveal"],
        by_link: true,
    },
    Offer {
        contract: crate::sql::CONTRACT,
        version: Offered::Exact("0.1.0"),
        interfaces: &["types", "client"],
        by_link: true,
    },
    Offer {
        contract: crate::sql::POSTGRES,
        version: Offered::Exact("0.1.1-draft"),
        interfaces: &["types", "query", "prepared"],
        by_link: true,
    },
];

/// Every interface that is offered, as people write it.
pub fn interfaces() -> impl Iterator<Item = String> {
    OFFERS.iter().flat_map(|offer| {
        let version = match offer.version {
            Offered::Unversioned => String::new(),
            version => format!("@{version}"),
        };
        offer.interfaces.iter().map(move |name| format!("{}/{name}{version}", offer.contract))
    })
}

/// What the platform has for an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// It is offered; `by_link` says whether a link must say who answers.
    Offered {
        /// Whether a link is needed.
        by_link: bool,
    },
    /// The interface is offered in another version.
    OtherVersion(Offered),
    /// It is not offered at all.
    Unknown,
}

/// Looks an import up.
pub fn lookup(import: &InterfaceId) -> Lookup {
    let contract = import.contract.to_string();
    let interface = import.interface.as_str();
    let mut offers = OFFERS.iter().filter(|o| o.contract == contract && o.interfaces.contains(&interface));
    match offers.clone().find(|o| o.version.accepts(import.version.as_ref())) {
        Some(offer) => Lookup::Offered { by_link: offer.by_link },
        None => match offers.clone().find(|o| o.version.near(import.version.as_ref())).or_else(|| offers.next()) {
            Some(offer) => Lookup::OtherVersion(offer.version),
            None => Lookup::Unknown,
        },
    }
}

/// The versions in which an interface is offered, whatever version the import has.
pub fn versions(import: &InterfaceId) -> Vec<Offered> {
    let contract = import.contract.to_string();
    let interface = import.interface.as_str();
    OFFERS.iter().filter(|o| o.contract == contract && o.interfaces.contains(&interface)).map(|o| o.version).collect()
}

/// Whether an export makes a component answer HTTP.
pub fn is_http_handler(export: &InterfaceId) -> bool {
    if export.contract.namespace != "wasi" || export.contract.package != "http" {
        return false;
    }
    match &*export.interface {
        "incoming-handler" => P2.accepts(export.version.as_ref()),
        "handler" => P3.accepts(export.version.as_ref()),
        _ => false,
    }
}

/// Whether an export makes a component take messages.
pub fn is_message_handler(export: &InterfaceId) -> bool {
    export.contract.to_string() == crate::messaging::CONTRACT
        && &*export.interface == "handler"
        && Offered::Exact("0.2.0").accepts(export.version.as_ref())
}

/// Whether an import makes a component call out over HTTP.
pub fn is_http_client(import: &InterfaceId) -> bool {
    import.contract.namespace == "wasi"
        && import.contract.package == "http"
        && matches!(&*import.interface, "outgoing-handler" | "client")
}

/// The contracts that components reach by link.
pub fn contracts_by_link() -> impl Iterator<Item = &'static str> {
    OFFERS.iter().filter(|o| o.by_link).map(|o| o.contract)
}

/// Whether the platform has interfaces of `contract`, by link or not.
pub fn is_known(contract: &ContractId) -> bool {
    let text = contract.to_string();
    OFFERS.iter().any(|o| o.contract == text)
}

/// Whether links carry `contract`.
pub fn is_by_link(contract: &ContractId) -> bool {
    let text = contract.to_string();
    contracts_by_link().any(|c| c == text)
}

/// The offered interface, `namespace:package/interface@version`, that an import was probably meant to be: one with nearly
/// the same name, otherwise the one of the same package that is nearest to it.
pub fn nearest_interface(import: &InterfaceId) -> Option<String> {
    let contract = import.contract.to_string();
    let written = format!("{contract}/{}", import.interface);
    let known: Vec<(String, Offered)> = OFFERS
        .iter()
        .flat_map(|o| o.interfaces.iter().map(move |i| (format!("{}/{i}", o.contract), o.version)))
        .collect();
    let names = || known.iter().map(|(name, _)| name.as_str());
    let near = nearest(&written, names()).or_else(|| {
        let distance = |name: &&str| strsim::damerau_levenshtein(&written, name);
        names()
            .filter(|name| name.rsplit_once('/').is_some_and(|(package, _)| package == contract))
            .min_by_key(distance)
    })?;
    let mut versions = known.iter().filter(|(name, _)| name == near).map(|(_, version)| version);
    let version = versions.clone().find(|v| v.near(import.version.as_ref())).or_else(|| versions.next())?;
    Some(match version {
        Offered::Unversioned => near.to_owned(),
        version => format!("{near}@{version}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_is_of_a_like_name_or_of_the_same_package() {
        for (import, near) in [
            ("wasi:keyvalue/atomic@0.2.0-draft", Some("wasi:keyvalue/atomics@0.2.0-draft")),
            ("wasi:key-value/store@0.2.0-draft", Some("wasi:keyvalue/store@0.2.0-draft")),
            // Of the version that the component is built against.
            ("wasi:http/clients@0.3.0", Some("wasi:http/client@0.3.0")),
            ("wasi:cli/std-in@0.2.1", Some("wasi:cli/stdin@0.2.12")),
            ("wasi:cli/std-in@0.3.0", Some("wasi:cli/stdin@0.3.0")),
            // Interfaces of earlier drafts.
            ("wasi:keyvalue/eventual@0.1.0", Some("wasi:keyvalue/store@0.2.0-draft")),
            ("wasi:logging/log", Some("wasi:logging/logging@0.1.0-draft")),
            ("acme:unknown/thing@1.0.0", None),
            ("wasi:nn/graph@0.2.0", None),
        ] {
            assert_eq!(nearest_interface(&import.parse().unwrap()).as_deref(), near, "{import}");
        }
    }
}
