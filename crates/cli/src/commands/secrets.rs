//! `secret`: values go in by stdin or a prompt, never by arguments or environment, and never come out.

use std::io::{IsTerminal as _, Read as _};

use anyhow::Context as _;
use api::client::Require;
use api::{Code, Problem};
use model::secret::MAX_SECRET;
use model::{SecretName, SecretValue};

use crate::args::SecretCommand;
use crate::context::{Context, refused};
use crate::output::{moment, table};

/// `sidereal secret`
///
/// # Errors
/// When there is no value, or the platform refuses.
pub async fn secret(context: &Context, command: SecretCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        SecretCommand::Set { name, raw, expect, new } => {
            let value = read(&name, raw)?;
            let require = match (expect, new) {
                (Some(etag), _) => Require::At(etag),
                (None, true) => Require::Absent,
                (None, false) => Require::Any,
            };
            let view = client.put_secret(&context.tenant, &name, value, require).await.map_err(refused)?;
            context.out.result(&view, || format!("secret {name} is set, version {}", view.version));
        }
        SecretCommand::List => {
            let secrets = client.secrets(&context.tenant).await.map_err(refused)?;
            let rows = secrets.iter().map(|secret| {
                let set = moment(secret.updated_ms);
                vec![secret.name.to_string(), secret.version.to_string(), set, secret.used_by.join("; ")]
            });
            let rows: Vec<_> = rows.collect();
            context.out.result(&secrets, || match rows.is_empty() {
                true => "no secrets; `sidereal secret set NAME` makes one".to_owned(),
                false => table(&["SECRET", "VERSION", "SET", "USED BY"], rows),
            });
        }
        SecretCommand::Delete { name, force } => {
            client.delete_secret(&context.tenant, &name, force, Require::Any).await.map_err(refused)?;
            let data = serde_json::json!({ "secret": name, "deleted": true });
            context.out.result(&data, || format!("secret {name} is deleted"));
        }
        SecretCommand::RotateKey => {
            let rotated = client.rotate_secrets_key().await.map_err(refused)?;
            context.out.result(&rotated, || {
                format!(
                    "key {} seals now, for {} tenants; keep a backup of keys/secrets.key",
                    rotated.key, rotated.tenants
                )
            });
        }
    }
    Ok(())
}

/// The value: what a person types unseen, or what is piped in.
fn read(name: &SecretName, raw: bool) -> anyhow::Result<SecretValue> {
    let stdin = std::io::stdin();
    let bytes = if stdin.is_terminal() {
        let terminal = console::Term::stderr();
        terminal.write_str(&format!("value of {name} (not shown): ")).context("cannot ask for the value")?;
        terminal.read_secure_line().context("cannot read the value")?.into_bytes()
    } else {
        // As large as it may be: growing would leave copies behind.
        let mut bytes = Vec::with_capacity(MAX_SECRET + 3);
        stdin.lock().take(MAX_SECRET as u64 + 3).read_to_end(&mut bytes).context("cannot read the value")?;
        if !raw && bytes.ends_with(b"\n") {
            bytes.pop();
            if bytes.ends_with(b"\r") {
                bytes.pop();
            }
        }
        bytes
    };
    let value = SecretValue::new(bytes);
    let size = value.expose().len();
    if size == 0 {
        return Err(Problem::new(Code::RequestInvalid, format!("there is no value for `{name}` on stdin"))
            .help(format!("pipe it in, `sidereal secret set {name} < file`, or run the command at a terminal"))
            .into());
    }
    if size > MAX_SECRET {
        return Err(Problem::new(Code::TooLarge, format!("a secret has at most {MAX_SECRET} bytes"))
            .help("keep what is larger behind a contract, and its key as a secret")
            .into());
    }
    Ok(value)
}
