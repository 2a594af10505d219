//! Old and new agents: what they say that this plugin does not know, and what they do not say, changes nothing.

use drivers::contracts::hashicorp::nomad::plugins::drivers::proto::{StartTaskRequest, TaskConfig};
use prost::Message as _;

/// 29: unknown fields are skipped, absent ones are empty.
#[test]
fn fields_of_other_versions_are_skipped() {
    let old = TaskConfig { id: "a/b/c".into(), name: "b".into(), ..TaskConfig::default() };
    let mut bytes = StartTaskRequest { task: Some(old.clone()) }.encode_to_vec();
    // Field 99 of the request, as a newer agent might have one: a text.
    bytes.extend([0x9a, 0x06, 0x03, b'n', b'e', b'w']);
    let read = StartTaskRequest::decode(&*bytes).unwrap().task.unwrap();
    assert_eq!(read, old);
    assert!(read.job_id.is_empty() && read.dns.is_none() && read.network_isolation_spec.is_none());
}
