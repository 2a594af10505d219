//! The five steps of `docs/nomad.md` from an empty Nomad to a served component, taken as the page has them.

use std::io::BufRead as _;
use std::process::{Child, Command, Stdio};

use super::cluster::{Cluster, get};

/// A folder that is served, until this is dropped.
struct Served {
    child: Child,
    port: u16,
}

impl Served {
    /// By this command, from the top of the repository; `None` where there is no such program.
    fn by(command: &str) -> Option<Self> {
        let mut words = command.split_whitespace();
        let mut child = Command::new(words.next()?)
            .args(words)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
            .env("PYTHONUNBUFFERED", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        // "Serving HTTP on 127.0.0.1 port 8000 (…"
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take()?).read_line(&mut line).ok()?;
        let port = line.split(" port ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
        let this = Self { child, port: port.unwrap_or_default() };
        (this.port > 0).then_some(this)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop((self.child.kill(), self.child.wait()));
    }
}

/// 30: the agent's configuration and the job are those of the page; what it says one sees is seen.
#[test]
fn a_real_agent_is_taken_through_the_five_steps_of_the_page() {
    let Some(nomad) = super::nomad("the five steps of docs/nomad.md") else { return };
    let page = include_str!("../../../../../docs/nomad.md");
    let shown = |begins: &str| -> &str {
        let mut parts = page.split("```hcl\n").skip(1).map(|part| part.split_once("```").unwrap().0);
        parts.find(|text| text.trim_start().starts_with(begins)).expect(begins)
    };
    // The job is for the first client of a Nomad that nobody has named otherwise.
    let mut cluster = Cluster::alone(nomad);
    let config = shown("plugin \"nomad-driver-wasm\"").split_once("config {").unwrap().1.split_once('}').unwrap().0;
    cluster.join("dc1", config);
    cluster.until("the driver is healthy", |cluster| cluster.driver("dc1")["Healthy"] == true);
    let node = cluster.node("dc1")["ID"].as_str().unwrap().to_owned();
    let said = cluster.cli(&["node", "status", "-verbose", &node]);
    assert!(said.contains("driver.wasm") && said.contains("driver.wasm.contracts"), "{said}");

    // Served by the command of the page, at whatever port is free.
    let command = page.lines().map(str::trim).find(|line| line.starts_with("python3 -m http.server")).unwrap();
    let Some(served) = Served::by(&command.replace("8000", "0")) else {
        return crate::not_run("the component of the five steps: there is no `python3` that serves it");
    };
    let job = shown("job \"hello\"");
    let own = job.replace("127.0.0.1:8000", &format!("127.0.0.1:{}", served.port));
    assert_ne!(own, job);
    cluster.submit_text("hello", &own);
    let alloc = cluster.comes_to("hello", "running");
    let address = cluster.address(&alloc);
    let said = cluster.cli(&["alloc", "status", &alloc.0]);
    assert!(said.contains(&address.to_string()), "{said}");
    for seen in 1..=2 {
        let (status, body) = get(address, "/").expect("it runs when it answers");
        assert_eq!((status, body.trim()), (200, format!("counter: {seen}").as_str()));
        assert!(page.contains(&format!("`{}`", body.trim())), "the page says so");
    }
    cluster.stop("hello");
    cluster.until("nothing is left", |cluster| cluster.tasks("dc1").is_empty());
}
