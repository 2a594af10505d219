//! The five steps of `docs/nomad.md` from an empty Nomad to a served component, taken as the page has them.

use super::cluster::{Cluster, get};

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

    let job = shown("job \"hello\"");
    let own = job.replace("https://artifacts.example.com", &format!("http://{}", cluster.artifacts()));
    assert_ne!(own, job);
    cluster.submit_text("hello", &own);
    let alloc = cluster.comes_to("hello", "running");
    let address = cluster.address(&alloc);
    let said = cluster.cli(&["alloc", "status", &alloc.0]);
    assert!(said.contains(&address.to_string()), "{said}");
    assert_eq!(get(address, "/").map(|(status, _)| status), Some(200), "it runs when it answers");
    cluster.stop("hello");
    cluster.until("nothing is left", |cluster| cluster.tasks("dc1").is_empty());
}
