//! Tasks at addresses as clients have them, which are not loopback: what Nomad placed beside one is reached, port by port, and
//! whoever stands before one is no stranger for having many connections.

use std::net::{IpAddr, SocketAddr, TcpListener};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::agent::{Agent, Alloc};
use crate::block::block;
use crate::jobs::config_of;
use crate::namespace::Namespace;
use crate::servers::Server;

/// The client's.
const HERE: &str = "10.213.77.2";

fn here() -> IpAddr {
    HERE.parse().unwrap()
}

fn configure(agent: &Agent, alloc: &mut Alloc, config: &Value) {
    alloc.config.msgpack_driver_config = block(&agent.schema, config).unwrap();
}

/// The task of `examples/nomad/redis.nomad.hcl`, whose Redis is at this place.
fn linked(redis: SocketAddr) -> Value {
    let mut config = config_of("redis.nomad.hcl", &[("NOMAD_ADDR_redis", redis.to_string())]);
    config["component"] = "local/app.wasm".into();
    config
}

/// Whoever answers at some port of the client, for as long as the tests run.
fn answers() -> u16 {
    let listener = TcpListener::bind((here(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nhere";
            drop(std::io::Read::read(&mut stream, &mut [0; 1024]));
            drop(std::io::Write::write_all(&mut stream, answer));
        }
    });
    port
}

/// 25: a link and a component reach the ports that the agent gave their group, though the address is the client's own; no other
/// port of it, whatever range holds the address.
#[test]
fn a_task_reaches_what_is_placed_beside_it_and_no_other_port_of_its_client() {
    let Some(client) = Namespace::new("a task beside its Redis", &[HERE]) else { return };
    client.run(async || {
        let (redis, stranger) = (Server::redis_at(here()), Server::redis_at(here()));
        // Nothing is granted but what the agent placed.
        let mut agent = Agent::start().await;
        let mut alloc = agent.alloc("beside", "kv-counter");
        alloc.at(here(), &[("redis", redis.addr.port())]);
        configure(&agent, &mut alloc, &linked(redis.addr));
        agent.start_task(&alloc.config).await.unwrap();
        for count in ["1", "2"] {
            let (status, body) = alloc.get("/").await.unwrap();
            assert_eq!((status, body.trim()), (200, count));
        }
        agent.destroy(alloc.id(), true).await.unwrap();
        alloc.next_id();
        configure(&agent, &mut alloc, &linked(stranger.addr));
        let refused = agent.start_task(&alloc.config).await.unwrap_err();
        assert!(refused.message().contains("an address of this machine"), "{refused}");

        let (near, far) = (answers(), answers());
        let mut probe = agent.alloc("near", "probe");
        probe.at(here(), &[("api", near)]);
        let url = |port: u16| format!("http://{HERE}:{port}");
        let config =
            json!({"component": "local/app.wasm", "http": {"port": "http"}, "allow_hosts": [url(near), url(far)]});
        configure(&agent, &mut probe, &config);
        agent.start_task(&probe.config).await.unwrap();
        let fetched = async |port: u16| probe.get(&format!("/fetch?url={}/", url(port))).await.unwrap();
        assert_eq!(fetched(near).await, (200, "here".to_owned()));
        assert_eq!(fetched(far).await.0, 502);
        agent.destroy(probe.id(), true).await.unwrap();
        assert!(agent.left().is_empty());
    });
}

/// 25: what another allocation serves is reached wherever Nomad placed that, also on the same client: where the agent's
/// configuration names the ports, and never by the range of a network alone.
#[test]
fn a_service_is_reached_on_whichever_client_nomad_placed_it() {
    let Some(client) = Namespace::new("a service on the same client", &[HERE]) else { return };
    client.run(async || {
        let redis = Server::redis_at(here());
        let port = redis.addr.port();
        for (egress, reached) in [
            ("10.213.77.0/24".to_owned(), false),
            (format!("10.213.77.0/24:{}-{}", port + 1, port + 10), false),
            (format!("10.213.77.0/24:{}-{}", port - 10, port + 10), true),
        ] {
            let mut agent = Agent::with(json!({"allow_unsigned": true, "egress": [egress]})).await;
            let mut alloc = agent.alloc("placed", "kv-counter");
            alloc.at(here(), &[]);
            configure(&agent, &mut alloc, &linked(redis.addr));
            match agent.start_task(&alloc.config).await {
                Ok(_) => {
                    assert!(reached, "{egress}");
                    assert_eq!(alloc.get("/").await.unwrap().0, 200);
                    agent.destroy(alloc.id(), true).await.unwrap();
                }
                Err(refused) => {
                    let why = "an address of this machine, which only a range with ports grants";
                    assert!(!reached && refused.message().contains(why), "{egress}: {refused}");
                }
            }
            assert!(agent.left().is_empty());
        }
    });
}

/// 25: a proxy in front, which is one address and not loopback, holds more connections than a client of a node of its own may.
#[test]
fn a_load_balancer_holds_as_many_connections_as_it_likes() {
    const HELD: usize = 520;
    let Some(client) = Namespace::new("a task behind a load balancer", &[HERE]) else { return };
    client.run(async || {
        let mut agent = Agent::start().await;
        let mut alloc = agent.alloc("crowd", "hello");
        alloc.at(here(), &[]);
        agent.start_task(&alloc.config).await.unwrap();
        let mut held = Vec::new();
        for _ in 0..HELD {
            let mut stream = TcpStream::connect(alloc.address).await.unwrap();
            assert_eq!(stream.local_addr().unwrap().ip(), here(), "one address, and not loopback");
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut begin = [0; 12];
            stream.read_exact(&mut begin).await.unwrap();
            assert_eq!(&begin, b"HTTP/1.1 200");
            held.push(stream);
        }
        assert_eq!(alloc.get("/").await.unwrap().0, 200, "one more");
        drop(held);
        agent.destroy(alloc.id(), true).await.unwrap();
    });
}

/// 25: in a network of its own a link reaches a sidecar by loopback, as a service mesh says it, and nothing is granted for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_in_the_network_of_the_group_is_reached_by_its_links() {
    use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::NetworkIsolationSpec;
    use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::network_isolation_spec::Mode;

    let Some(group) = Namespace::new("a sidecar in the network of a group", &[HERE]) else { return };
    let (sidecar, other) = group.inside(|| {
        let home = IpAddr::from([127, 0, 0, 1]);
        (Server::redis_at(home), Server::redis_at(here()))
    });
    let mut agent = Agent::start().await;
    let mut alloc = agent.alloc("sidecar", "kv-counter");
    alloc.config.network_isolation_spec =
        Some(NetworkIsolationSpec { mode: Mode::Group.into(), path: group.path(), ..NetworkIsolationSpec::default() });
    let port = alloc.address.port();
    for (place, count) in [
        (sidecar.addr.to_string(), "1"),
        (format!("localhost:{}", sidecar.addr.port()), "2"),
        (other.addr.to_string(), "1"),
    ] {
        let link = json!({"provider": "redis", "url": format!("redis://{place}")});
        let config = json!({"component": "local/app.wasm", "http": {"port": "http"}, "link": {"wasi:keyvalue": link}});
        configure(&agent, &mut alloc, &config);
        agent.start_task(&alloc.config).await.unwrap_or_else(|why| panic!("{place}: {why}"));
        group.run(move || async move {
            let answer = crate::agent::get(([127, 0, 0, 1], port).into(), "/").await.unwrap();
            assert_eq!((answer.0, answer.1.trim()), (200, count));
        });
        agent.destroy(alloc.id(), true).await.unwrap();
        alloc.next_id();
    }
    assert!(agent.left().is_empty());
}
