//! Interfaces under every name that existing components import them by: each is offered, and links.

use std::io::Write as _;

use model::offers::{Lookup, lookup};
use model::{InterfaceId, World};
use providers::bus::Bus;
use providers::config::Config;
use providers::logging::Logging;
use runtime::{Runtime, RuntimeSettings};

const LATTICE: &str = r#"
    (export "call-target-interface" (type $target (sub resource)))
    (export "[constructor]call-target-interface"
      (func (param "namespace" string) (param "package" string) (param "interface" string) (result (own $target))))"#;
const BUS_1: &str =
    r#"(export "set-link-name" (func (param "name" string) (param "interfaces" (list (own $target)))))"#;
const BUS_2: &str = r#"(export "set-link-name"
    (func (param "name" string) (param "interfaces" (list (own $target))) (result (result (error string)))))"#;
const LOGGING: &str = r#"
    (type $levels (enum "trace" "debug" "info" "warn" "error" "critical"))
    (export "level" (type $level (eq $levels)))
    (export "log" (func (param "level" $level) (param "context" string) (param "message" string)))"#;

/// `wasi:config`, whose error has had two names.
fn config(error: &str) -> String {
    format!(
        r#"(type $errors (variant (case "upstream" string) (case "io" string)))
           (export "{error}" (type $error (eq $errors)))
           (export "get" (func (param "key" string) (result (result (option string) (error $error)))))
           (export "get-all" (func (result (result (list (tuple string string)) (error $error)))))"#
    )
}

#[test]
fn the_names_of_older_drafts_are_offered_and_link() {
    let settings = RuntimeSettings { instances: 1, ..RuntimeSettings::default() };
    let runtime = Runtime::new(settings, vec![Box::new(Config), Box::new(Logging), Box::new(Bus)]).unwrap();
    for (name, shape) in [
        ("wasi:config/store@0.2.0-rc.1", config("error")),
        ("wasi:config/store@0.2.0-draft", config("error")),
        ("wasi:config/runtime@0.2.0-draft", config("config-error")),
        ("wasi:logging/logging@0.1.0-draft", LOGGING.to_owned()),
        ("wasi:logging/logging", LOGGING.to_owned()),
        ("wasmcloud:bus/lattice@1.0.0", format!("{LATTICE}{BUS_1}")),
        ("wasmcloud:bus/lattice@2.0.0", format!("{LATTICE}{BUS_2}")),
        ("wasmcloud:bus/lattice@2.0.1", format!("{LATTICE}{BUS_2}")),
    ] {
        let import: InterfaceId = name.parse().unwrap();
        assert_eq!(lookup(&import), Lookup::Offered { by_link: false }, "{name}");
        let bytes = wat::parse_str(format!("(component (import \"{name}\" (instance {shape})))")).unwrap();
        for world in [World::P2, World::P3] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&runtime::compile(&bytes, world).unwrap()).unwrap();
            let code = runtime.load(world, file).unwrap();
            if let Err(refusal) = runtime.link(&code, std::slice::from_ref(&import)) {
                panic!("{name}: {refusal}");
            }
        }
    }
    // Newer ones have another shape, and are no version of what is offered.
    for name in ["wasmcloud:messaging/producer@0.3.0", "wasmcloud:bus/error@2.0.1", "wasmcloud:identity/store@0.0.1"] {
        assert_eq!(lookup(&name.parse().unwrap()), Lookup::Unknown, "{name}");
    }
    for name in
        ["wasi:keyvalue/store@0.2.0-draft2", "wasmcloud:messaging/consumer@0.3.0", "wasmcloud:secrets/store@2.1.0"]
    {
        assert!(matches!(lookup(&name.parse().unwrap()), Lookup::OtherVersion(_)), "{name}");
    }
}
