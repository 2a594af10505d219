//! Every job file of `examples/nomad/` and every snippet of `docs/nomad.md`: read as HCL, its `config` taken through the
//! plugin's schema as an agent does it, and understood by the driver.

use std::path::{Path, PathBuf};

use drivers::wasm::WasmDriver;
use drivers::wasm::config::AgentConfig;
use hcl::{Block, Body, Structure};
use plugin::Driver as _;
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::{PortMapping, Resources, TaskConfig};
use serde_json::{Map, Value};

use crate::block::block;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn blocks<'a>(body: &'a Body, name: &str) -> Vec<&'a Block> {
    body.blocks().filter(|block| block.identifier() == name).collect()
}

/// A driver's `config` as JSON: labelled blocks by label. Interpolations stay as they are written; agents resolve them.
fn json(body: &Body) -> Value {
    let mut object = Map::new();
    for structure in body {
        match structure {
            Structure::Attribute(attribute) => {
                let value = match attribute.expr() {
                    hcl::Expression::TemplateExpr(template) => Value::String(template.to_string()),
                    hcl::Expression::Object(object) => {
                        let text = |key: &hcl::ObjectKey| key.to_string().trim_matches('"').to_owned();
                        let entry = |(key, value)| (text(key), serde_json::to_value(value).unwrap());
                        Value::Object(object.iter().map(entry).collect())
                    }
                    plain => serde_json::to_value(plain).unwrap(),
                };
                object.insert(attribute.key().to_owned(), value);
            }
            Structure::Block(block) => match block.labels() {
                [] => drop(object.insert(block.identifier().to_owned(), json(block.body()))),
                [label] => {
                    let all = object.entry(block.identifier()).or_insert_with(|| Value::Object(Map::new()));
                    all.as_object_mut().unwrap().insert(label.as_str().to_owned(), json(block.body()));
                }
                more => panic!("{more:?}"),
            },
        }
    }
    Value::Object(object)
}

/// Whether a task is for this driver.
fn is_ours(task: &Block) -> bool {
    let driver = task.body().attributes().find(|attribute| attribute.key() == "driver").unwrap();
    driver.expr() == &hcl::Expression::from("wasm")
}

/// A job file of `examples/nomad/`.
pub fn example(file: &str) -> String {
    std::fs::read_to_string(root().join("examples/nomad").join(file)).unwrap()
}

/// The `config` of its one task for this driver, with what it would have of its environment filled in.
pub fn config_of(file: &str, env: &[(&str, String)]) -> Value {
    let mut text = example(file);
    for (name, value) in env {
        text = text.replace(&format!("${{{name}}}"), value);
    }
    let body = hcl::parse(&text).unwrap();
    let groups = blocks(&body, "job").into_iter().flat_map(|job| blocks(job.body(), "group"));
    let tasks = groups.flat_map(|group| blocks(group.body(), "task")).filter(|task| is_ours(task));
    let configs: Vec<Value> = tasks.flat_map(|task| blocks(task.body(), "config")).map(|c| json(c.body())).collect();
    let [config] = &configs[..] else { panic!("{file}: one task") };
    config.clone()
}

/// How many tasks and agent configurations a file had; each was checked.
fn check(name: &str, text: &str) -> (usize, usize) {
    let body = hcl::parse(text).unwrap_or_else(|cause| panic!("{name}: {cause}"));
    let driver = WasmDriver::new();
    let (mut tasks, mut agents) = (0, 0);
    for plugin in blocks(&body, "plugin") {
        assert_eq!(plugin.labels()[0].as_str(), "nomad-driver-wasm", "{name}: agents load by the file's name");
        for config in blocks(plugin.body(), "config") {
            let sent =
                block(&driver.agent_schema(), &json(config.body())).unwrap_or_else(|why| panic!("{name}: {why}"));
            driver.configure(&sent).unwrap_or_else(|why| panic!("{name}: {why}"));
            agents += 1;
        }
    }
    for group in blocks(&body, "job").into_iter().flat_map(|job| blocks(job.body(), "group")) {
        let networks = blocks(group.body(), "network");
        let labels = networks.iter().flat_map(|network| blocks(network.body(), "port"));
        let ports = labels.enumerate().map(|(index, port)| PortMapping {
            label: port.labels()[0].as_str().to_owned(),
            value: 20_000 + i32::try_from(index).unwrap(),
            to: 0,
            host_ip: "127.0.0.1".into(),
        });
        let ports: Vec<_> = ports.collect();
        for task in blocks(group.body(), "task").into_iter().filter(|task| is_ours(task)) {
            let alloc = tempfile::tempdir().unwrap();
            let own = alloc.path().join(task.labels()[0].as_str());
            for folder in [own.join("local"), own.join("secrets"), alloc.path().join("alloc/data")] {
                std::fs::create_dir_all(folder).unwrap();
            }
            let [config] = blocks(task.body(), "config")[..] else { panic!("{name}: one config") };
            let sent = block(&driver.task_schema(), &json(config.body())).unwrap_or_else(|why| panic!("{name}: {why}"));
            let started = TaskConfig {
                id: "a/b/c".into(),
                name: task.labels()[0].as_str().to_owned(),
                alloc_dir: alloc.path().display().to_string(),
                env: [("NOMAD_ALLOC_ID".to_owned(), "a".to_owned())].into(),
                resources: Some(Resources { ports: ports.clone(), ..Resources::default() }),
                msgpack_driver_config: sent,
                ..TaskConfig::default()
            };
            drivers::wasm::spec::spec(&started, &AgentConfig::default()).unwrap_or_else(|why| panic!("{name}: {why}"));
            tasks += 1;
        }
    }
    (tasks, agents)
}

#[test]
fn every_example_is_understood() {
    let mut seen = (0, 0);
    for entry in std::fs::read_dir(root().join("examples/nomad")).unwrap() {
        let path = entry.unwrap().path();
        let (tasks, agents) = check(&path.display().to_string(), &std::fs::read_to_string(&path).unwrap());
        assert!(tasks + agents > 0, "{}: nothing in it is for this driver", path.display());
        seen = (seen.0 + tasks, seen.1 + agents);
    }
    assert!(seen.0 >= 2 && seen.1 >= 1, "{seen:?}");
}

/// What the page and its example name is in this repository, as it is.
#[test]
fn the_first_job_is_of_a_component_that_is_here() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let signer = read("examples/counter/signer.pub");
    let trusts = format!("trust_anchors = [\"{}\"]", signer.trim());
    for page in ["docs/nomad.md", "examples/nomad/agent.hcl"] {
        assert!(read(page).contains(&trusts), "{page}: {trusts}");
    }
    let digest = model::Digest::of(&std::fs::read(root().join("examples/counter/counter.wasm")).unwrap());
    assert!(example("hello.nomad.hcl").contains(&format!("checksum = \"{digest}\"")), "{digest}");
    let command = "python3 -m http.server --bind 127.0.0.1 --directory examples/counter 8000";
    for page in ["docs/nomad.md", "examples/nomad/hello.nomad.hcl"] {
        let text = read(page);
        assert!(text.contains(command) && text.contains("http://127.0.0.1:8000/counter.wasm"), "{page}");
    }
}

#[test]
fn the_snippets_of_the_page_are_understood() {
    let page = std::fs::read_to_string(root().join("docs/nomad.md")).unwrap();
    let mut checked = (0, 0);
    for part in page.split("```hcl\n").skip(1) {
        let (text, _) = part.split_once("```").unwrap();
        let (tasks, agents) = check("docs/nomad.md", text);
        checked = (checked.0 + tasks, checked.1 + agents);
    }
    assert_eq!(checked, (2, 1));
    // The page names every key that there is.
    let driver = WasmDriver::new();
    for spec in [driver.agent_schema(), driver.task_schema()] {
        use plugin::contracts::hashicorp::nomad::plugins::shared::hclspec::spec::Block;
        let Some(Block::Object(object)) = spec.block else { panic!("no object") };
        for name in object.attributes.keys() {
            assert!(page.contains(&format!("`{name}")), "docs/nomad.md does not name `{name}`");
        }
    }
}
