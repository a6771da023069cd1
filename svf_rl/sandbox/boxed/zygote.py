"""A warm interpreter that turns each of its forks into a box. It starts before the first job, so it has never seen a
test.

With one bubblewrap and one new interpreter for each program, checking took almost twice the CPU time.
"""

import atexit
import gc
import importlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

import namespaces
import solution_process
import usage

# The most common imports of programs, loaded once: reading them from disk takes milliseconds each.
_WARM = (
    "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools", "math",
    "operator", "random", "re", "resource", "statistics", "string", "sys", "typing",
)  # fmt: skip
_MOST_DESCRIPTORS = 1024  # of the zygote, which opens a handful
_OURS = [path.stem for path in Path(__file__).parent.glob("*.py")]


def start(settings):
    """Fork the zygote; returns the socket for requesting boxes. The caller must have no threads and no secrets."""
    for name in _WARM:
        importlib.import_module(name)
    mine, theirs = socket.socketpair()
    if not os.fork():
        mine.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the zygote does not wait for its children
        gc.freeze()  # garbage collections in the forks must not touch shared pages
        try:
            _serve(theirs, settings)
        finally:
            os._exit(1)
    theirs.close()
    return mine


def _serve(asked, settings):
    while True:
        _, descriptors, _, _ = socket.recv_fds(asked, 1, 4)
        if not descriptors:
            return
        if not os.fork():
            try:
                _keep_box(settings, *descriptors)
            finally:
                os._exit(1)
        for descriptor in descriptors:
            os.close(descriptor)


def _keep_box(settings, link, stdin, stdout, info):
    """Make a box and wait for its end; `info` gets a line with its process id and one with its exit status, its
    seconds of CPU time, its largest memory in bytes and its seconds of waiting for a processor, or an error."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    processes = os.open("/proc", os.O_RDONLY)  # the box will cover it
    try:
        if settings["boxed"]:
            namespaces.unshare()
        else:
            namespaces.adopt()
            os.chdir(tempfile.mkdtemp(prefix="svf_rl_"))
        pid = os.fork()
    except OSError as error:
        os.write(info, f"{error}\n".encode())
        raise
    if not pid:
        try:
            _live(settings, link, stdin, stdout, info)
        finally:
            os._exit(1)
    for descriptor in (link, stdin, stdout):
        os.close(descriptor)
    os.write(info, b"%d\n" % pid)
    waited_before = usage.read_wait(os.getpid(), processes)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    waited = sum(usage.read_wait(process, processes) for process in (pid, os.getpid())) - waited_before
    _, status, used = os.wait4(pid, 0)
    if not settings["boxed"]:
        namespaces.end_adopted()
        shutil.rmtree(Path.cwd(), ignore_errors=True)
    spent, memory = used.ru_utime + used.ru_stime, used.ru_maxrss << 10
    os.write(info, b"%d %f %d %f\n" % (os.waitstatus_to_exitcode(status), spent, memory, waited))
    os._exit(0)


def _live(settings, link, stdin, stdout, info):
    """The first process of the box, which runs one program."""
    os.setsid()
    try:
        if settings["boxed"]:
            namespaces.settle(settings["tmp_bytes"])
    except OSError as error:
        os.write(info, f"{error}\n".encode())
        raise
    nothing = os.open(os.devnull, os.O_RDWR)
    for number, descriptor in enumerate((stdin, stdout, nothing)):
        os.dup2(descriptor, number)
    os.dup2(link, 3)
    os.closerange(4, _MOST_DESCRIPTORS)
    os.environ.clear()
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in _OURS:
        sys.modules.pop(name, None)
    sys.path[:] = [*(path for path in sys.path if path != settings["here"]), settings["packages"]]
    sys.stdin, sys.stdout, sys.stderr = (open(n, "w" if n else "r", closefd=False) for n in range(3))  # noqa: SIM115
    os._exit(_run_solution(settings["boxed"]))


def _run_solution(boxed):
    """The exit status of an interpreter that ran the solution's process and ended."""
    status = 0
    try:
        solution_process.main(3, boxed)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # a program may end in any way
        status = 1
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:  # and so may its exit handlers
        status = status or 1
    return status & 0xFF
