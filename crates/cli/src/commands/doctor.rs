//! `doctor`: looks for faults of this machine and this directory, says what to do, and changes nothing.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use api::client::ClientError;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use store::StoreError;

use crate::context::{Context, connect};
use crate::home::{Holder, Home};
use crate::keys;

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// Stable code.
    pub code: &'static str,
    /// `fault` keeps something from working; `risk` may.
    pub severity: &'static str,
    /// What is wrong, where, and why it matters.
    pub message: String,
    /// What to do.
    pub help: String,
}

fn fault(code: &'static str, message: String, help: impl Into<String>) -> Diagnosis {
    Diagnosis { code, severity: "fault", message, help: help.into() }
}

fn risk(code: &'static str, message: String, help: impl Into<String>) -> Diagnosis {
    Diagnosis { code, severity: "risk", message, help: help.into() }
}

/// `sidereal doctor`
///
/// # Errors
/// Never for a fault it finds; the answer says whether there was one.
pub async fn doctor(context: &Context) -> anyhow::Result<bool> {
    let mut found = Vec::new();
    let home = &context.home;
    directory(home, &mut found);
    private_files(home, &mut found);
    token(home, &mut found);
    signing_keys(home, &mut found);
    let runs = platform(home, &mut found).await;
    if !runs {
        databases(home, &mut found);
        ports(&mut found);
    }
    artifacts(home, &mut found);
    limits(&mut found);
    kernel(&mut found);
    if !runs {
        isolation(home, &mut found).await;
    }
    environment(&mut found);
    manifest(&mut found);
    let faults = found.iter().filter(|d| d.severity == "fault").count();
    context.out.result(&found, || {
        let mut text = String::new();
        for diagnosis in &found {
            text.push_str(&format!(
                "{} [{}] {}\n  do: {}\n",
                diagnosis.severity, diagnosis.code, diagnosis.message, diagnosis.help
            ));
        }
        text.push_str(&format!("{faults} faults, {} risks; nothing was changed", found.len() - faults));
        text
    });
    Ok(faults == 0)
}

fn directory(home: &Home, found: &mut Vec<Diagnosis>) {
    let dir = home.dir();
    let Ok(meta) = fs::metadata(dir) else { return };
    let shown = dir.display();
    if !meta.is_dir() {
        found.push(fault(
            "data-dir-no-folder",
            format!("{shown} is no folder"),
            "move the file away, or use --data-dir",
        ));
        return;
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        found.push(fault(
            "data-dir-owner",
            format!("{shown} belongs to user {}", meta.uid()),
            "run as that user, or use --data-dir",
        ));
    }
    if meta.mode() & 0o077 != 0 {
        found.push(risk("data-dir-open", format!("{shown} can be read by other users"), format!("chmod 700 {shown}")));
    }
    if rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_err() {
        found.push(fault(
            "data-dir-read-only",
            format!("{shown} cannot be written"),
            "check the file system and its permissions",
        ));
    }
    if let Ok(disk) = rustix::fs::statvfs(dir) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < 256 << 20 {
            found.push(fault(
                "disk-full",
                format!("{shown} has {} MiB left", free >> 20),
                "free some space; deploys and writes are refused meanwhile",
            ));
        }
        if store::audit::Disk::under(dir).is_ok_and(|disk| disk.is_scarce()) {
            found.push(risk(
                "disk-scarce",
                format!(
                    "{shown} has {} MiB left: changes of tenants are refused, the operator's are not yet",
                    free >> 20
                ),
                "free some space",
            ));
        }
        if disk.f_files > 0 && disk.f_favail < 1000 {
            found.push(fault(
                "inodes-full",
                format!("{shown} has {} inodes left", disk.f_favail),
                "remove files; artifacts and code need some",
            ));
        }
    }
    let ahead = [home.store(), home.data()].into_iter().filter_map(|file| fs::metadata(file).ok()?.modified().ok());
    if ahead.into_iter().any(|time| time > SystemTime::now() + Duration::from_secs(60)) {
        found.push(fault(
            "clock-behind",
            "the state was written in the future of this machine's clock".to_owned(),
            "set the clock; signatures expire by it",
        ));
    }
}

fn private_files(home: &Home, found: &mut Vec<Diagnosis>) {
    let mut files = vec![home.token_file()];
    if let Ok(entries) = fs::read_dir(home.keys()) {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    for file in files {
        if fs::metadata(&file).is_ok_and(|meta| meta.mode() & 0o077 != 0) {
            let shown = file.display();
            found.push(fault(
                "secret-open",
                format!("{shown} can be read by other users"),
                format!("chmod 600 {shown}, and consider it known to them"),
            ));
        }
    }
}

fn signing_keys(home: &Home, found: &mut Vec<Diagnosis>) {
    if !home.keys().exists() {
        return;
    }
    if let Err(cause) = keys::list(home) {
        found.push(fault(
            "key-damaged",
            format!("{cause:#}"),
            "restore the file from a backup, or remove it and trust a new key",
        ));
    } else if keys::load(home, keys::ACCOUNT).is_err() && home.store().exists() {
        found.push(fault(
            "key-missing",
            "the account key that signs local builds is gone".to_owned(),
            "restore it, or `sidereal keys generate account account` and trust the new key",
        ));
    }
}

/// Whether a platform runs; faults of one that should.
async fn platform(home: &Home, found: &mut Vec<Diagnosis>) -> bool {
    let announced = match home.announced() {
        Ok(announced) => announced,
        Err(cause) => {
            found.push(fault("announcement-damaged", format!("{cause:#}"), "stop the platform and start it again"));
            None
        }
    };
    let running = match (home.holder(), announced) {
        (Holder::Platform(running), Some(_)) => running,
        // It starts, or it stops: what it uses is not looked at, and there is nobody to ask.
        (Holder::Platform(_) | Holder::Unsaid, _) => return true,
        (Holder::Nobody, announced) => {
            if let Some(running) = announced {
                found.push(risk(
                    "stopped-hard",
                    format!("the platform that was process {} ended without stopping", running.pid),
                    "`sidereal up` takes over; acknowledged writes are kept",
                ));
            }
            return false;
        }
    };
    let answer = match home.token(false).and_then(|token| connect(&running, &token)) {
        Ok(client) => match client.version().await {
            Ok(_) => both(client.nodes().await, client.tenants().await),
            Err(error) => Err(error.problem().detail),
        },
        Err(cause) => Err(format!("{cause:#}")),
    };
    match answer {
        Ok((nodes, tenants)) => {
            // Whoever runs the platform is its first tenant, and bounds itself where it likes to.
            for tenant in tenants.iter().filter(|tenant| tenant.name.as_str() != FIRST) {
                let unbounded = tenant.settings.quotas.unbounded();
                if !unbounded.is_empty() {
                    found.push(risk(
                        "tenant-unbounded",
                        format!("nothing bounds {} of tenant {}", unbounded.join(", "), tenant.name),
                        format!(
                            "`sidereal tenant set {} --help` has the flags; docs/limits.md says what each bounds",
                            tenant.name
                        ),
                    ));
                }
            }
            for node in nodes.iter().filter(|node| !node.alive) {
                found.push(fault(
                    "node-lost",
                    format!("node {} does not report", node.name),
                    "see its log; restart it",
                ));
            }
            for (layer, why) in nodes.iter().flat_map(|node| &node.waived) {
                found.push(risk(
                    "isolation-waived",
                    format!("tenants are not isolated by `{layer}`: {why}"),
                    "run only components you trust; `docs/security.md` says what each layer is for",
                ));
            }
        }
        Err(cause) => {
            found.push(fault(
                "api-silent",
                format!("process {} runs but {} does not answer: {cause}", running.pid, running.api),
                "see its log; stop it with SIGTERM and start it again",
            ));
        }
    }
    true
}

/// The tenant that every platform has.
const FIRST: &str = "local";

fn both<A, B>(one: Result<A, ClientError>, other: Result<B, ClientError>) -> Result<(A, B), String> {
    let detail = |error: ClientError| error.problem().detail;
    Ok((one.map_err(detail)?, other.map_err(detail)?))
}

/// The databases of a platform that does not run, by the check they get before they are opened; nothing is written.
fn databases(home: &Home, found: &mut Vec<Diagnosis>) {
    let checks =
        [("store-damaged", store::redb::check(home.store())), ("data-damaged", store::data::check(home.data()))];
    for (code, checked) in checks {
        match checked {
            Ok(()) => {}
            Err(cause @ StoreError::Damaged { .. }) => found.push(fault(
                code,
                cause.to_string(),
                "restore it from a backup together with the file `.last` beside it; it is not touched meanwhile",
            )),
            Err(cause @ StoreError::CannotWrite { .. }) => {
                found.push(fault(
                    "store-read-only",
                    cause.to_string(),
                    "check the file's permissions, its file system and its free space",
                ));
            }
            Err(cause) => found.push(fault(
                "store-busy",
                cause.to_string(),
                "another process uses this directory; stop it, or use --data-dir",
            )),
        }
    }
}

/// A token that others could guess, or that the platform refuses.
fn token(home: &Home, found: &mut Vec<Diagnosis>) {
    const SHORTEST: usize = 16;
    let file = home.token_file();
    let shown = file.display();
    let why = match fs::read(&file) {
        Ok(bytes) => match std::str::from_utf8(&bytes).map(|text| text.trim().len()) {
            Ok(length) if length >= SHORTEST => return,
            Ok(length) => format!("it has {length} characters, at least {SHORTEST} are needed"),
            Err(_) => "it is no text".to_owned(),
        },
        Err(cause) if cause.kind() == ErrorKind::NotFound => return,
        Err(cause) => cause.to_string(),
    };
    found.push(fault(
        "token-damaged",
        format!("the API token {shown} cannot be used: {why}"),
        "stop the platform and remove the file; `sidereal up` makes a new one",
    ));
}

fn ports(found: &mut Vec<Diagnosis>) {
    for (name, port) in [("ingress", 8080), ("API", 8088)] {
        if let Err(cause) = TcpListener::bind(("127.0.0.1", port)) {
            found.push(risk(
                "port-taken",
                format!("port {port}, where the {name} listens by default, is taken: {cause}"),
                "nothing to do: another port is chosen and said",
            ));
        }
    }
}

fn artifacts(home: &Home, found: &mut Vec<Diagnosis>) {
    if home.store().exists() && !home.blobs().is_dir() {
        found.push(fault(
            "artifacts-missing",
            format!("{} is gone, with the artifacts of every app", home.blobs().display()),
            "restore it from a backup, or deploy each app again",
        ));
    }
    let Ok(entries) = fs::read_dir(home.blobs().join("sha256")) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let Ok(bytes) = fs::read(&path) else { continue };
        if format!("sha256:{name}").parse::<model::Digest>().is_ok_and(|digest| digest != model::Digest::of(&bytes)) {
            found.push(fault(
                "artifact-damaged",
                format!("{} is not what its name says", path.display()),
                "remove it and deploy again",
            ));
        }
    }
}

fn limits(found: &mut Vec<Diagnosis>) {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if files < 4096 {
        found.push(risk(
            "few-files",
            format!("this shell allows {files} open files"),
            "ulimit -n 65536; each connection needs one",
        ));
    }
    if let Some(bytes) = getrlimit(Resource::As).current {
        found.push(fault(
            "address-space-limited",
            format!("this shell limits address space to {} MiB", bytes >> 20),
            "ulimit -v unlimited; instances are reserved address space, not memory",
        ));
    }
    if let Some(0..64) = getrlimit(Resource::Nproc).current {
        found.push(fault(
            "few-processes",
            "this shell allows fewer than 64 processes".to_owned(),
            "ulimit -u 1024; every host is a process",
        ));
    }
}

fn kernel(found: &mut Vec<Diagnosis>) {
    let number = |file: &str| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    if number("/proc/sys/vm/overcommit_memory") == Some(2) {
        found.push(fault(
            "overcommit-strict",
            "vm.overcommit_memory is 2: instance pools cannot be reserved".to_owned(),
            "sysctl vm.overcommit_memory=0",
        ));
    }
    if let Some(maps @ 0..65530) = number("/proc/sys/vm/max_map_count") {
        found.push(risk(
            "few-maps",
            format!("vm.max_map_count is {maps}: fewer apps fit in a host"),
            "sysctl vm.max_map_count=262144",
        ));
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut parts = release.split(['.', '-']).filter_map(|part| part.parse::<u32>().ok());
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version < (5, 15) {
        found.push(fault("kernel-old", format!("kernel {release} is older than 5.15"), "use a newer kernel"));
    } else if version < (6, 7) {
        found.push(risk(
            "kernel-slower",
            format!("kernel {release} cannot scan page maps: instances are reset more slowly"),
            "6.7 or newer is faster; nothing else changes",
        ));
    }
}

/// What a platform would have to do without on this machine.
async fn isolation(home: &Home, found: &mut Vec<Diagnosis>) {
    let Ok(exe) = std::env::current_exe() else { return };
    match node::confine::missing(&exe, home.dir()).await {
        Ok(missing) => {
            for (layer, (why, help)) in missing {
                found.push(risk(
                    "isolation-missing",
                    format!("this machine does not isolate tenants by `{layer}`: {why}"),
                    format!("{help}; or go on without: `sidereal up --waive {layer}`"),
                ));
            }
        }
        Err(problem) => found.push(fault("isolation-refused", problem.detail, problem.help.unwrap_or_default())),
    }
}

fn environment(found: &mut Vec<Diagnosis>) {
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        found.push(risk(
            "backtrace-set",
            "RUST_BACKTRACE is set in this shell".to_owned(),
            "nothing to do: hosts start without it, because it costs milliseconds a request",
        ));
    }
    if let Some(tmp) = std::env::var_os("TMPDIR").filter(|dir| !Path::new(dir).is_dir()) {
        found.push(fault(
            "tmpdir-missing",
            format!("TMPDIR names {}, which is no folder", tmp.to_string_lossy()),
            "unset TMPDIR, or create it",
        ));
    }
}

/// The app in this folder, if there is one.
fn manifest(found: &mut Vec<Diagnosis>) {
    let Ok(text) = fs::read_to_string("app.toml") else { return };
    if let Err(report) = model::manifest::parse(&text, "app.toml") {
        found.push(fault(
            "manifest-invalid",
            format!("app.toml in this folder: {report}"),
            "`sidereal plan` shows each problem with its line",
        ));
    }
}
