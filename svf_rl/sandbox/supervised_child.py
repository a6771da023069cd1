"""A forked process that makes checks, seen from the worker that supervises it.

What is checked was written by a model, and may be endless or huge, in C code that no signal handler interrupts. So the
supervisor never runs it: it kills a child that is late and forks the next, for which what it has imported is there.
"""

import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

CHECKS_A_CHILD = 1000  # so that what libraries cache stays small
WALL_FACTOR = 10
# The address space of a child: beyond it, an allocation fails, and with it the check of that one answer.
CHILD_BYTES = 2 << 30

PR_SET_PDEATHSIG = 1
# By an administrator, or by a machine out of memory
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LATE, CRASHED, DIED = "late", "crashed", "died"

Answer = Callable[[dict[str, Any]], Iterator[Any]]


def serve_requests(answer: Answer, reply: Callable[[list[Any], str], dict[str, Any]]) -> None:
    """
    The life of a worker (`workers.py`): each line of the standard input is a request with its `nonce` and `timeout`.

    Args:
        answer (`Callable`): run in a child, gives values that JSON holds; it has `timeout` seconds of CPU time for each
            of them, so that a busy machine makes no answer wrong. It may raise nothing.
        reply (`Callable`): from those values, and why there are no more (`""`, `"late"`, `"crashed"`: the child did so
            by itself, `"died"`: two children were killed from outside, or did not get to run), the reply.
    """
    print("{}", flush=True)  # ready
    child = _Child(answer)
    for line in sys.stdin.buffer:
        for _ in range(2):  # again with a new child where one died
            said, why = child.ask(line)
            if why or child.checks >= CHECKS_A_CHILD:
                child.end()
                child = _Child(answer)
            if why != DIED:
                break
        print(json.dumps({**reply(said, why), "nonce": json.loads(line)["nonce"]}), flush=True)
    child.end()


class _Child:
    def __init__(self, answer: Answer) -> None:
        self.checks = 0
        self._link, link = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            self._link.close()
            _live(link, answer)
        link.close()
        self._unread = b""

    def ask(self, line: bytes) -> tuple[list[Any], str]:
        """What the child says to a request, and why it stopped before its end."""
        self.checks += 1
        said: list[Any] = []
        timeout = json.loads(line)["timeout"]
        try:
            self._link.sendall(line)
        except ConnectionError:
            return [], DIED
        while True:
            text = self._receive(timeout)
            if isinstance(text, str):
                return said, text
            if text == b"":
                return said, ""
            said.append(json.loads(text))

    def end(self) -> None:
        """Kill and reap it."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._link.close()

    def _receive(self, timeout: float) -> bytes | str:
        """A line, an empty one at the end of an answer; or why there is none."""
        clock = ~self._pid << 3 | 2  # that of its CPU time, as the C library's `clock_getcpuclockid` forms it
        cpu_end, wall_end = time.clock_gettime(clock) + timeout, self._own_time() + WALL_FACTOR * timeout
        while b"\n" not in self._unread:
            left = cpu_end - time.clock_gettime(clock)
            if left <= 0:
                return LATE
            if self._own_time() > wall_end:
                return DIED
            ready, _, _ = select.select([self._link], [], [], min(max(left, 0.01), timeout))
            if ready:
                part = b""
                with suppress(ConnectionError):  # the same as an end
                    part = self._link.recv(1 << 16)
                if not part:
                    return self._why_ended()
                self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _own_time(self) -> float:
        """Seconds on a clock that stands still while the child waits for a processor, where the kernel tells."""
        try:
            waited = int(Path(f"/proc/{self._pid}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):
            waited = 0.0
        return time.monotonic() - waited

    def _why_ended(self) -> str:
        """`DIED` where it was killed by what it cannot send itself; else what it was given is to blame."""
        ended = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        killed = ended is not None and ended.si_code != os.CLD_EXITED and ended.si_status in _FROM_OUTSIDE
        return DIED if killed else CRASHED


def _live(link: socket.socket, answer: Answer) -> NoReturn:
    """The life of a child."""
    # without this, a child in an endless computation would outlive its supervisor
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # the worker's own: what a library prints, or what an answer brought it to, is no reply
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)
    for limit, value in ((resource.RLIMIT_AS, CHILD_BYTES), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        allowed = resource.getrlimit(limit)[1]
        lower = value if allowed == resource.RLIM_INFINITY else min(value, allowed)
        resource.setrlimit(limit, (lower, lower))
    with link.makefile("rb") as lines:
        for line in lines:
            for value in answer(json.loads(line)):
                link.sendall(json.dumps(value).encode() + b"\n")
            link.sendall(b"\n")
    os._exit(0)
