"""Linux namespaces and mounts through libc: what bubblewrap does for the outer box, done for a process forked in it."""

import contextlib
import ctypes
import os
import signal
from pathlib import Path

import system_calls
from system_calls import SET_NO_NEW_PRIVILEGES, check, libc

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 1 << 17, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXEC, _RECURSIVE, _PRIVATE = 1, 2, 4, 8, 1 << 14, 1 << 18
_SET_DUMPABLE, _SET_CHILD_SUBREAPER = 4, 36  # prctl
_CAPABILITY_VERSION = 0x20080522
_NOBODY = 65534


def become(user):
    """Become another user, from root. The kernel does not count root's processes, so no limit would apply to them."""
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    check(libc.prctl(_SET_DUMPABLE, 1, 0, 0, 0))  # or this process's own /proc files would stay root's


def adopt():
    """Without namespaces: become the parent of all orphaned processes of a program."""
    check(libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def end_adopted():
    """Kill and reap this process's children, and their children when it becomes their parent."""
    while True:
        with contextlib.suppress(ProcessLookupError):
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def unshare():
    """New user, process, network, mount, IPC and host-name namespaces; the process namespace is that of children."""
    user, group = os.getuid(), os.getgid()
    check(libc.unshare(_NEWUSER | _NEWPID | _NEWNET | _NEWNS | _NEWIPC | _NEWUTS))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{_NOBODY} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{_NOBODY} {group} 1")


def settle(size):
    """
    In the first process of the new namespaces: a private /tmp of `size` bytes, no /proc, no further namespaces, and no
    way back. The rest of the file system is read-only already, and its mounts are locked.
    """
    _mount(None, "/", None, _RECURSIVE | _PRIVATE, "")
    _mount("tmpfs", "/tmp", "tmpfs", _NO_SUID | _NO_DEVICES, f"size={size},nr_inodes=4096,mode=1777")
    # read-only in some containers; a further namespace would be of no use there either
    with contextlib.suppress(OSError):
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
    _mount("tmpfs", "/proc", "tmpfs", _READ_ONLY | _NO_SUID | _NO_DEVICES | _NO_EXEC, "size=4k,mode=555")
    os.chdir("/tmp")
    check(libc.prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    check(libc.capset(header, none))
    system_calls.confine_program()


def _mount(source, target, kind, flags, options):
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    check(libc.mount(*encoded, ctypes.c_ulong(flags), os.fsencode(options)))
