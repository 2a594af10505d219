#!/usr/bin/python3 -I
"""The escape drill of an external provider: a program that tries its ways out, writes down what the kernel answered, and is then
as well as its contract asks for."""

import ctypes
import errno
import json
import os
import socket
import sys

handed = json.loads(sys.stdin.readline())
data, config = handed["data"], handed["config"]
home = config["home"]
libc = ctypes.CDLL(None, use_errno=True)
lines = []


def say(what, error):
    lines.append(f"{what}: {errno.errorcode.get(error, error) if error else 'DONE'}")


def call(what, number, *args):
    args = [ctypes.c_char_p(arg) if isinstance(arg, bytes) else ctypes.c_long(arg) for arg in args]
    ctypes.set_errno(0)
    say(what, ctypes.get_errno() if libc.syscall(ctypes.c_long(number), *args) == -1 else 0)


def attempt(what, act):
    try:
        act()
        say(what, 0)
    except OSError as cause:
        say(what, cause.errno)


def connect(family, address):
    other = socket.socket(family, socket.SOCK_STREAM)
    other.settimeout(2)
    other.connect(address)


attempt("connect to the API", lambda: connect(socket.AF_INET, ("127.0.0.1", int(config["api"]))))
attempt("connect to cloud metadata", lambda: connect(socket.AF_INET, ("169.254.169.254", 80)))
attempt("connect over IPv6", lambda: connect(socket.AF_INET6, ("2001:db8::1", 80)))
attempt("connect to an abstract socket of the machine", lambda: connect(socket.AF_UNIX, "\0sidereal-drill"))
for name, family in [("netlink", 16), ("packet", 17), ("vsock", 40), ("cipher", 38)]:
    attempt(f"new {name} socket", lambda: socket.socket(family, socket.SOCK_RAW))
attempt("new raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))

for what, path in [
    ("the shadow file", "/etc/shadow"),
    ("the keys of the platform", home + "/keys"),
    ("the store of the platform", home + "/store.redb"),
    ("the user ids of the platform", home + "/uids.json"),
    ("another tenant's data", home + "/externals/other"),
    ("homes", "/home"),
    ("the home of root", "/root"),
    ("sockets of services", "/run/docker.sock"),
    ("what services keep", "/var/lib"),
    ("the kernel's settings", "/sys/kernel"),
    ("memory of the machine", "/dev/mem"),
    ("a disk", "/dev/vda"),
    ("terminals", "/dev/pts"),
    ("virtual machines", "/dev/kvm"),
]:
    attempt(f"look at {what}", lambda: os.close(os.open(path, os.O_RDONLY)))
attempt("environment of the first process", lambda: open("/proc/1/environ").close())
attempt("memory of the first process", lambda: open("/proc/1/mem", "rb").close())
for path in ["/x", "/etc/x", "/usr/x", "/opt/x", "/dev/x", os.path.dirname(data) + "/x"]:
    shown = path.replace(home, "<data>")
    attempt(f"write {shown}", lambda: open(path, "w").close())
attempt("write a setting of the kernel", lambda: open("/proc/sys/kernel/core_pattern", "w").close())
attempt("write its own user map", lambda: open("/proc/self/uid_map", "w").close())
seen = sorted(name for name in os.listdir("/proc") if name.isdigit())
lines.append(f"processes it sees: {len(seen)}")
lines.append(f"in the folder of the platform: {sorted(os.listdir(home))}")
lines.append(f"in the folder of its app: {sorted(os.listdir(os.path.dirname(data)))}")
attempt("make a device", lambda: os.mknod(data + "/null", 0o20666, os.makedev(1, 3)))
attempt("become root", lambda: os.setuid(0))
attempt("more of the processor", lambda: os.nice(-10))
attempt("first in the queue", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))

call("ptrace", 101, 16, 1, 0, 0)
call("read another's memory", 310, 1, 0, 0, 0, 0, 0)
call("descriptor of another", 438, 0, 0, 0)
call("unshare a user namespace", 272, 0x10000000)
call("clone with a user namespace", 56, 0x10000000 | 17, 0, 0, 0, 0)
call("clone3", 435, 0, 0)
call("setns", 308, 0, 0)
call("mount", 165, b"none", b"/tmp", b"tmpfs", 0, 0)
call("umount", 166, b"/proc", 2)
call("pivot_root", 155, b".", b".")
call("chroot", 161, b"/tmp")
call("fsopen", 430, b"proc", 0)
call("open_tree", 428, -100, b"/", 0)
call("open by handle", 304, -100, 0, 0)
call("bpf", 321, 0, 0, 0)
call("perf_event_open", 298, 0, 0, -1, -1, 0)
call("io_uring_setup", 425, 1, 0)
call("userfaultfd", 323, 0)
call("keyctl", 250, 0, 0, 0, 0, 0)
call("init_module", 175, 0, 0, b"")
call("reboot", 169, 0, 0, 0, 0)
call("sethostname", 170, b"x", 1)
call("settimeofday", 164, 0, 0)
call("another personality", 135, 0x0040000)
call("type on a terminal", 16, 0, 0x5412, b"x")
# What is on no list is refused, whatever it is; 335 and 336 are the kernel's own way out of its probes.
allowed = {int(number) for number in config["allowed"].split(",")} | {335, 336, 435}
for number in range(470):
    if number not in allowed:
        ctypes.set_errno(0)
        if libc.syscall(number, *[ctypes.c_long(-1)] * 6) != -1 or ctypes.get_errno() != errno.EPERM:
            lines.append(f"system call {number} is let through: DONE")

with open(data + "/drill.partial", "w") as file:
    file.write("\n".join(lines) + "\n")
os.rename(data + "/drill.partial", data + "/drill")

listener = socket.socket(socket.AF_UNIX)
listener.bind(handed["socket"])
listener.listen(64)
while True:
    caller, _ = listener.accept()
    try:
        caller.recv(4096)
        caller.sendall(b"\0\2\0\0")
        caller.close()
    except OSError:
        pass
