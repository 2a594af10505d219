//! The first stage: takes the tenant's cgroup and user id, leaves the machine's namespaces, starts the second stage in them
//! and ends with it. It never runs anything of a tenant.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{DumpableBehavior, PidfdFlags, Signal, getegid, geteuid, pidfd_open, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, Gid, Uid, UnshareFlags};

use crate::{Layer, OrRefused as _, SandboxError, Spec, view};

/// What the second stage needs until it is confined, and gives up then.
const FOR_INNER: [CapabilitySet; 2] = [CapabilitySet::SYS_ADMIN, CapabilitySet::SETPCAP];

/// How long a second stage without a pid namespace has to end what it started, once whoever started it is gone.
const LAST_ACT: std::time::Duration = std::time::Duration::from_millis(200);

/// Confines and runs this program's second stage with `args`, and returns how it ended. It ends also when the other end of
/// this process's stdin, a socket, is closed: whoever started it is gone.
///
/// # Errors
/// [`SandboxError::Refused`] names the layer that cannot be had.
pub fn run(spec: &Spec, args: &[String]) -> Result<ExitStatus, SandboxError> {
    leave(spec)?;
    // Whoever started the node may have left descriptors open for its children; a tenant gets none of them.
    close_fds::set_fds_cloexec(3, &[]);
    let mut command = Command::new("/proc/self/exe");
    command.args(args).current_dir("/").stdin(Stdio::inherit());
    let mut child = command.spawn().map_err(SandboxError::Start)?;
    let stdin = io::stdin();
    let ended = wait(&mut child, std::os::fd::AsFd::as_fd(&stdin));
    if ended.is_err() {
        if !spec.has(Layer::Pid) {
            // What it started does not end with it, unless it ends that.
            std::thread::sleep(LAST_ACT);
        }
        // It is the first of its pid namespace: everything in there ends with it.
        drop(child.kill());
        drop(child.wait());
    }
    ended.map_err(SandboxError::Start)
}

/// Ends this process the way the second stage ended, so that its parent sees what happened.
pub fn end_like(status: ExitStatus) -> u8 {
    if let Some(signal) = status.signal().and_then(Signal::from_named_raw)
        && let Err(cause) = rustix::process::kill_process(rustix::process::getpid(), signal)
    {
        eprintln!("the confined process was ended by {signal:?}, and this one cannot end like it: {cause}");
    }
    // Of a signal that is ignored here only the number is left.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Takes the first layers of `spec` on in this process, for what it starts.
///
/// # Errors
/// [`SandboxError::Refused`].
pub(crate) fn leave(spec: &Spec) -> Result<(), SandboxError> {
    if spec.has(Layer::Cgroup) {
        crate::cgroup::join(&spec.cgroups).or_refused(Layer::Cgroup, "joining the tenant's cgroup")?;
    }
    let root = geteuid().is_root();
    if root {
        // Folders that are given to a program may be where its user cannot look.
        see(spec)?;
    }
    if spec.has(Layer::Uid) {
        let uid = spec.uid.ok_or("none is known").or_refused(Layer::Uid, "taking the tenant's user id")?;
        // Without a user namespace the other namespaces need root, so the second stage takes the id.
        if spec.has(Layer::User) {
            take_user(uid, spec.gid.unwrap_or(uid)).or_refused(Layer::Uid, "taking the tenant's user id")?;
        } else if !root {
            Err("only root can").or_refused(Layer::Uid, "taking the tenant's user id")?;
        }
    }
    if spec.has(Layer::User) {
        user_namespace().or_refused(Layer::User, "making a user namespace")?;
    }
    if !root {
        see(spec)?;
    }
    for (layer, flags, what) in [
        (Layer::Cgroup, UnshareFlags::NEWCGROUP, "making a cgroup namespace"),
        (Layer::Ipc, UnshareFlags::NEWIPC, "making an ipc namespace"),
        (Layer::Uts, UnshareFlags::NEWUTS, "making a uts namespace"),
        (Layer::Net, UnshareFlags::NEWNET, "making a network namespace"),
        (Layer::Root, UnshareFlags::NEWNS, "making a mount namespace"),
        (Layer::Pid, UnshareFlags::NEWPID, "making a pid namespace"),
    ] {
        let kept = layer == Layer::Net && spec.view.as_ref().is_some_and(|view| view.network);
        if spec.has(layer) && !kept {
            unshare(flags).or_refused(layer, what)?;
        }
    }
    Ok(())
}

/// Builds the root of a program that is not ours.
fn see(spec: &Spec) -> Result<(), SandboxError> {
    if let Some(view) = &spec.view
        && spec.has(Layer::Root)
    {
        unshare(UnshareFlags::NEWNS).or_refused(Layer::Root, "making a mount namespace")?;
        view::build(view).or_refused(Layer::Root, "building the root")?;
    }
    Ok(())
}

/// Changes user and group for ever, and drops every further group.
pub(crate) fn take_user(uid: u32, gid: u32) -> io::Result<()> {
    rustix::thread::set_thread_groups(&[])?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    // The kernel takes it away with the change of user, and with it the files in /proc that the next step writes.
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    Ok(())
}

/// A user namespace with this one user in it.
fn user_namespace() -> io::Result<()> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    unshare(UnshareFlags::NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    // Whoever is not root keeps nothing over an exec but what is ambient.
    let wanted = FOR_INNER.into_iter().fold(CapabilitySet::empty(), CapabilitySet::union);
    let mut sets = rustix::thread::capabilities(None)?;
    sets.inheritable = wanted;
    rustix::thread::set_capabilities(None, sets)?;
    for capability in FOR_INNER {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

#[expect(deprecated, reason = "the other form is unsafe for the sake of FILES, which is never asked for here")]
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    Ok(rustix::thread::unshare(flags)?)
}

/// Waits for the child, or for the end of whoever started this process.
fn wait(child: &mut std::process::Child, starter: BorrowedFd<'_>) -> io::Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the child has no number"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        // Only the end of both directions: whoever feeds the process may have said all it has to say.
        let mut both = [PollFd::new(&pidfd, PollFlags::IN), PollFd::from_borrowed_fd(starter, PollFlags::empty())];
        match poll(&mut both, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(cause) => return Err(cause.into()),
        }
        let [child_end, starter_end] = both.map(|fd| !fd.revents().is_empty());
        if child_end {
            return child.wait();
        }
        if starter_end {
            return Err(io::Error::other("whoever started this process is gone"));
        }
    }
}
