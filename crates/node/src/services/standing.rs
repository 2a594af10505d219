//! Where a host says that it stands in the queue for the cores. It is believed: one that never says it computes is what a
//! host is without this.

use std::time::Duration;

use api::services::Standing;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

use super::Client;
use crate::confine::Confinement;

/// The least time between two moves of one host's group: each takes a lock of every core. It is held on one connection, the
/// only one of its host that says this, and before that makes room for another.
const PACE: Duration = Duration::from_millis(1);

/// The group stands where its other hosts say once this one says nothing any more.
struct Stands<'a> {
    client: &'a Client,
    confinement: &'a Confinement,
}

impl Stands<'_> {
    fn say(&self, standing: Option<Standing>) {
        self.confinement.stand(&self.client.tenant.name, self.client.shard, standing);
    }
}

impl Drop for Stands<'_> {
    fn drop(&mut self) {
        self.say(None);
    }
}

/// Takes its words until it ends, or says one that is none.
pub(super) async fn serve(stream: UnixStream, client: &Client, confinement: &Confinement) -> std::io::Result<()> {
    let ended = words(stream, Stands { client, confinement }).await;
    tokio::time::sleep(PACE).await;
    ended
}

async fn words(mut stream: UnixStream, stands: Stands<'_>) -> std::io::Result<()> {
    let mut words = [0; 256];
    loop {
        let count = stream.read(&mut words).await?;
        // What was said before the last word is over.
        let Some(standing) = words.get(..count).and_then(|said| Standing::of(*said.last()?)) else { return Ok(()) };
        stands.say(Some(standing));
        tokio::time::sleep(PACE).await;
    }
}
