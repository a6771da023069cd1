"""System calls that programs do not need and limits do not count: refused by a filter in the kernel (seccomp)."""

import ctypes
import os
import struct

# Memory that belongs to no process (`memfd_create`, `shmget`) is not counted; the others could help to leave a box.
# Numbers: linux/arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h.
_REFUSED = {
    "x86_64": {
        "memfd_create": 319, "memfd_secret": 447, "shmget": 29, "userfaultfd": 323, "io_uring_setup": 425, "bpf": 321,
        "perf_event_open": 298, "add_key": 248, "request_key": 249, "keyctl": 250, "ptrace": 101,
        "process_vm_readv": 310, "process_vm_writev": 311, "unshare": 272, "setns": 308, "mount": 165,
    },
    "aarch64": {
        "memfd_create": 279, "memfd_secret": 447, "shmget": 194, "userfaultfd": 282, "io_uring_setup": 425, "bpf": 280,
        "perf_event_open": 241, "add_key": 217, "request_key": 218, "keyctl": 219, "ptrace": 117,
        "process_vm_readv": 270, "process_vm_writev": 271, "unshare": 97, "setns": 268, "mount": 40,
    },
}  # fmt: skip
_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_…
_X32 = 0x40000000  # x86_64's second set of numbers begins here

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of the classic BPF
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in `struct seccomp_data`
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # the errno of a refused call is EPERM
_SET_SECCOMP, _FILTER = 22, 2  # prctl


def refuse():
    """Install the filter in this process and its children. Does nothing where the numbers are not known."""
    machine = os.uname().machine
    if machine not in _REFUSED:
        return
    numbers = sorted(_REFUSED[machine].values())
    filters = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, _MACHINES[machine], 0, len(numbers) + 3),  # 32-bit calls: all refused
        _instruction(_LOAD, _NUMBER),
        _instruction(_AT_LEAST, _X32, len(numbers) + 1, 0),
        *(_instruction(_EQUAL, number, len(numbers) - at, 0) for at, number in enumerate(numbers)),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _REFUSE),
    ]
    program = ctypes.create_string_buffer(b"".join(filters))
    header = struct.pack("HP", len(filters), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_SECCOMP, _FILTER, ctypes.c_char_p(header), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _instruction(code, value, if_true=0, if_false=0):
    return struct.pack("HBBI", code, if_true, if_false, value)
