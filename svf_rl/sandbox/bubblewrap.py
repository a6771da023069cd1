"""Running model-written code: bubblewrap's outer box, in which `boxed/supervisor.py` gives each program its own."""

import json
import logging
import math
import os
import random
import shutil
import sys
import sysconfig
import threading
from functools import cache, partial
from pathlib import Path
from typing import Any

from svf_rl.errors import InfrastructureError, SVFError
from svf_rl.sandbox.workers import WorkerPool, check_start, parallel_checks

logger = logging.getLogger(__name__)

BOXED = Path(__file__).parent / "boxed"
PACKAGES = sysconfig.get_paths()["purelib"]  # what is installed, which programs may import
_MB = 1 << 20

SECONDS = 10.0  # of CPU time of a process, where the caller does not say
MEMORY_MB = 1024  # address space per process, and memory of all processes of a program, likewise
PROCESSES = 32  # processes and threads
FILE_BYTES = 16 * _MB  # size of a file, and of the private `/tmp`
OPEN_FILES = 64  # per process
OUTPUT_BYTES = 16 * _MB  # standard output that is read
# By the clock a program may take this many times as long, so that other load on the machine does not make a correct
# program wrong; one that sleeps gets less.
WALL_FACTOR = 3
# How many times slower than alone a busy machine may be. The supervisor counts what a program waits for a processor as
# the machine's doing; beyond this, there is no verdict.
LOAD_FACTOR = 10
# Seconds after which a bubblewrap that does nothing but start is one that hangs
HANG_SECONDS = 8.0
# Seconds to start a program again for the next input, without the time of the program itself.
START_SECONDS = 0.1


def _limits(seconds: float, memory_mb: int) -> dict[str, Any]:
    """The part of a request to the supervisor with the limits."""
    return {
        "seconds": WALL_FACTOR * seconds,
        "idle_seconds": seconds,
        "memory": memory_mb * _MB,
        "processes": PROCESSES + 4,  # the box itself has some
        "output": OUTPUT_BYTES,
        "limits": {
            "RLIMIT_AS": memory_mb * _MB,
            # The supervisor ends a process at `seconds`. The kernel counts whole ticks for whoever runs at their end:
            # on a busy machine, its limit of 2 s can come after 1.4.
            "RLIMIT_CPU": 2 * math.ceil(seconds) + 1,
            "RLIMIT_FSIZE": FILE_BYTES,
            "RLIMIT_NOFILE": OPEN_FILES,
            "RLIMIT_NPROC": PROCESSES,
            "RLIMIT_CORE": 0,
        },
    }


def run_program(
    request: dict[str, Any], seconds: float, memory_mb: int, allow_unsandboxed: bool = False
) -> dict[str, Any]:
    """
    Run one program in its own box.

    Args:
        request (`dict`): as `boxed/supervisor.py` describes it, without the limits.
        seconds (`float`), memory_mb (`int`): what it may use, as `SECONDS` and `MEMORY_MB`.
        allow_unsandboxed (`bool`, *optional*, defaults to `False`): run it without bubblewrap if it is missing.

    Returns:
        `dict`: `chosen`, `passed`, `reason`, `unscorable`, as `boxed/test_process.py` describes them.

    Raises:
        SVFError: bubblewrap is missing or may not make namespaces here.
        InfrastructureError: the program could not be run, which says nothing about it.
    """
    starts = START_SECONDS * len(request.get("inputs", ()))
    with _starting:
        pool = _pool(allow_unsandboxed)
    patience = LOAD_FACTOR * (WALL_FACTOR * seconds + starts) + 30  # and its start and end
    return pool.call({**request, **_limits(seconds, memory_mb), "starts": starts}, patience)


_starting = threading.Lock()  # with `cache` alone, several threads could make a pool at the same time
# a fork waits for it: in the child, the thread that holds it would not exist and never release it
os.register_at_fork(before=_starting.acquire, after_in_parent=_starting.release, after_in_child=_starting.release)


@cache
def _pool(allow_unsandboxed: bool) -> WorkerPool:
    try:
        return _sandbox()
    except SVFError as error:
        if not allow_unsandboxed:
            raise
        logger.warning(
            "NO SANDBOX, and allow_unsandboxed is set. Model-written code runs as you, with your files and your "
            "network; only time and memory are limited. (%s)",
            error,
        )
        settings = {"boxed": False, "uid": 0, "packages": PACKAGES}
        command = [sys.executable, "-I", "-S", str(BOXED / "supervisor.py"), json.dumps(settings)]
        return WorkerPool("unit_tests, without a sandbox", command, parallel_checks())


def _sandbox() -> WorkerPool:
    if shutil.which("bwrap") is None:
        raise SVFError(
            "model-written code needs bubblewrap: install the package bubblewrap (Debian, Ubuntu, Fedora, Arch), "
            "or set allow_unsandboxed: true to run it on this machine without a sandbox"
        )
    failure = ""
    modes = [True, False] if os.getuid() == 0 else [False]
    for privileged in modes:
        pool = WorkerPool("the sandbox", partial(_boxed_command, privileged), parallel_checks())
        try:
            # an interpreter that does no more than a worker says at its start
            nothing = [*_boxed_command(privileged)[:-2], "-c", "print('{}')"]
            check_start("the sandbox", nothing, HANG_SECONDS / len(modes))
            reply = pool.call(_PROBE | _limits(SECONDS, MEMORY_MB), 60)
            if reply.get("passed") == [True]:
                return pool
            failure = failure or str(reply)
        except InfrastructureError as error:
            failure = failure or str(error)
        pool.close()
    raise SVFError(
        f"bubblewrap cannot make a sandbox here ({failure}); in a container, allow user namespaces, or set "
        "allow_unsandboxed: true where no protection is needed"
    )


_PROBE = {
    "candidates": ["def works(x):\n    return x + 1\n"], "wanted": ["works"], "imports": "", "setup": "", "prompt": "",
    "entry_point": "", "share": False, "main": False, "inside": False, "tests": ["assert works(1) == 2"],
}  # fmt: skip


def _boxed_command(privileged: bool) -> list[str]:
    """
    bubblewrap with the supervisor in it, on a file system that is completely read-only.

    Programs of root run as a separate user, since the kernel does not count the processes of root. Where bubblewrap
    does not run as root, a user namespace does the same.
    """
    interpreter, prefix = _interpreter()
    command = ["bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--hostname", "sandbox"]
    command += [] if privileged else ["--unshare-user"]
    command += [*_system(), *prefix, "--ro-bind", str(BOXED), "/boxed", "--ro-bind-try", PACKAGES, "/packages"]
    # explicit, or bubblewrap creates these mount points with access only for root
    command += ["--dir", "/tmp", "--dir", "/dev", "--proc", "/proc", "--symlink", "/tmp", "/dev/shm"]
    for device in ("null", "zero", "urandom"):
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    command += ["--remount-ro", "/", "--clearenv", "--chdir", "/"]
    command += ["--setenv", "LD_LIBRARY_PATH", "/python/lib"] if prefix else []
    settings = {
        "boxed": True,
        "uid": random.SystemRandom().randrange(1 << 24, 1 << 30) if privileged else 0,
        "packages": "/packages",
        "tmp_bytes": FILE_BYTES,
    }
    return [*command, interpreter, "-I", "-S", "/boxed/supervisor.py", json.dumps(settings)]


def _system() -> list[str]:
    """Mounts of the read-only system."""
    mounts = ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        is_link = Path(name).is_symlink()
        mounts += ["--symlink", str(Path(name).readlink()), name] if is_link else ["--ro-bind-try", name, name]
    return [*mounts, "--dir", "/etc", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]


def _interpreter() -> tuple[str, list[str]]:
    """The base interpreter of this environment by its path inside the boxes, and the mounts it needs: `/python` for one
    outside of `/usr`, for example in a home directory."""
    executable = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    prefix = Path(sys.base_prefix).resolve()
    if prefix.is_relative_to("/usr"):
        return str(executable), []
    return str("/python" / executable.relative_to(prefix)), ["--ro-bind", str(prefix), "/python"]
