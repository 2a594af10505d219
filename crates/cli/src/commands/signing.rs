//! `keys`, `sign`, `inspect`: who vouches for a component, and what it is.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context as _;
use api::{Code, Problem};
use model::Digest;
use model::claims::keys::{KeyKind, KeyPair};
use model::claims::{self, Claims};
use model::component::inspect as read;
use serde::Serialize;

use crate::args::{Inspect, KeyKind as KindArg, KeysCommand, Sign};
use crate::context::Context;
use crate::home::replace;
use crate::keys;
use crate::output::table;

/// `sidereal keys`
///
/// # Errors
/// When a key file is damaged or a name is taken.
pub fn keys(context: &Context, command: KeysCommand) -> anyhow::Result<()> {
    match command {
        KeysCommand::List => {
            let all = keys::list(&context.home)?;
            let rows = all.iter().map(|k| vec![k.name.clone(), k.kind.to_owned(), k.key.clone()]).collect();
            context.out.result(&all, || match all.is_empty() {
                true => "no keys yet: `sidereal up` makes an operator and an account key".to_owned(),
                false => table(&["NAME", "KIND", "PUBLIC KEY"], rows),
            });
        }
        KeysCommand::Generate { kind, name } => {
            let kind = match kind {
                KindArg::Account => KeyKind::Account,
                KindArg::Module => KeyKind::Module,
                KindArg::Operator => KeyKind::Operator,
            };
            let key = keys::generate(&context.home, &name, kind)?;
            context.out.result(&key, || format!("{} {} {}", key.kind, key.name, key.key));
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Signed {
    file: String,
    digest: Digest,
    claims: Option<Claims>,
}

/// `sidereal sign`
///
/// # Errors
/// When the file is no component or the key is no account's.
pub fn sign(context: &Context, args: &Sign) -> anyhow::Result<()> {
    let bytes = component(&args.file)?;
    let account = keys::load(&context.home, &args.key)?;
    let stem = args.file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let name = args.name.clone().unwrap_or(stem);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    // A component keeps its identity when it is signed again.
    let earlier =
        claims::peek(&bytes).ok().flatten().and_then(|c| model::claims::keys::PublicKey::parse(&c.subject).ok());
    let subject = match earlier {
        Some(subject) => subject,
        None => KeyPair::from_entropy(KeyKind::Module, rand::random()).public(),
    };
    let mut claims = Claims::new(name, &subject, format!("{:032x}", rand::random::<u128>()), now);
    claims.expires = args.expires.map(|after| now + after.duration().as_secs());
    if !args.grant.is_empty() {
        claims.component.granted = Some(args.grant.clone());
    }
    let signed = claims::sign(&bytes, claims, &account).map_err(|cause| {
        Problem::new(Code::ArtifactInvalid, format!("cannot sign {}: {cause}", args.file.display()))
    })?;
    let out = args.out.as_ref().unwrap_or(&args.file);
    replace(out, &signed)?;
    let result =
        Signed { file: out.display().to_string(), digest: Digest::of(&signed), claims: claims::peek(&signed)? };
    context.out.result(&result, || format!("{} {} signed by {}", result.file, result.digest, account.public_key()));
    Ok(())
}

#[derive(Serialize)]
struct Inspected {
    digest: Digest,
    size: usize,
    world: &'static str,
    imports: Vec<String>,
    exports: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    claims: Option<Claims>,
    /// What is wrong with the claims, apart from trust, which is the tenant's.
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

/// `sidereal inspect`
///
/// # Errors
/// When the file is no component.
pub fn inspect(context: &Context, args: &Inspect) -> anyhow::Result<()> {
    let bytes = component(&args.file)?;
    let info = read(&bytes).map_err(|cause| invalid(&args.file, &cause))?;
    let claims = claims::peek(&bytes);
    let found = Inspected {
        digest: Digest::of(&bytes),
        size: bytes.len(),
        world: info.world.as_str(),
        imports: info.imports.iter().map(ToString::to_string).collect(),
        exports: info.exports.iter().map(ToString::to_string).collect(),
        fault: fault(&bytes, &claims),
        claims: claims.ok().flatten(),
    };
    context.out.result(&found, || text(&found));
    Ok(())
}

/// Whether the claims hold for these bytes now, were their issuer trusted.
fn fault(bytes: &[u8], claims: &Result<Option<Claims>, claims::ClaimsError>) -> Option<String> {
    let anchors: Vec<String> = claims.iter().flatten().map(|c| c.issuer.clone()).collect();
    let policy = claims::TrustPolicy { anchors: &anchors, revoked: &[], allow_unsigned: true };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    claims::verify(bytes, &policy, now).err().map(|cause| cause.to_string())
}

fn text(found: &Inspected) -> String {
    let mut text =
        format!("{}\n{} bytes, WASI {}\n", found.digest, found.size, if found.world == "p3" { "0.3" } else { "0.2" });
    found.imports.iter().for_each(|i| text.push_str(&format!("  imports {i}\n")));
    found.exports.iter().for_each(|e| text.push_str(&format!("  exports {e}\n")));
    match &found.claims {
        Some(claims) => {
            let name = claims.component.name.as_deref().unwrap_or("without a name");
            text.push_str(&format!(
                "signed as {name}\n  by {}\n  component {}\n  token {}\n",
                claims.issuer, claims.subject, claims.id
            ));
            if let Some(granted) = &claims.component.granted {
                text.push_str(&format!("  granted {}\n", granted.join(", ")));
            }
            if let Some(expires) =
                claims.expires.and_then(|s| i64::try_from(s).ok()).and_then(|s| jiff::Timestamp::from_second(s).ok())
            {
                text.push_str(&format!("  expires {expires}\n"));
            }
        }
        None => text.push_str("not signed\n"),
    }
    if let Some(fault) = &found.fault {
        text.push_str(&format!("  but: {fault}\n"));
    }
    text.trim_end().to_owned()
}

fn component(file: &Path) -> anyhow::Result<Vec<u8>> {
    let meta = fs::metadata(file).map_err(|cause| {
        Problem::new(Code::NotFound, format!("cannot read {}: {cause}", file.display()))
            .help("name a component: `sidereal inspect counter.wasm`")
    })?;
    if meta.len() > model::component::MAX_COMPONENT as u64 {
        return Err(Problem::new(Code::TooLarge, format!("{} has {} bytes", file.display(), meta.len())).into());
    }
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    read(&bytes).map_err(|cause| invalid(file, &cause))?;
    Ok(bytes)
}

fn invalid(file: &Path, cause: &model::component::InspectError) -> Problem {
    Problem::new(Code::ArtifactInvalid, format!("{}: {cause}", file.display()))
        .help("a component is needed: build for wasm32-wasip2, or wrap a core module with `wasm-tools component new`")
}
