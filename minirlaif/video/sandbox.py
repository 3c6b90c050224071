"""Limits that the decoding process sets for itself before it opens a file that a stranger may have made.

Linux: no new privileges (prctl), system calls for networks, programs and other processes refused (seccomp), writing to files
refused (Landlock). Everywhere but on Windows: limits of address space, CPU time, written bytes and core dumps (setrlimit). What a
kernel does not offer is left out; `enter` returns what is active, and the verb `doctor` shows it.
Sources: man pages prctl(2), seccomp(2), landlock(7), setrlimit(2).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from contextlib import suppress

ADDRESS_SPACE = 8 << 30  # bytes; a decoder of 8K HEVC with 16 threads maps about 4 GiB
WRITTEN = 1 << 20  # bytes of one file: messages of the decoders, which go to a file
OPEN_FILES = 256
CPU_SLACK = 5  # seconds beside those of a request

_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2
# Machine: number of the architecture in a filter; numbers of the system calls that are refused: socket, socketpair, execve,
# execveat, ptrace, process_vm_readv, process_vm_writev, kill, pidfd_send_signal, io_uring_setup, tkill, rt_sigqueueinfo,
# rt_tgsigqueueinfo, and those that change files without opening them (Landlock lets them pass): truncate, fchmod, fchmodat,
# fchmodat2, fchown, fchownat, utimensat, setxattr and removexattr with their variants, on x86_64 chmod, chown, lchown, utime,
# utimes and futimesat as well; numbers of tgkill and prlimit64, which are for this process alone.
_CALLS = {
    "x86_64": (
        0xC000003E,
        (41, 53, 59, 322, 101, 310, 311, 62, 424, 425, 200, 129, 297, 76, 91, 268, 452, 93, 260, 280)
        + (188, 189, 190, 197, 198, 199, 463, 466, 90, 92, 94, 132, 235, 261),
        (234, 302),
    ),
    "aarch64": (
        0xC00000B7,
        (198, 199, 221, 281, 117, 270, 271, 129, 424, 425, 130, 138, 240, 45, 52, 53, 452, 55, 54, 88, 5, 6, 7, 14, 15, 16)
        + (463, 466),
        (131, 261),
    ),
}
_ARGUMENT = 16  # where the first one stands in what a filter sees
_X32 = 0x40000000  # numbers from here on are calls of another kind, which would pass by the list
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF instructions
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001  # refuse with EPERM
_RULESET, _RULE, _RESTRICT = 444, 445, 446  # Landlock's system calls, the same on every machine
# Landlock's rights of version 1: those that change files (write, remove, make anything) or execute them, and reading, which stays
# but for what /proc says of other processes, such as the keys in their environment.
_CHANGES, _READ = 0b1_1111_1111_0011, 0b100
_READABLE_OF_PROC = "/proc/self /proc/cpuinfo /proc/meminfo /proc/stat /proc/sys".split()

# Variables that a decoding process needs; keys and tokens of this process are not among them.
ENVIRONMENT = frozenset(
    (
        "PATH HOME LANG LC_ALL LC_CTYPE TMPDIR TEMP TMP SYSTEMROOT PYTHONPATH PYTHONHOME VIRTUAL_ENV LD_LIBRARY_PATH"
        " DYLD_LIBRARY_PATH OMP_NUM_THREADS"
    ).split()
)


def environment() -> dict[str, str]:
    """The environment of a decoding process."""
    return {name: value for name, value in os.environ.items() if name in ENVIRONMENT} | {"MALLOC_ARENA_MAX": "4"}


def enter() -> list[str]:
    """Set all limits that this system offers; what is active, in words. They stay until the process ends."""
    active = [*_resources()]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        active += ["no new privileges"] if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 else []
        active += ["no writing to files (Landlock)"] if _landlock(libc) else []
        active += ["no network, no programs (seccomp)"] if _seccomp(libc) else []
    return active


def allow_cpu(seconds: float) -> None:
    """Let this process use so many seconds of wall time on every core from now on; then the system ends it."""
    if sys.platform == "win32":
        return
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = used.ru_utime + used.ru_stime + (seconds + CPU_SLACK) * (os.cpu_count() or 1)
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _resources() -> list[str]:
    if sys.platform == "win32":
        return []
    import resource

    limits = (("AS", ADDRESS_SPACE), ("FSIZE", WRITTEN), ("NOFILE", OPEN_FILES), ("CORE", 0))
    for name, limit in limits:
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        try:
            resource.setrlimit(kind, (limit, limit))
        except (OSError, ValueError):  # macOS refuses some
            return []
    return [f"{ADDRESS_SPACE >> 30} GiB of address space", f"{WRITTEN >> 20} MiB written", "CPU time of a request"]


def _seccomp(libc: ctypes.CDLL) -> bool:
    """Refuse the system calls of _CALLS."""
    architecture, calls, own_calls = _CALLS.get(platform.machine(), (0, (), (0, 0)))
    if not calls or struct.calcsize("P") != 8:
        return False
    own = []
    for call, process, last in ((own_calls[0], os.getpid(), 6), (own_calls[1], 0, 2)):  # last: how far it is to the last one
        own += [(_EQUAL, 0, 3, call), (_LOAD, 0, 0, _ARGUMENT), (_EQUAL, 0, last, process), (_RETURN, 0, 0, _ALLOW)]
    count = len(calls) + len(own)
    body = [(_EQUAL, count - place, 0, call) for place, call in enumerate(calls)] + own  # jump to the last instruction
    program = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 0, len(body) + 3, architecture),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, len(body) + 1, 0, _X32),
        *body,
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    return bool(libc.prctl(_SECCOMP, _FILTER, ctypes.c_char_p(header), 0, 0) == 0)


def _landlock(libc: ctypes.CDLL) -> bool:
    """Refuse to change any file, except those that are open already, and to read files of other processes."""
    attributes = struct.pack("Q", _CHANGES | _READ)
    ruleset = libc.syscall(_RULESET, ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    try:
        for path in [*(f"/{name}" for name in os.listdir("/") if name != "proc"), *_READABLE_OF_PROC]:
            with suppress(OSError):
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
                rule = struct.pack("=Qi", _READ, place)  # read what lies below
                libc.syscall(_RULE, ruleset, 1, ctypes.c_char_p(rule), 0)
                os.close(place)
        return bool(libc.syscall(_RESTRICT, ruleset, 0) == 0)
    finally:
        os.close(ruleset)
