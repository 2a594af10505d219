//! Code for an engine that has none of it: the platform was replaced by one with another engine, or the folder of compiled
//! code was lost. What served is put back all the same, and its calls wait; so its code is made as soon as a host says which
//! engine it has, before anybody asks for it.

use std::sync::Arc;
use std::time::Duration;

use api::agent::HostInfo;
use api::{Code, Problem};
use model::{AppName, Digest, Revision, World};

use crate::artifacts::{ArtifactError, Artifacts, CodeKey, CompileError};
use crate::bring::{Again, TRIES, refusal};
use crate::tenant::{Prepared, Tenant};

/// After a failure that may pass.
const AGAIN: Duration = Duration::from_secs(30);

/// A revision that an engine has not all code of.
#[derive(Debug)]
pub struct Uncompiled {
    /// The app.
    pub app: AppName,
    /// Its revision.
    pub revision: Revision,
    /// All its code.
    pub code: Vec<CodeKey>,
}

/// The code of a revision for the engines of a host.
///
/// # Errors
/// Where it has none for some of it.
pub(crate) fn code_for(prepared: &Prepared, info: Option<&HostInfo>) -> Result<Vec<CodeKey>, Problem> {
    let key = |(digest, world): &(Digest, World)| {
        let fingerprint = info.and_then(|info| info.fingerprints.get(world)).cloned();
        let missing = || Problem::new(Code::StartFailed, format!("the host has no engine for {}", world.as_str()));
        Ok(CodeKey { digest: *digest, world: *world, fingerprint: fingerprint.ok_or_else(missing)? })
    };
    prepared.code.iter().map(key).collect()
}

/// Which of these revisions the engines of a host have not all code of. Only whether it is there is looked at, for there may
/// be thousands: code that is not ours is found when it is asked for.
pub(crate) async fn uncompiled(
    artifacts: &Arc<Artifacts>,
    info: &HostInfo,
    revisions: Vec<Arc<Prepared>>,
) -> Vec<Uncompiled> {
    let of = |one: Arc<Prepared>| {
        // What it has no engine for it refuses itself.
        let code = code_for(&one, Some(info)).ok()?;
        Some(Uncompiled { app: one.app.clone(), revision: one.revision, code })
    };
    let all: Vec<_> = revisions.into_iter().filter_map(of).collect();
    let artifacts = artifacts.clone();
    let lacks = move |one: &Uncompiled| one.code.iter().any(|key| !artifacts.is_cached(key));
    // Looks at the disk.
    let looked = tokio::task::spawn_blocking(move || all.into_iter().filter(lacks).collect());
    looked.await.unwrap_or_default()
}

/// Has it made. What may pass is tried again, for as long as hosts of the tenant are to have the revision.
///
/// # Errors
/// Why it cannot be.
pub(crate) async fn make(artifacts: &Artifacts, tenant: &Tenant, wanted: &Uncompiled) -> Result<(), Problem> {
    let Uncompiled { app, revision, code } = wanted;
    let mut tries = 0;
    while tenant.has(app, *revision) {
        let all = code.iter().map(|key| artifacts.ensure(&tenant.name, key));
        let Err(cause) = futures::future::try_join_all(all).await else { return Ok(()) };
        let (problem, again) = refusal(&cause);
        // It was compiled before: where it takes too long, others had the cores, and where it was killed, the memory.
        let late =
            matches!(cause, ArtifactError::Compile { cause: CompileError::TimedOut(_) | CompileError::Killed, .. });
        // Its compiler may have crashed for want of memory, and the artifact be damaged for the moment.
        let odd = matches!(
            cause,
            ArtifactError::Compile { cause: CompileError::Crashed { .. }, .. } | ArtifactError::Blob { .. }
        );
        tries += 1;
        let may_pass = again == Again::Yes || late || odd && tries < TRIES;
        if !may_pass {
            return Err(problem);
        }
        tracing::warn!(tenant = %tenant.name, %app, %revision, %cause, "code cannot be made now, and is tried again");
        tokio::time::sleep(AGAIN).await;
    }
    Ok(())
}
