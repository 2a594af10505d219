//! The job of a component and its Redis, side by side, on a client whose address is not loopback.

use super::cluster::{Cluster, get};
use crate::namespace::Namespace;

/// 25: `examples/nomad/redis.nomad.hcl` as it stands, but for where its artifact is and for the chroot that the other driver makes.
#[test]
fn a_real_agent_s_task_reaches_the_redis_beside_it() {
    let Some(nomad) = super::nomad("tasks side by side") else { return };
    let what = "tasks side by side under a real Nomad agent";
    let Some(client) = Namespace::new(what, &[]) else { return };
    if !client.interface("client", "10.213.77.2/24") {
        return crate::not_run(&format!("{what}: this machine has no pairs of interfaces (veth)"));
    }
    client.inside(move || {
        let mut cluster = Cluster::alone(nomad);
        cluster.interface = "client";
        let digest = model::Digest::of(b"another one");
        cluster.join(
            "dc1",
            &format!(
                "allow_unsigned = true\nsidereal = \"{}\"\nrevoked = [\"{digest}\"]\nstore_bytes = \"64MiB\"\nceilings = {{\n cpu = \"1s\"\n}}",
                crate::agent::sidereal().display()
            ),
        );
        cluster.until("both drivers are healthy", |cluster| {
            let drivers = &cluster.node("dc1")["Drivers"];
            ["wasm", "raw_exec"].iter().all(|name| drivers[*name]["Healthy"] == true)
        });
        let job = crate::jobs::example("redis.nomad.hcl");
        let own = job
            .replace("https://artifacts.example.com", &format!("http://{}", cluster.artifacts()))
            .replace("counter.wasm", "kv-counter.wasm")
            .replace("driver = \"exec\"", "driver = \"raw_exec\"");
        assert!(own.contains("raw_exec") && own.contains("redis://${NOMAD_ADDR_redis}"), "{own}");
        cluster.submit_text("counter", &own);
        let alloc = cluster.comes_to("counter", "running");
        let address = cluster.address(&alloc);
        assert_eq!(address.ip().to_string(), "10.213.77.2");
        cluster.until("it counts", |_| get(address, "/").is_some_and(|(status, _)| status == 200));
        let count = || get(address, "/").and_then(|(_, body)| body.trim().parse::<u32>().ok());
        let before = count().unwrap();
        assert_eq!(count(), Some(before + 1));
        cluster.stop("counter");
        cluster.until("nothing is left", |cluster| cluster.tasks("dc1").is_empty());
    });
}
