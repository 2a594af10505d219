//! The counter of `examples/counter`, part of this program: `up --demo` needs no file and no toolchain.

use api::client::ControlClient;

use crate::context::{Context, refused};
use crate::project::Project;

const MANIFEST: &str = include_str!("../../../examples/counter/app.toml");
const COMPONENT: &[u8] = include_bytes!("../../../examples/counter/counter.wasm");
/// The account that signed it.
const SIGNER_FILE: &str = include_str!("../../../examples/counter/signer.pub");

/// The public key that the demo's signature is checked against.
pub fn signer() -> &'static str {
    SIGNER_FILE.trim()
}

/// The demo, locked for the tenant.
///
/// # Errors
/// When the tenant cannot be read.
pub async fn project(context: &Context, client: &ControlClient) -> anyhow::Result<Project> {
    let tenant = client.tenant(&context.tenant).await.map_err(refused)?;
    Project::built_in(MANIFEST, COMPONENT, &tenant.settings)
}
