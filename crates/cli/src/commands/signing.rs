//! `keys`, `sign`, `inspect`: who vouches for a component, and what it is.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::time::SystemTime;

use api::{Code, Problem};
use model::Digest;
use model::claims::keys::{KeyKind, KeyPair};
use model::claims::{self, Claims};
use model::component::{MAX_COMPONENT, inspect as read};
use model::interface::{ContractId, InterfaceId};
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
    let bytes = component(&args.file, "sign")?;
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
    claims.expires = args.expires.map(|after| expiry(now, after)).transpose()?;
    if !args.grant.is_empty() {
        granted(&bytes, args)?;
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

/// When claims end, seconds since 1970. They count whole seconds.
fn expiry(now: u64, after: model::unit::Millis) -> Result<u64, Problem> {
    match after.duration().as_secs() {
        0 => Err(Problem::new(Code::RequestInvalid, "claims that expire at once are worth nothing")
            .help("at least `--expires 1s`; for ever without the flag")),
        seconds => Ok(now.saturating_add(seconds)),
    }
}

/// A grant must be readable and cover what the component imports; with less no host would run it.
fn granted(bytes: &[u8], args: &Sign) -> Result<(), Problem> {
    let odd = |entry: &&String| entry.parse::<ContractId>().is_err() && entry.parse::<InterfaceId>().is_err();
    if let Some(entry) = args.grant.iter().find(odd) {
        return Err(Problem::new(Code::RequestInvalid, format!("`{entry}` is neither a contract nor an interface"))
            .help("for example `--grant wasi:keyvalue` or `--grant wasi:keyvalue/store@0.2.0-draft`"));
    }
    let imports = read(bytes).map_err(|cause| invalid(&args.file, &cause))?.imports;
    let missing: Vec<String> = claims::ungranted(&args.grant, &imports).map(ToString::to_string).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let detail = format!("{} imports interfaces that --grant does not cover", args.file.display());
    let mut problem = Problem::new(Code::InterfaceNotGranted, detail)
        .help("grant them too, or leave --grant out to grant what the component imports");
    problem.findings = missing;
    Err(problem)
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
    let bytes = component(&args.file, "inspect")?;
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

/// The bytes of a component that `sidereal <command>` was named.
fn component(file: &Path, command: &str) -> anyhow::Result<Vec<u8>> {
    let named = || format!("name a component: `sidereal {command} counter.wasm`");
    let meta = fs::metadata(file).map_err(|cause| {
        Problem::new(Code::NotFound, format!("cannot read {}: {cause}", file.display())).help(named())
    })?;
    // A pipe or a device may never end.
    if !meta.is_file() {
        return Err(Problem::new(Code::RequestInvalid, format!("{} is no regular file", file.display()))
            .help(named())
            .into());
    }
    let too_large = |size: u64| {
        Problem::new(
            Code::TooLarge,
            format!("{} has {size} bytes; a component has at most {MAX_COMPONENT}", file.display()),
        )
        .help("build it for release and strip debug information (`wasm-tools strip`)")
    };
    if meta.len() > MAX_COMPONENT as u64 {
        return Err(too_large(meta.len()).into());
    }
    let mut bytes = Vec::new();
    // It may grow while it is read.
    fs::File::open(file).and_then(|opened| opened.take(MAX_COMPONENT as u64 + 1).read_to_end(&mut bytes)).map_err(
        |cause| {
            let code = match cause.kind() {
                std::io::ErrorKind::PermissionDenied => Code::Forbidden,
                _ => Code::NotFound,
            };
            Problem::new(code, format!("cannot read {}: {cause}", file.display()))
                .help("check the file and its permissions")
        },
    )?;
    if bytes.len() > MAX_COMPONENT {
        return Err(too_large(bytes.len() as u64).into());
    }
    match read(&bytes) {
        // A program of WASI 0.1: a task driver runs it, as a component that it makes of it.
        Ok(_) | Err(model::component::InspectError::CoreModule) => Ok(bytes),
        Err(cause) => Err(invalid(file, &cause).into()),
    }
}

fn invalid(file: &Path, cause: &model::component::InspectError) -> Problem {
    Problem::new(Code::ArtifactInvalid, format!("{}: {cause}", file.display()))
        .help("a component is needed: build for wasm32-wasip2, or wrap a core module with `wasm-tools component new`")
}
