"""System calls that the kernel refuses by a filter (seccomp), to programs and to the process with the tests."""

import ctypes
import errno
import itertools
import os
import resource
import struct

MOST_SHARED = 16 << 20  # bytes of one shared mapping: nothing tells how many of its pages are in use

# Numbers: linux/arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h.
_NUMBERS = {
    "x86_64": {
        "mmap": 9, "shmget": 29, "socket": 41, "connect": 42, "bind": 49, "listen": 50, "socketpair": 53,
        "setsockopt": 54, "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "semget": 64, "msgget": 68,
        "fcntl": 72, "flock": 73, "ptrace": 101, "syslog": 103, "rt_sigqueueinfo": 129, "setpriority": 141,
        "sched_setparam": 142, "sched_setscheduler": 144, "pivot_root": 155, "prctl": 157, "setrlimit": 160,
        "chroot": 161, "mount": 165, "umount2": 166, "tkill": 200, "sched_setaffinity": 203, "tgkill": 234,
        "mq_open": 240, "add_key": 248, "request_key": 249, "keyctl": 250, "ioprio_set": 251, "unshare": 272,
        "vmsplice": 278, "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "fanotify_init": 300, "prlimit64": 302,
        "name_to_handle_at": 303, "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310,
        "process_vm_writev": 311, "kcmp": 312, "sched_setattr": 314, "memfd_create": 319, "bpf": 321, "execveat": 322,
        "userfaultfd": 323,
    },
    "aarch64": {
        "fcntl": 25, "ioprio_set": 30, "flock": 32, "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51,
        "vmsplice": 75, "unshare": 97, "syslog": 116, "ptrace": 117, "sched_setparam": 118, "sched_setscheduler": 119,
        "sched_setaffinity": 122, "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "setpriority": 140,
        "setrlimit": 164, "prctl": 167, "mq_open": 180, "msgget": 186, "semget": 190, "shmget": 194, "socket": 198,
        "socketpair": 199, "bind": 200, "listen": 201, "connect": 203, "setsockopt": 208, "add_key": 217,
        "request_key": 218, "keyctl": 219, "clone": 220, "execve": 221, "mmap": 222, "rt_tgsigqueueinfo": 240,
        "perf_event_open": 241, "prlimit64": 261, "fanotify_init": 262, "name_to_handle_at": 264,
        "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271,
        "kcmp": 272, "sched_setattr": 274, "memfd_create": 279, "bpf": 280, "execveat": 281, "userfaultfd": 282,
    },
}  # fmt: skip
_SAME_NUMBERS = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fspick": 433,
    "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442,
    "memfd_secret": 447,
}  # fmt: skip
_NEWEST = 456  # later ones, such as statmount, are as if the kernel did not have them
_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_…
_X32 = 0x40000000  # x86_64's second set of numbers begins here

# The classic BPF: its instructions, offsets in `struct seccomp_data`, and what a filter may answer.
_LOAD, _EQUAL, _GREATER, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
# a test's instruction, and whether it must hold
_TESTS = {
    "==": (_EQUAL, True), "!=": (_EQUAL, False), ">": (_GREATER, True), "<=": (_GREATER, False),
    "has": (_ANY_BIT, True), "lacks": (_ANY_BIT, False),
}  # fmt: skip

_DONE = 0  # a call that does nothing and says that it succeeded
_UPPER_HALF = 0.5  # of an argument of 64 bits, added to its place
_ALWAYS = [[]]
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_NOT_A_STREAM = 0xE  # bits of the type of a socket
_NEW_NAMESPACES, _THREAD = 0x7E020000, 0x10000  # flags of `clone`
_FAMILIES = [[(0, "!=", _AF_UNIX), (0, "!=", _AF_INET), (0, "!=", _AF_INET6)]]

_PRIORITIES = (
    "setpriority", "ioprio_set", "sched_setparam", "sched_setscheduler", "sched_setattr", "sched_setaffinity"
)  # fmt: skip

# name: (the error, what its arguments are then), any of several lists of tests (argument, comparison, value).
_FOR_PROGRAMS = {
    # memory that belongs to no process and that the supervisor does not see
    **dict.fromkeys(
        ["memfd_create", "memfd_secret", "shmget", "semget", "msgget", "mq_open", "vmsplice"], (errno.EPERM, _ALWAYS)
    ),
    "mmap": (errno.EPERM, [[(3, "has", 1), (1, ">", MOST_SHARED)]]),
    # what waits in sockets: each holds one buffer of the usual size, and is counted as such
    "socket": (errno.EAFNOSUPPORT, [*_FAMILIES, [(0, "==", _AF_UNIX), (1, "has", _NOT_A_STREAM)]]),
    "socketpair": (errno.EAFNOSUPPORT, [*_FAMILIES, [(1, "has", _NOT_A_STREAM)]]),
    "setsockopt": (
        errno.EPERM, [[(1, "==", 1), (2, ">", low), (2, "<=", high)] for low, high in ((6, 8), (31, 33))],  # SO_…BUF…
    ),
    # or the supervisor would not see its mappings
    "prctl": (errno.EPERM, [[(0, "==", 4)]]),  # PR_SET_DUMPABLE
    # A program is alone in its box. Its locks must not keep others from files of the machine, so it takes none.
    "flock": (_DONE, _ALWAYS),
    "fcntl": (_DONE, [[(1, "==", command)] for command in (6, 7, 37, 38, 1024)]),  # F_SETLK… and F_SETLEASE
    # A program that makes itself wait for a processor would have time that is not counted.
    **dict.fromkeys(_PRIORITIES, (errno.EPERM, _ALWAYS)),
    # ways to look or get out of a box
    "clone": (errno.EPERM, [[(0, "has", _NEW_NAMESPACES)]]),
    "clone3": (errno.ENOSYS, _ALWAYS),  # its flags are in memory, and the C library falls back on `clone`
    **dict.fromkeys(
        [
            "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "fsopen", "fspick", "open_tree",
            "move_mount", "mount_setattr", "name_to_handle_at", "open_by_handle_at", "ptrace", "process_vm_readv",
            "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp", "userfaultfd", "io_uring_setup", "bpf",
            "perf_event_open", "fanotify_init", "add_key", "request_key", "keyctl", "syslog",
        ],
        (errno.EPERM, _ALWAYS),
    ),
}  # fmt: skip
# Once it has its limits, or the kernel could kill the box before its time is up, as something outside might.
_FOR_LIMITED = {
    "setrlimit": (errno.EPERM, [[(0, "==", resource.RLIMIT_CPU)]]),
    "prlimit64": (errno.EPERM, [[(1, "==", resource.RLIMIT_CPU), (half, "!=", 0)] for half in (2, 2 + _UPPER_HALF)]),
}
# The process with the tests starts no other, reaches none, and has its sockets already.
_FOR_TESTS = {
    **_FOR_PROGRAMS,
    "clone": (errno.EPERM, [[(0, "lacks", _THREAD)]]),
    "prlimit64": (errno.EPERM, [[(0, "!=", 0)]]),
    **dict.fromkeys(
        [
            "fork", "vfork", "execve", "execveat", "kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
            "pidfd_send_signal", "pidfd_open", *_PRIORITIES, "socket", "connect", "bind", "listen", "prctl",
        ],
        (errno.EPERM, _ALWAYS),
    ),
}  # fmt: skip


def _instruction(code, value, if_true=0, if_false=0):
    return struct.pack("HBBI", code, if_true, if_false, value)


def _rule(number, error, alternatives):
    """Instructions that answer a call of this number where one of the alternatives holds, and allow it elsewhere."""
    body = b"" if [] in alternatives else _instruction(_RETURN, _ALLOW)
    for tests in reversed(alternatives):
        part = _instruction(_RETURN, _ERRNO | error)
        for argument, comparison, value in reversed(tests):
            code, holds = _TESTS[comparison]
            skip = len(part) // 8
            part = (
                _instruction(_LOAD, _ARGUMENTS + int(8 * argument))
                + _instruction(code, value, 0 if holds else skip, skip if holds else 0)
                + part
            )
        body = part + body
    return _instruction(_EQUAL, number, 0, len(body) // 8) + body


def _filter(rules):
    """The program of a filter; none where the numbers of this machine are not known."""
    machine = os.uname().machine
    if machine not in _NUMBERS:
        return b""
    numbers = {**_NUMBERS[machine], **_SAME_NUMBERS}
    return b"".join(
        [
            _instruction(_LOAD, _ARCHITECTURE),
            _instruction(_EQUAL, _MACHINES[machine], 1, 0),
            _instruction(_RETURN, _KILL),  # 32-bit calls
            _instruction(_LOAD, _NUMBER),
            _instruction(_AT_LEAST, _X32, 0, 1),
            _instruction(_RETURN, _KILL),
            _instruction(_GREATER, _NEWEST, 0, 1),
            _instruction(_RETURN, _ERRNO | errno.ENOSYS),
            *(_rule(numbers[name], *rule) for name, rule in rules.items() if name in numbers),
            _instruction(_RETURN, _ALLOW),
        ]
    )


def _loaded(program):
    """A filter's program as the kernel takes it, made before forks need it; and its memory, which must stay."""
    buffer = ctypes.create_string_buffer(program)
    return ctypes.c_char_p(struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))), buffer


_PROGRAMS, _LIMITED, _TESTS_PROCESS = (_loaded(_filter(rules)) for rules in (_FOR_PROGRAMS, _FOR_LIMITED, _FOR_TESTS))
libc = ctypes.CDLL(None, use_errno=True)
_SET_SECCOMP, _FILTER, SET_NO_NEW_PRIVILEGES = 22, 2, 38  # prctl
_MOST_DESCRIPTORS = 1 << 20
_CREATE_RULESET, _RESTRICT_SELF, _EXECUTE = 444, 446, 1  # Landlock, whose numbers are the same on all machines


def limit(name, most, hard=None):
    """Set a limit of this process, and where `hard` is not given the hard one too, so that it cannot be raised again.
    Where the machine allows less, that is the limit."""
    kind = getattr(resource, name)
    allowed = resource.getrlimit(kind)[1]
    soft, hard = (value if allowed == resource.RLIM_INFINITY else min(value, allowed) for value in (most, hard or most))
    resource.setrlimit(kind, (soft, hard))


def confine_program():
    """Install the filter of programs in this process and its children."""
    _install(_PROGRAMS)


def keep_time():
    """Install the filter of programs that have their limits, after that of programs."""
    _install(_LIMITED)


def confine_tests(*kept):
    """
    Leave this process, which has the tests, nothing but the descriptors `kept` and the standard ones, and the calls of
    its filter. In depth: values from a program must not run code in it, and if they do, it reaches no other process,
    not even through `/proc`.
    """
    for before, after in itertools.pairwise([2, *sorted(kept), _MOST_DESCRIPTORS]):
        os.closerange(before + 1, after)
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(ctypes.c_uint64(_EXECUTE)), ctypes.c_size_t(8), 0)
    check(libc.prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    if ruleset >= 0:  # some kernels have no Landlock
        check(libc.syscall(_RESTRICT_SELF, ruleset, 0))
        os.close(ruleset)
    _install(_TESTS_PROCESS)


def _install(loaded):
    header, program = loaded
    if len(program) > 1:
        check(libc.prctl(_SET_SECCOMP, _FILTER, header, 0, 0))


def check(result):
    """Raises the `OSError` of a call of the C library that failed."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
