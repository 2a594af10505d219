//! Brings a component from the registry that a job or a manifest names, in a process of its own: what a registry answers is
//! read whole by the client library, however much that is. The process has so much memory and so much time, and a task that is
//! root reads at most one component from it. What a task brought once is kept.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use api::task::TaskSpec;
use api::{Code, Problem};
use bytes::Bytes;
use model::component::MAX_COMPONENT;
use model::manifest::OciReference;
use node::artifacts::Pulled;
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::io::AsyncReadExt as _;

use crate::{credentials, oci};

/// Writable memory of the process, bytes: a component, twice while it grows, and what TLS takes.
const MEMORY: u64 = 256 << 20;
/// A problem is no longer, bytes.
const MAX_PROBLEM: usize = 64 << 10;

/// The component, kept in the task's folder of code or brought from the registry, which may take no longer than `patience`,
/// however little is sent at a time. It is brought by the program `exe`, by way of the network namespace `outside`, or this
/// process's own.
///
/// # Errors
/// Why there is none.
pub async fn component(
    reference: &OciReference,
    (spec, exe): (&TaskSpec, &Path),
    patience: Duration,
    outside: Option<File>,
) -> Result<Bytes, Problem> {
    let kept = Pulled::of(&spec.code, &reference.digest);
    let found = kept.clone();
    let found = tokio::task::spawn_blocking(move || found.get(MAX_COMPONENT)).await;
    if let Ok(Some(bytes)) = found {
        return Ok(Bytes::from(bytes));
    }
    let brought = brought(reference, (&spec.registry, exe), patience, outside).await?;
    let bytes = brought.clone();
    let keeping = tokio::task::spawn_blocking(move || kept.keep(&bytes)).await;
    if let Err(cause) = keeping.unwrap_or_else(|cause| Err(std::io::Error::other(cause))) {
        tracing::warn!(%cause, "the component is not kept: the next start asks the registry again");
    }
    Ok(brought)
}

/// The component for a command of this program, which asks as its user would: nothing is kept.
///
/// # Errors
/// Why there is none.
pub async fn for_command(reference: &OciReference) -> Result<Bytes, Problem> {
    let exe = std::env::current_exe().map_err(|cause| {
        Problem::new(Code::Internal, format!("cannot find this program's own file: {cause}"))
            .help("call it by its path")
    })?;
    // It ends before it is ended, and says so itself.
    brought(reference, (&BTreeMap::new(), &exe), oci::WHOLE + Duration::from_secs(5), None).await
}

async fn brought(
    reference: &OciReference,
    (environment, exe): (&BTreeMap<String, String>, &Path),
    patience: Duration,
    outside: Option<File>,
) -> Result<Bytes, Problem> {
    let asked = asked(reference, (environment, exe), outside);
    tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| Err(oci::late(reference, patience)))
}

async fn asked(
    reference: &OciReference,
    (environment, exe): (&BTreeMap<String, String>, &Path),
    outside: Option<File>,
) -> Result<Bytes, Problem> {
    // The machine is short of something.
    let failed = |cause: std::io::Error| Problem::new(Code::Busy, format!("a component cannot be brought: {cause}"));
    let mut child = tokio::process::Command::new(exe)
        .args(["pull", "--registry", &reference.registry, "--repository", &reference.repository])
        .args(["--digest", &reference.digest.to_string()])
        // No proxy leads to a registry of this machine's.
        .envs(environment.iter().filter(|(name, _)| !(is_proxy(name) && oci::loopback(&reference.registry))))
        // What the allocator reserves counts as soon as it may be written.
        .env("MIMALLOC_ARENA_EAGER_COMMIT", "0")
        .args(outside.is_some().then_some("--outside"))
        .stdin(outside.map_or_else(Stdio::null, Stdio::from))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut said = Vec::new();
    if let Some(out) = child.stdout.take() {
        out.take(MAX_COMPONENT as u64 + 1).read_to_end(&mut said).await.map_err(failed)?;
    }
    // One that says more waits for ever, and is killed with its handle.
    if said.len() > MAX_COMPONENT {
        return Err(Problem::new(Code::TooLarge, format!("the component is larger than {} MiB", MAX_COMPONENT >> 20)));
    }
    let ended = child.wait().await.map_err(failed)?;
    match ended.success() {
        true => Ok(Bytes::from(said)),
        false => Err(refused(reference, ended, &said)),
    }
}

/// Whether a variable names a proxy, in whatever letters.
fn is_proxy(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with("_proxy")
}

fn refused(reference: &OciReference, ended: ExitStatus, said: &[u8]) -> Problem {
    let told = said.len() <= MAX_PROBLEM;
    let problem = serde_json::from_slice(said).ok().filter(|_| told);
    problem.unwrap_or_else(|| {
        // How the program ends that is refused memory. Any other end is no word on what the registry answers: it may have been
        // killed for others' sake.
        if ended.signal() != Some(rustix::process::Signal::ABORT.as_raw()) {
            let what = format!("the process that asked {} ended early: {ended}", reference.registry);
            return Problem::new(Code::Busy, what).help("its last words are in the log of whoever started it");
        }
        let what = format!(
            "what {} answers for {} cannot be read in {} MiB of memory: the process that asked it ended with {ended}",
            reference.registry,
            reference.repository,
            MEMORY >> 20
        );
        Problem::new(Code::ArtifactInvalid, what).help("name a registry that answers with a component")
    })
}

/// The process: the component to standard output, or the problem as JSON and an exit code. With `outside`, standard input is
/// the network namespace that it asks in.
///
/// # Errors
/// Where it cannot limit itself, or nobody reads.
pub fn run(reference: &OciReference, outside: bool) -> anyhow::Result<u8> {
    use std::io::Write as _;
    sandbox::inner::tie().context("cannot be tied to the task")?;
    if outside {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(std::io::stdin().as_fd(), kind)
            .context("cannot enter the network of the machine")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // A helper is a program of the operator's, and takes what memory it takes.
    let auth = runtime.block_on(credentials::of(&reference.registry));
    setrlimit(Resource::Data, Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) })
        .context("cannot limit memory")?;
    let brought = match auth {
        Ok(auth) => runtime.block_on(oci::pull(reference, &auth, oci::WHOLE)),
        Err(problem) => Err(problem.into()),
    };
    let (code, said) = match brought {
        Ok(bytes) => (0, bytes),
        Err(cause) => (1, serde_json::to_vec(&crate::output::problem_of(&cause))?),
    };
    let mut out = std::io::stdout().lock();
    out.write_all(&said)?;
    out.flush()?;
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_registry_answers_is_its_fault() {
        let reference = OciReference {
            registry: "registry.example".into(),
            repository: "shop".into(),
            tag: None,
            digest: model::Digest::of(b""),
        };
        let code = |raw: i32, said: &[u8]| refused(&reference, ExitStatus::from_raw(raw), said).code;
        // Ended by SIGABRT, SIGKILL and SIGSEGV, and with exit code 1.
        assert_eq!(code(6, b""), Code::ArtifactInvalid);
        assert_eq!([code(9, b""), code(11, b"half"), code(1 << 8, b"")], [Code::Busy; 3]);
        let told = serde_json::to_vec(&Problem::new(Code::ArtifactMissing, "none")).unwrap();
        assert_eq!(code(1 << 8, &told), Code::ArtifactMissing);
    }
}
