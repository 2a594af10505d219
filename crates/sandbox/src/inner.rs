//! The second stage: an empty root, no rights, and a kernel that refuses what is not needed.

use std::os::fd::BorrowedFd;
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, Scope,
};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, set_dumpable_behavior, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities};

use crate::syscalls::{Role, filters};
use crate::view::{self, View};
use crate::{Layer, OrRefused as _, SandboxError, Spec, root};

/// Writable memory of one process of a program that is not ours, bytes; its control group bounds all of them.
const PROGRAM_MEMORY: u64 = 2 << 30;
/// Open files of one.
const PROGRAM_FILES: u64 = 4096;
/// Descriptors of one process of ours: its connections, and more than the quotas leave it. The table of them is the kernel's memory.
const HOST_FILES: u64 = 65_536;

/// Asks the kernel to end this process with the first stage. To be called first of all.
///
/// # Errors
/// Where the kernel does not do that.
pub fn tie() -> std::io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// What of the machine's files a process may reach: beneath descriptors that it was handed, for nothing has a name in the
/// empty root.
#[derive(Debug, Clone, Copy, Default)]
pub struct Files<'a> {
    /// The folder below which files may be opened for reading.
    pub readable: Option<BorrowedFd<'a>>,
    /// Folders below which files may be read, and changed where it says so.
    pub folders: &'a [(BorrowedFd<'a>, bool)],
}

/// Puts the remaining layers of `spec` on, for ever.
///
/// # Errors
/// [`SandboxError::Refused`] names the layer that cannot be had; [`SandboxError::Threads`] where it is too late.
pub fn enter(spec: &Spec, role: Role, files: Files<'_>) -> Result<(), SandboxError> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(SandboxError::Threads(threads));
    }
    limits(spec, files.folders.iter().any(|(_, writable)| *writable))?;
    // Compiled before there is nothing left to compile with.
    let filters = if spec.has(Layer::Seccomp) {
        filters(role).or_refused(Layer::Seccomp, "compiling the list of system calls")?
    } else {
        Vec::new()
    };
    if spec.has(Layer::Uts) {
        rustix::system::sethostname(b"host").or_refused(Layer::Uts, "naming the machine")?;
    }
    if spec.has(Layer::Root) {
        match &spec.view {
            None => root::empty(role).or_refused(Layer::Root, "emptying the root")?,
            Some(_) if spec.has(Layer::Pid) => {
                view::own_processes().or_refused(Layer::Root, "hiding the machine's processes")?;
            }
            Some(_) => {}
        }
    }
    if spec.has(Layer::Caps) {
        bounding().or_refused(Layer::Caps, "emptying the bounding set")?;
    }
    if let (Some(uid), true, false) = (spec.uid, spec.has(Layer::Uid), spec.has(Layer::User)) {
        crate::outer::take_user(uid, spec.gid.unwrap_or(uid)).or_refused(Layer::Uid, "taking the tenant's user id")?;
    }
    // A change of user takes it away.
    tie().or_refused(Layer::Pid, "being ended with the first stage")?;
    if spec.has(Layer::Caps) {
        rustix::thread::clear_ambient_capability_set().or_refused(Layer::Caps, "emptying the ambient set")?;
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        set_capabilities(None, none).or_refused(Layer::Caps, "giving the capabilities up")?;
        rustix::thread::set_no_new_privs(true).or_refused(Layer::Caps, "forbidding new ones")?;
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable).or_refused(Layer::Caps, "forbidding dumps")?;
    if spec.has(Layer::Landlock) {
        landlock(files, spec.view.as_ref()).or_refused(Layer::Landlock, "forbidding files and sockets")?;
    }
    for filter in &filters {
        seccompiler::apply_filter(filter).or_refused(Layer::Seccomp, "installing the list of system calls")?;
    }
    Ok(())
}

/// Limits that need no right and are never waived, but for that of the size of files, where there are files that it may
/// write. One that is lower already stays.
fn limits(spec: &Spec, writes: bool) -> Result<(), SandboxError> {
    let mut all = vec![(Resource::Core, crate::NO_CORE), (Resource::Msgqueue, 0), (Resource::Memlock, 0)];
    // Whoever runs before all that is not real-time, for as long as it likes, takes a core from the node.
    all.push((Resource::Rtprio, 0));
    if let Some(view) = &spec.view {
        all.extend([(Resource::Data, PROGRAM_MEMORY), (Resource::Nofile, PROGRAM_FILES)]);
        all.extend(view.largest.map(|bytes| (Resource::Fsize, bytes)));
    } else {
        all.push((Resource::Nofile, HOST_FILES));
        if !writes {
            all.push((Resource::Fsize, 0));
        }
    }
    if spec.has(Layer::Uid) {
        // Counted for the user, which is the tenant's alone then.
        all.push((Resource::Nproc, 4096));
    }
    for (what, most) in all {
        let maximum = rustix::process::getrlimit(what).maximum.map_or(most, |has| has.min(most));
        let limit = Rlimit { current: Some(maximum), maximum: Some(maximum) };
        setrlimit(what, limit).map_err(|cause| SandboxError::Limit(format!("{what:?}: {cause}")))?;
    }
    Ok(())
}

/// No program this process might become would have a capability either.
fn bounding() -> Result<(), rustix::io::Errno> {
    for bit in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // Past the last one this kernel has.
            Err(rustix::io::Errno::INVAL) if bit > 30 => break,
            Err(cause) => return Err(cause),
        }
    }
    Ok(())
}

/// What a component may do in a folder that it may change. Devices, pipes and sockets are not made, and nothing is executed.
const WRITABLE: [AccessFs; 8] = [
    AccessFs::WriteFile,
    AccessFs::RemoveDir,
    AccessFs::RemoveFile,
    AccessFs::MakeDir,
    AccessFs::MakeReg,
    AccessFs::MakeSym,
    AccessFs::Refer,
    AccessFs::Truncate,
];

/// Nothing is granted but reading below one folder, what the folders of a task are for, and what a view says. Files must be had;
/// TCP, scopes and what newer kernels add, where they are: namespaces and the list of system calls refuse them as well.
fn landlock(files: Files<'_>, view: Option<&View>) -> Result<(), String> {
    let failed = |cause: landlock::RulesetError| cause.to_string();
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .map_err(failed)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V6))
        .map_err(failed)?
        .scope(Scope::from_all(ABI::V6))
        .map_err(failed)?;
    if !view.is_some_and(|view| view.network) {
        ruleset = ruleset.handle_access(AccessNet::from_all(ABI::V6)).map_err(failed)?;
    }
    let mut ruleset = ruleset.create().map_err(failed)?;
    if let Some(folder) = files.readable {
        ruleset = ruleset.add_rule(PathBeneath::new(folder, AccessFs::ReadFile)).map_err(failed)?;
    }
    for (folder, writable) in files.folders {
        let mut access = AccessFs::ReadFile | AccessFs::ReadDir;
        if *writable {
            access = WRITABLE.into_iter().fold(access, |all, one| all | one);
        }
        ruleset = ruleset.add_rule(PathBeneath::new(folder, access)).map_err(failed)?;
    }
    if let Some(view) = view {
        ruleset = grant(ruleset, view)?;
    }
    let status = ruleset.restrict_self().map_err(failed)?;
    match status.ruleset {
        landlock::RulesetStatus::NotEnforced => Err("this kernel has no Landlock, or it is off".to_owned()),
        _ => Ok(()),
    }
}

/// A program reads and runs what is in its root, and writes into its own folders.
fn grant(mut ruleset: RulesetCreated, view: &View) -> Result<RulesetCreated, String> {
    let all = AccessFs::from_all(ABI::V6);
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let mut rules: Vec<(&Path, BitFlags<AccessFs>)> = vec![(Path::new("/"), AccessFs::from_read(ABI::V6))];
    rules.extend(view.write.iter().map(|path| (path.as_path(), all)));
    rules.extend(view::SCRATCH.map(|path| (Path::new(path), all)));
    let devices = view::DEVICES.map(|name| Path::new("/dev").join(name));
    rules.extend(devices.iter().map(|path| (path.as_path(), device)));
    for (path, access) in rules {
        // Without the layer of the root there may be none of that name.
        if !path.exists() && !view.write.iter().any(|given| given == path) {
            continue;
        }
        let opened = PathFd::new(path).map_err(|cause| format!("{}: {cause}", path.display()))?;
        ruleset = ruleset.add_rule(PathBeneath::new(opened, access)).map_err(|cause| cause.to_string())?;
    }
    Ok(ruleset)
}
