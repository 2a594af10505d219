//! A real OpenBao for all tests of this program: in memory, unsealed, ended by the shell that started it when the program
//! ends. Vault's API is OpenBao's.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::support::plain_http;

/// Where the server is, and a token that may set it up.
#[derive(Clone)]
pub(crate) struct Real {
    pub(crate) address: SocketAddr,
    pub(crate) root: String,
}

static SHARED: OnceLock<Option<(Real, Option<ChildStdin>)>> = OnceLock::new();

/// The server that `VAULT_ADDR` names, or one that is started; `None`, said loudly, where there is neither.
pub(crate) fn real() -> Option<Real> {
    SHARED.get_or_init(found).as_ref().map(|(real, _)| real.clone())
}

fn found() -> Option<(Real, Option<ChildStdin>)> {
    if let Ok(url) = std::env::var("VAULT_ADDR") {
        let address = url.trim_start_matches("http://").trim_end_matches('/').parse();
        let address = address.expect("VAULT_ADDR is http://ADDRESS:PORT");
        let root = std::env::var("VAULT_TOKEN").expect("VAULT_TOKEN may set up mounts, policies and logins");
        return Some((Real { address, root }, None));
    }
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/servers/openbao/bao");
    let program = std::env::var_os("BAO_BIN").map_or(beside, PathBuf::from);
    if !program.is_file() {
        crate::support::not_run(
            "a real Vault. What was missing: the program `bao` of OpenBao (BAO_BIN, or VAULT_ADDR)",
        );
        return None;
    }
    let address = crate::ports::free();
    let root = "root-of-these-tests".to_owned();
    // The shell reads until this program is gone, however it went, and then ends the server.
    let script = r#""$0" server -dev -dev-no-store-token -dev-root-token-id="$1" -dev-listen-address="$2" <&- & read -r _; kill $!; wait"#;
    #[allow(clippy::zombie_processes, reason = "it ends with this program")]
    let mut shell = Command::new("sh")
        .args(["-c", script])
        .arg(program)
        .args([&root, &address.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while plain_http(address, "GET", "/v1/sys/health", ("x-vault-token", ""), "")
        .is_none_or(|(status, _)| status != 200)
    {
        assert!(start.elapsed() < Duration::from_secs(60), "bao does not answer at {address}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some((Real { address, root }, shell.stdin.take()))
}
