//! The system calls a confined process may make. A host has every socket it will ever have made for it by its node: it can
//! make, connect, bind or listen on none, so a socket that was handed over goes where its node connected it and nowhere
//! else. Nor may it send to an address (`sendto` with one, `sendmsg`), or start a process.

mod programs;

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// What a process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs a tenant's components.
    Host,
    /// The same, with folders that the components use.
    Folders,
    /// Compiles one component, from its stdin to its stdout.
    Compiler,
    /// Starts and is a program that is not ours, in any language.
    Program,
}

/// When a call is allowed.
#[derive(Debug, Clone, Copy)]
enum When {
    Always,
    /// The argument of this number is one of these (64 bits).
    Is(u8, &'static [u64]),
    /// The argument of this number has all these bits.
    Has(u8, u64),
    /// The argument of this number has none of these bits.
    Lacks(u8, u64),
    /// The argument of this number is none of these (32 bits).
    Not(u8, &'static [u64]),
    /// Level and name of a socket option.
    Option(&'static [(u64, u64)]),
}

use When::{Always, Has, Is, Lacks, Not};

/// `CLONE_VM | CLONE_SIGHAND | CLONE_THREAD`: a thread, and no process.
const THREAD: u64 = 0x0001_0900;
/// `FIONBIO`, and `PAGEMAP_SCAN` by which the engine finds what an instance wrote.
const IOCTLS: &[u64] = &[0x5421, 0xc060_6610];
/// `PR_SET_NAME`, and `PR_SET_VMA` by which memory is named.
const PRCTLS: &[u64] = &[15, 0x5356_4d41];
/// `F_GETFD`, `F_SETFD`, `F_GETFL`, `F_SETFL`, `F_DUPFD_CLOEXEC`.
const FCNTLS: &[u64] = &[1, 2, 3, 4, 1030];
/// Buffers and keep-alive of a socket, Nagle and keep-alive of TCP, hop limits: no filters, no devices, no other addresses.
const OPTIONS: &[(u64, u64)] = &[(1, 7), (1, 8), (1, 9), (6, 1), (6, 4), (6, 5), (6, 6), (0, 2), (41, 16)];

type Call = (&'static str, i64, When);

/// Memory, threads, time and what is open already.
const COMMON: &[Call] = &[
    ("brk", libc::SYS_brk, Always),
    ("clock_getres", libc::SYS_clock_getres, Always),
    ("clock_gettime", libc::SYS_clock_gettime, Always),
    ("clock_nanosleep", libc::SYS_clock_nanosleep, Always),
    ("clone", libc::SYS_clone, Has(0, THREAD)),
    ("close", libc::SYS_close, Always),
    ("exit", libc::SYS_exit, Always),
    ("exit_group", libc::SYS_exit_group, Always),
    ("fcntl", libc::SYS_fcntl, Is(1, FCNTLS)),
    ("fstat", libc::SYS_fstat, Always),
    ("futex", libc::SYS_futex, Always),
    ("getpid", libc::SYS_getpid, Always),
    ("getrandom", libc::SYS_getrandom, Always),
    ("gettid", libc::SYS_gettid, Always),
    ("gettimeofday", libc::SYS_gettimeofday, Always),
    ("ioctl", libc::SYS_ioctl, Is(1, IOCTLS)),
    ("lseek", libc::SYS_lseek, Always),
    ("madvise", libc::SYS_madvise, Always),
    ("membarrier", libc::SYS_membarrier, Always),
    ("mmap", libc::SYS_mmap, Always),
    ("mprotect", libc::SYS_mprotect, Always),
    ("mremap", libc::SYS_mremap, Always),
    ("munmap", libc::SYS_munmap, Always),
    ("nanosleep", libc::SYS_nanosleep, Always),
    ("newfstatat", libc::SYS_newfstatat, Always),
    ("openat", libc::SYS_openat, Always),
    ("ppoll", libc::SYS_ppoll, Always),
    ("prctl", libc::SYS_prctl, Is(0, PRCTLS)),
    ("pread64", libc::SYS_pread64, Always),
    ("read", libc::SYS_read, Always),
    ("readv", libc::SYS_readv, Always),
    ("restart_syscall", libc::SYS_restart_syscall, Always),
    ("rseq", libc::SYS_rseq, Always),
    ("rt_sigaction", libc::SYS_rt_sigaction, Always),
    ("rt_sigprocmask", libc::SYS_rt_sigprocmask, Always),
    ("rt_sigreturn", libc::SYS_rt_sigreturn, Always),
    ("sched_getaffinity", libc::SYS_sched_getaffinity, Always),
    ("sched_setscheduler", libc::SYS_sched_setscheduler, Always),
    ("sched_yield", libc::SYS_sched_yield, Always),
    ("set_robust_list", libc::SYS_set_robust_list, Always),
    // A thread that computes gives way. Without a right one may go back to the place one was started in, and no further.
    ("setpriority", libc::SYS_setpriority, Is(0, &[0])),
    ("sigaltstack", libc::SYS_sigaltstack, Always),
    ("statx", libc::SYS_statx, Always),
    ("tgkill", libc::SYS_tgkill, Always),
    ("write", libc::SYS_write, Always),
    ("writev", libc::SYS_writev, Always),
    #[cfg(target_arch = "x86_64")]
    ("arch_prctl", libc::SYS_arch_prctl, Always),
    #[cfg(target_arch = "x86_64")]
    ("poll", libc::SYS_poll, Always),
];

/// Sockets that were handed over, and waiting for them.
const SOCKETS: &[Call] = &[
    ("accept4", libc::SYS_accept4, Always),
    ("epoll_ctl", libc::SYS_epoll_ctl, Always),
    ("epoll_pwait", libc::SYS_epoll_pwait, Always),
    ("getpeername", libc::SYS_getpeername, Always),
    ("getsockname", libc::SYS_getsockname, Always),
    ("getsockopt", libc::SYS_getsockopt, Always),
    ("recvfrom", libc::SYS_recvfrom, Always),
    ("recvmsg", libc::SYS_recvmsg, Always),
    ("sendto", libc::SYS_sendto, Is(4, &[0])),
    ("setsockopt", libc::SYS_setsockopt, When::Option(OPTIONS)),
    ("shutdown", libc::SYS_shutdown, Always),
    #[cfg(target_arch = "x86_64")]
    ("epoll_wait", libc::SYS_epoll_wait, Always),
];

/// Files and folders below those that were handed over. Which ones is not for this list to say: the root is empty and
/// Landlock knows the folders. No owner, no permission, no attribute is changed, and nothing is made but files, folders and
/// links.
const FILES: &[Call] = &[
    ("fadvise64", libc::SYS_fadvise64, Always),
    ("fdatasync", libc::SYS_fdatasync, Always),
    ("fsync", libc::SYS_fsync, Always),
    ("ftruncate", libc::SYS_ftruncate, Always),
    ("getdents64", libc::SYS_getdents64, Always),
    ("linkat", libc::SYS_linkat, Always),
    ("mkdirat", libc::SYS_mkdirat, Always),
    ("openat2", libc::SYS_openat2, Always),
    ("preadv", libc::SYS_preadv, Always),
    ("pwrite64", libc::SYS_pwrite64, Always),
    ("pwritev", libc::SYS_pwritev, Always),
    ("pwritev2", libc::SYS_pwritev2, Always),
    ("readlinkat", libc::SYS_readlinkat, Always),
    ("renameat", libc::SYS_renameat, Always),
    ("renameat2", libc::SYS_renameat2, Always),
    ("symlinkat", libc::SYS_symlinkat, Always),
    ("unlinkat", libc::SYS_unlinkat, Always),
    ("utimensat", libc::SYS_utimensat, Always),
];

fn calls(role: Role) -> impl Iterator<Item = &'static Call> {
    let (first, second, third): (&[Call], &[Call], &[Call]) = match role {
        Role::Host => (COMMON, SOCKETS, &[]),
        Role::Folders => (COMMON, SOCKETS, FILES),
        Role::Compiler => (COMMON, &[], &[]),
        Role::Program => (programs::LISTED, programs::ALWAYS, programs::OLD),
    };
    first.iter().chain(second).chain(third)
}

/// What a process of this role may call, one a line with the condition, in order: for people, and for the test that compares
/// it with the committed list.
pub fn listed(role: Role) -> Vec<String> {
    let mut lines: Vec<String> = calls(role)
        .map(|(name, number, when)| match when {
            Always => format!("{name} {number}"),
            Is(arg, values) => format!("{name} {number} argument {arg} is one of {values:x?}"),
            Has(arg, bits) => format!("{name} {number} argument {arg} has {bits:#x}"),
            Lacks(arg, bits) => format!("{name} {number} argument {arg} has none of {bits:#x}"),
            Not(arg, values) => format!("{name} {number} argument {arg} is none of {values:x?}"),
            When::Option(options) => format!("{name} {number} option is one of {options:?}"),
        })
        .collect();
    lines.sort();
    lines
}

impl When {
    fn rules(self) -> Result<Vec<SeccompRule>, BackendError> {
        let equal = |arg, value| SeccompCondition::new(arg, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value);
        // Of a 32-bit argument the kernel ignores the upper half.
        let equal32 = |arg, value| SeccompCondition::new(arg, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
        match self {
            Always => Ok(Vec::new()),
            Is(arg, [0]) => Ok(vec![SeccompRule::new(vec![equal(arg, 0)?])?]),
            Is(arg, values) => values.iter().map(|value| SeccompRule::new(vec![equal32(arg, *value)?])).collect(),
            Has(arg, bits) => {
                let all = SeccompCondition::new(arg, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bits), bits)?;
                Ok(vec![SeccompRule::new(vec![all])?])
            }
            Lacks(arg, bits) => {
                let none = SeccompCondition::new(arg, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bits), 0)?;
                Ok(vec![SeccompRule::new(vec![none])?])
            }
            Not(arg, values) => {
                let differs =
                    |value: &u64| SeccompCondition::new(arg, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, *value);
                Ok(vec![SeccompRule::new(values.iter().map(differs).collect::<Result<_, _>>()?)?])
            }
            When::Option(options) => {
                let both = |(level, name): &(u64, u64)| SeccompRule::new(vec![equal32(1, *level)?, equal32(2, *name)?]);
                options.iter().map(both).collect()
            }
        }
    }
}

/// The filters of a role, in the order they are installed.
///
/// # Errors
/// On a processor there is no list for.
pub fn filters(role: Role) -> Result<Vec<BpfProgram>, BackendError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let mut allowed = BTreeMap::new();
    for (_, number, when) in calls(role) {
        allowed.insert(*number, when.rules()?);
    }
    // Its flags are in memory, where no filter can look: the C library takes its absence for an old kernel and uses `clone`.
    allowed.insert(libc::SYS_clone3, Vec::new());
    let list = SeccompFilter::new(allowed, refuse, SeccompAction::Allow, arch)?;
    let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let old = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let old = SeccompFilter::new(old, SeccompAction::Allow, absent, arch)?;
    // `no_new_privs` comes with the first; nothing may be installed after the last.
    Ok(vec![old.try_into()?, list.try_into()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_role_makes_a_socket_or_a_process() {
        for role in [Role::Host, Role::Folders, Role::Compiler] {
            assert_eq!(filters(role).unwrap().len(), 2);
            let names: Vec<&str> = calls(role).map(|(name, ..)| *name).collect();
            for forbidden in [
                "socket", "connect", "bind", "listen", "sendmsg", "sendmmsg", "execve", "fork", "ptrace", "fchmodat",
                "fchownat", "mknodat", "mount",
            ] {
                assert!(!names.contains(&forbidden), "{forbidden}");
            }
        }
        assert!(!calls(Role::Compiler).any(|(name, ..)| *name == "recvmsg"));
    }

    #[test]
    fn a_program_looks_into_no_other_process_and_changes_no_namespace() {
        assert_eq!(filters(Role::Program).unwrap().len(), 2);
        let names: Vec<&str> = calls(Role::Program).map(|(name, ..)| *name).collect();
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len(), "each once");
        for forbidden in [
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "pidfd_getfd",
            "kcmp",
            "mount",
            "umount2",
            "pivot_root",
            "chroot",
            "move_mount",
            "open_tree",
            "fsopen",
            "unshare",
            "setns",
            "clone3",
            "bpf",
            "perf_event_open",
            "io_uring_setup",
            "userfaultfd",
            "keyctl",
            "add_key",
            "init_module",
            "finit_module",
            "kexec_load",
            "reboot",
            "open_by_handle_at",
            "settimeofday",
            "clock_settime",
            "sethostname",
            "swapon",
            "seccomp",
        ] {
            assert!(!names.contains(&forbidden), "{forbidden}");
        }
    }
}
