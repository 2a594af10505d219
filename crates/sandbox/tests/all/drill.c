// The escape drill: native code in the place of a confined process. It is loaded with the program and takes over at the
// program's first call of a function that comes after the last layer, `sched_yield` in the test of the sandbox. Each line it writes is an attempt and the kernel's answer.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

// Where it takes over, and the number of a connected socket that the process was handed; 3 is a listener.
#ifndef ENTRY
#define ENTRY sched_yield(void)
#endif
#ifndef CONNECTED
#define CONNECTED 4
#endif

static void say(const char *what, long got) {
    char line[160];
    int n = snprintf(line, sizeof line, "%s: %s\n", what, got < 0 ? strerrorname_np(errno) : "DONE");
    write(1, line, n);
}

// What a running platform has: what it is, where it is, and where that is from the folder that the process was handed.
#ifdef REAL
static const struct { const char *what, *path, *beside; } real[] = {REAL};
// Sockets of another tenant's host and of the platform.
static const struct { const char *what, *path; } sockets[] = {SOCKETS};
#endif

static void attempt(const char *how, const char *what, long got) {
    char name[120];
    snprintf(name, sizeof name, "%s %s", how, what);
    say(name, got);
}

int ENTRY {
    static char name[40], name_of[512];
    struct sockaddr_in meta = {.sin_family = AF_INET, .sin_port = htons(80)};
    inet_pton(AF_INET, "169.254.169.254", &meta.sin_addr);
    struct sockaddr off = {.sa_family = AF_UNSPEC};
    struct sockaddr_un store = {.sun_family = AF_UNIX, .sun_path = "/run/node.sock"};
    struct iovec part = {"x", 1};
    struct msghdr to = {.msg_name = &meta, .msg_namelen = sizeof meta, .msg_iov = &part, .msg_iovlen = 1};
    char *argv[] = {"/bin/sh", NULL};
    say("new TCP socket", syscall(SYS_socket, AF_INET, SOCK_STREAM, 0));
    say("new UDP socket", syscall(SYS_socket, AF_INET, SOCK_DGRAM, 0));
    say("new unix socket", syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0));
    say("new netlink socket", syscall(SYS_socket, AF_NETLINK, SOCK_RAW, 0));
    say("new packet socket", syscall(SYS_socket, AF_PACKET, SOCK_RAW, 0));
    say("new vsock socket", syscall(SYS_socket, AF_VSOCK, SOCK_STREAM, 0));
    say("socketpair", syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, (int[2]){0}));
    say("disconnect a handed socket", syscall(SYS_connect, CONNECTED, &off, sizeof off));
    say("connect a handed socket to cloud metadata", syscall(SYS_connect, CONNECTED, &meta, sizeof meta));
    say("sendto another address", syscall(SYS_sendto, CONNECTED, "x", 1, 0, &meta, sizeof meta));
    say("sendmsg to another address", syscall(SYS_sendmsg, CONNECTED, &to, 0));
    say("sendmmsg to another address", syscall(SYS_sendmmsg, CONNECTED, &to, 1, 0));
    say("bind a handed socket", syscall(SYS_bind, CONNECTED, &meta, sizeof meta));
    say("listen on a handed socket", syscall(SYS_listen, CONNECTED, 1));
    say("connect to another tenant's socket", syscall(SYS_connect, 3, &store, sizeof store));
    say("filter on a handed socket", setsockopt(CONNECTED, SOL_SOCKET, SO_ATTACH_FILTER, &part, 16));
    say("device of a handed socket", setsockopt(CONNECTED, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3));
    say("execve", syscall(SYS_execve, "/bin/sh", argv, NULL));
    say("execveat of a descriptor", syscall(SYS_execveat, 1, "", argv, NULL, AT_EMPTY_PATH));
    say("fork", syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    say("vfork", syscall(SYS_clone, CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0));
    say("clone with a user namespace", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
    say("clone3", syscall(SYS_clone3, NULL, 0));
    say("unshare a user namespace", syscall(SYS_unshare, CLONE_NEWUSER));
    say("setns", syscall(SYS_setns, 0, 0));
    say("ptrace", syscall(SYS_ptrace, PTRACE_ATTACH, 1, 0, 0));
    say("read another's memory", syscall(SYS_process_vm_readv, 1, &part, 1, &part, 1, 0));
    say("pidfd of another", syscall(SYS_pidfd_open, 1, 0));
    say("descriptor of another", syscall(SYS_pidfd_getfd, 1, 0, 0));
    say("signal everybody", syscall(SYS_kill, -1, SIGKILL));
    say("signal the parent", syscall(SYS_kill, getppid(), SIGKILL));
    say("mount", syscall(SYS_mount, "none", "/", "tmpfs", 0, NULL));
    say("umount", syscall(SYS_umount2, "/", 2));
    say("pivot_root", syscall(SYS_pivot_root, ".", "."));
    say("chroot", syscall(SYS_chroot, "/"));
    say("open_tree", syscall(SYS_open_tree, -100, "/", 0));
    say("fsopen", syscall(SYS_fsopen, "proc", 0));
    say("bpf", syscall(SYS_bpf, 0, NULL, 0));
    say("perf_event_open", syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0));
    say("io_uring_setup", syscall(SYS_io_uring_setup, 1, NULL));
    say("userfaultfd", syscall(SYS_userfaultfd, 0));
    say("keyctl", syscall(SYS_keyctl, 0, 0, 0, 0, 0));
    say("add_key", syscall(SYS_add_key, "user", "x", "x", 1, -3));
    say("memfd_create", syscall(SYS_memfd_create, "x", 0));
    say("setuid root", syscall(SYS_setuid, 0));
    say("capset", syscall(SYS_capset, NULL, NULL));
    say("prctl dumpable", syscall(SYS_prctl, 4, 1, 0, 0, 0));
    say("prctl forget the parent", syscall(SYS_prctl, 1, 0, 0, 0, 0));
    say("own seccomp filter", syscall(SYS_seccomp, 1, 0, NULL));
    struct sched_param first = {.sched_priority = 1};
    say("before everybody for the processor", syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &first));
    say("more of the processor", syscall(SYS_setpriority, 0, 0, -20));
    say("more of the processor for all of a user", syscall(SYS_setpriority, 2, 0, -20));
    say("terminal ioctl", syscall(SYS_ioctl, 0, 0x5412, "x"));
    say("init_module", syscall(SYS_init_module, NULL, 0, ""));
    say("reboot", syscall(SYS_reboot, 0, 0, 0, NULL));
    say("setrlimit", syscall(SYS_prlimit64, 0, 7, NULL, NULL));
    say("open /etc/passwd", open("/etc/passwd", O_RDONLY));
    say("open /proc/1/environ", open("/proc/1/environ", O_RDONLY));
    say("open /proc/self/mem", open("/proc/self/mem", O_RDWR));
    say("open /dev/kvm", open("/dev/kvm", O_RDWR));
    say("open the root", open("/", O_RDONLY | O_DIRECTORY));
    say("create a file", open("/x", O_CREAT | O_RDWR, 0600));
    say("climb out", open("/../../etc/passwd", O_RDONLY));
#ifdef REAL
    struct stat seen;
    for (size_t i = 0; i < sizeof real / sizeof *real; i++) {
        attempt("open", real[i].what, syscall(SYS_openat, AT_FDCWD, real[i].path, O_RDONLY));
        attempt("look at", real[i].what, syscall(SYS_newfstatat, AT_FDCWD, real[i].path, &seen, 0));
        attempt("open, from the folder it was handed,", real[i].what, syscall(SYS_openat, FOLDER, real[i].beside, O_RDONLY));
        attempt("look, from the folder it was handed, at", real[i].what, syscall(SYS_newfstatat, FOLDER, real[i].beside, &seen, 0));
        attempt("open, over the first process,", real[i].what, open(strcat(strcpy(name_of, "/proc/1/root"), real[i].path), O_RDONLY));
    }
    struct sockaddr_in api = {.sin_family = AF_INET, .sin_port = htons(API)};
    inet_pton(AF_INET, "127.0.0.1", &api.sin_addr);
    for (int fd = 3; fd <= FOLDER; fd++) {
        char whence[40];
        snprintf(whence, sizeof whence, "with descriptor %d", fd);
        attempt("connect to the API", whence, syscall(SYS_connect, fd, &api, sizeof api));
        attempt("send to the API", whence, syscall(SYS_sendto, fd, "x", 1, 0, &api, sizeof api));
        for (size_t i = 0; i < sizeof sockets / sizeof *sockets; i++) {
            struct sockaddr_un at = {.sun_family = AF_UNIX};
            strncpy(at.sun_path, sockets[i].path, sizeof at.sun_path - 1);
            char what[100];
            snprintf(what, sizeof what, "%s %s", sockets[i].what, whence);
            attempt("connect to", what, syscall(SYS_connect, fd, &at, sizeof at));
            attempt("send to", what, syscall(SYS_sendto, fd, "x", 1, 0, &at, sizeof at));
        }
    }
#endif
    // What is on no list is refused, whatever it is. ALLOWED comes from the committed list.
    static const int allowed[] = {ALLOWED};
    for (int number = 0; number < 470; number++) {
        int known = 0;
        for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++) known |= allowed[i] == number;
        // 335 and 336 are the kernel's own way out of its probes: it keeps filters off them, and answers others with SIGILL.
        if (known || number == SYS_clone3 || number == 335 || number == 336) continue;
        errno = 0;
        if (syscall(number, -1L, -1L, -1L, -1L, -1L, -1L) != -1 || errno != EPERM) {
            snprintf(name, sizeof name, "system call %d is let through", number);
            say(name, 0);
        }
    }
    _exit(0);
}
