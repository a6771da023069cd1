"""Running model-written code: under bubblewrap, each program in its own namespaces, under limits.

bubblewrap makes the outer box, once per worker: a read-only system, no network, no home directory, no environment. In
it the supervisor (`boxed/supervisor.py`) gives each program its own box: a fork of a warm interpreter, with its own
user, process, network, mount and IPC namespaces, a small private `/tmp` and no `/proc`. The process that decides about
a program stays outside its box.
"""

import json
import logging
import math
import os
import random
import shutil
import sys
import sysconfig
import threading
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from svf_rl.errors import InfrastructureError, SVFError
from svf_rl.sandbox.workers import WorkerPool, parallel_checks

logger = logging.getLogger(__name__)

BOXED = Path(__file__).parent / "boxed"
_MB = 1 << 20

# Seconds to start a program again for the next input, without the time of the program itself.
START_SECONDS = 0.1


@dataclass(frozen=True)
class Limits:
    """
    What one program may use.

    Args:
        seconds (`float`, *optional*, defaults to `10.0`):
            CPU time of a process. By the clock it may take three times as long, so that other load on the machine does
            not make a correct program wrong; a program that sleeps gets less.
        memory_mb (`int`, *optional*, defaults to `1024`): address space per process, and memory of all its processes.
        processes (`int`, *optional*, defaults to `32`): processes and threads.
        file_mb (`int`, *optional*, defaults to `16`): size of a file, and of the private `/tmp`.
        open_files (`int`, *optional*, defaults to `64`): descriptors per process.
        output_mb (`int`, *optional*, defaults to `16`): standard output that is read.
    """

    seconds: float = 10.0
    memory_mb: int = 1024
    processes: int = 32
    file_mb: int = 16
    open_files: int = 64
    output_mb: int = 16

    @property
    def wall_seconds(self) -> float:
        return 3 * self.seconds

    def as_request(self) -> dict[str, Any]:
        """The part of a request to the supervisor with the limits."""
        return {
            "seconds": self.wall_seconds,
            "idle_seconds": self.seconds,
            "memory": self.memory_mb * _MB,
            "processes": self.processes + 4,  # the box itself has some
            "output": self.output_mb * _MB,
            "limits": {
                "RLIMIT_AS": self.memory_mb * _MB,
                "RLIMIT_CPU": math.ceil(self.seconds),
                "RLIMIT_FSIZE": self.file_mb * _MB,
                "RLIMIT_NOFILE": self.open_files,
                "RLIMIT_NPROC": self.processes,
                "RLIMIT_CORE": 0,
            },
        }


def run_program(request: dict[str, Any], limits: Limits, allow_unsandboxed: bool = False) -> dict[str, Any]:
    """
    Run one program in its own box.

    Args:
        request (`dict`): as `boxed/supervisor.py` describes it, without the limits.
        limits ([`Limits`]): what it may use.
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
    # the run itself, its start and its end
    return pool.call({**request, **limits.as_request(), "starts": starts}, limits.wall_seconds + starts + 30)


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
        return WorkerPool("unit_tests, without a sandbox", _plain_command(), parallel_checks())


def _sandbox() -> WorkerPool:
    if shutil.which("bwrap") is None:
        raise SVFError(
            "model-written code needs bubblewrap: install the package bubblewrap (Debian, Ubuntu, Fedora, Arch), "
            "or set allow_unsandboxed: true to run it on this machine without a sandbox"
        )
    failure = ""
    for privileged in ([True] if os.getuid() == 0 else []) + [False]:
        pool = WorkerPool("the sandbox", partial(_boxed_command, privileged), parallel_checks())
        try:
            reply = pool.call(_PROBE | Limits().as_request(), 60)
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
    "entry_point": "", "share": False, "main": False, "tests": ["assert works(1) == 2"],
}  # fmt: skip


def _plain_command() -> list[str]:
    settings = {"boxed": False, "uid": 0, "packages": _packages()}
    return [sys.executable, "-I", "-S", str(BOXED / "supervisor.py"), json.dumps(settings)]


def _boxed_command(privileged: bool) -> list[str]:
    """
    bubblewrap with the supervisor in it, on a file system that is completely read-only.

    Programs of root run as a separate user, since the kernel does not count the processes of root. Where bubblewrap
    does not run as root, a user namespace does the same.
    """
    interpreter, prefix = _interpreter()
    packages = ["/packages"] if _packages() else []
    command = ["bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--hostname", "sandbox"]
    command += [] if privileged else ["--unshare-user"]
    command += [*_system(), *prefix, "--ro-bind", str(BOXED), "/boxed"]
    # explicit, or bubblewrap creates these mount points with access only for root
    command += ["--dir", "/tmp", "--dir", "/dev", "--proc", "/proc"]
    for inside, outside in zip(packages, _packages(), strict=True):
        command += ["--ro-bind", outside, inside]
    for device in ("null", "zero", "urandom"):
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    command += ["--remount-ro", "/", "--clearenv", "--chdir", "/"]
    command += ["--setenv", "LD_LIBRARY_PATH", "/python/lib"] if prefix else []
    settings = {
        "boxed": True,
        "uid": random.SystemRandom().randrange(1 << 24, 1 << 30) if privileged else 0,
        "packages": packages,
        "tmp_bytes": Limits().file_mb * _MB,
    }
    return [*command, interpreter, "-I", "-S", "/boxed/supervisor.py", json.dumps(settings)]


def _system() -> list[str]:
    """Mounts of the read-only system."""
    mounts = ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        path = Path(name)
        if path.is_symlink():
            mounts += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            mounts += ["--ro-bind", name, name]
    if Path("/etc/ld.so.cache").exists():
        mounts += ["--dir", "/etc", "--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    return mounts


def _interpreter() -> tuple[str, list[str]]:
    """The base interpreter of this environment by its path inside the boxes, and the mounts it needs: `/python` for one
    outside of `/usr`, for example in a home directory."""
    executable = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    prefix = Path(sys.base_prefix).resolve()
    if prefix.is_relative_to("/usr"):
        return str(executable), []
    return str("/python" / executable.relative_to(prefix)), ["--ro-bind", str(prefix), "/python"]


def _packages() -> list[str]:
    """The installed packages, which programs may import."""
    folder = sysconfig.get_paths()["purelib"]
    return [folder] if Path(folder).is_dir() else []
