"""A bounded pool of worker processes for checks that may hang, crash or use too much memory.

A worker is a command that writes one JSON line when it is ready, then reads one JSON line per request from its standard
input and writes one per reply, with the request's `nonce`, to its standard output. It enforces the time-outs of
requests on its own child processes; the pool only replaces a worker that stops answering, or says something else.
"""

import atexit
import contextlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from svf_rl.errors import InfrastructureError, one_line

START_SECONDS = 120.0
READY = b"{}\n"
MOST_BYTES = 1 << 26  # of a reply


def parallel_checks() -> int:
    """How many checks a process runs at once: its share of the machine's cores."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(1, len(os.sched_getaffinity(0)) // max(1, processes))


def check_start(name: str, command: Sequence[str], seconds: float) -> None:
    """Start a worker and end it. Raises `InfrastructureError` where it is not ready within that time."""
    _Worker(name, command, seconds).kill()


def script_command(script: Path) -> list[str]:
    """The command of a worker that is a script of this package. The order of hash tables is fixed: what libraries make
    of sets must not depend on the process."""
    places = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: the script's folder, which may have a math.py, must not hide modules of the standard library
    return ["env", "PYTHONHASHSEED=0", f"PYTHONPATH={os.pathsep.join(places)}", sys.executable, "-P", str(script)]


def _with_default_signals(command: Sequence[str]) -> list[str]:
    """A command for a process that may wait for children of its own: where this process ignores their ends, as it may
    have been told to by whoever started it, a new one would inherit that."""
    if signal.getsignal(signal.SIGCHLD) != signal.SIG_IGN:
        return list(command)
    code = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-I", "-S", "-c", code, *command]


class WorkerPool:
    """
    At most `size` workers, started when they are first needed. `call` may be used from any thread.

    Args:
        name (`str`): name of the workers, for messages.
        command (`Sequence[str]` or `Callable`): the command line of a worker, or a function that gives it.
        size (`int`): workers alive at once; further callers wait for one.
    """

    def __init__(self, name: str, command: Sequence[str] | Callable[[], Sequence[str]], size: int):
        self.name, self._command, self._size = name, command, size
        self._forget()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def _forget(self) -> None:
        """A forked child has none of its parent's workers."""
        self._lock, self._free = threading.Lock(), threading.BoundedSemaphore(self._size)
        self._idle: list[_Worker] = []

    def call(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """
        The reply to `request`, from a worker that has `timeout` seconds (the worker's own limit should be well below).

        Raises:
            InfrastructureError: two workers, one after the other, died or did not answer.
        """
        with self._free:
            try:
                return self._ask(self._take(), request, timeout)
            except InfrastructureError:
                # a new one: the cause of the first one's death may have killed all idle ones
                return self._ask(self._start(), request, timeout)

    def _ask(self, worker: "_Worker", request: dict[str, Any], timeout: float) -> dict[str, Any]:
        nonce = secrets.token_hex(8)
        try:
            line = json.dumps({**request, "nonce": nonce}).encode() + b"\n"
            reply = _read(worker.exchange(line, timeout))
            if reply.pop("nonce", None) != nonce:
                raise InfrastructureError(f"a worker of {self.name} answered something else than it was asked")
        except BaseException:  # an interrupt would leave a reply without a reader
            worker.kill()
            raise
        with self._lock:
            self._idle.append(worker)
        return reply

    def close(self) -> None:
        """End all idle workers."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()

    def _take(self) -> "_Worker":
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.is_alive():
                    return worker
                worker.kill()
        return self._start()

    def _start(self) -> "_Worker":
        return _Worker(self.name, self._command() if callable(self._command) else self._command)


def _read(line: bytes) -> dict[str, Any]:
    """The reply in a line; empty where it is none."""
    try:
        reply = json.loads(line)
    except ValueError:
        return {}
    return reply if isinstance(reply, dict) else {}


class _Worker:
    def __init__(self, name: str, command: Sequence[str], start_seconds: float = START_SECONDS):
        self._name = name
        try:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the worker)
            self._socket, theirs = socket.socketpair()
            with theirs:
                # in its own session: Ctrl-C reaches only the run, and `kill` reaches the worker's children
                self._process = subprocess.Popen(
                    _with_default_signals(command), stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=self._errors,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:  # no descriptor, process or memory left
            raise InfrastructureError(f"a worker of {name} could not be started: {error}") from error
        try:
            if (said := self.exchange(b"", start_seconds)) != READY:
                raise self._failure(f"said {one_line(said.decode(errors='replace'))!r} at its start")
        except BaseException:  # after any error, since nothing else refers to this process yet
            self.kill()
            raise

    def exchange(self, data: bytes, timeout: float) -> bytes:
        """Send `data` and read one line, both within `timeout` seconds."""
        deadline, line = time.monotonic() + timeout, bytearray()
        try:
            if data and select.select([self._socket], [], [], 0)[0] and self._socket.recv(1):
                raise self._failure("said something that it was not asked")
            self._socket.settimeout(timeout)
            self._socket.sendall(data)
            while not line.endswith(b"\n"):
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))  # 0 would not wait at all
                part = self._socket.recv(1 << 16)
                if not part:
                    raise ConnectionError
                line += part
                if len(line) > MOST_BYTES:
                    raise self._failure("does not stop to talk")
            if line.count(b"\n") > 1:
                raise self._failure("said more than it was asked")
        except TimeoutError:
            raise self._failure(f"did not answer within {timeout:g} s") from None
        except ConnectionError:
            raise self._failure("died") from None
        return bytes(line)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._socket.close()
        self._errors.close()

    def _failure(self, what: str) -> InfrastructureError:
        self._errors.seek(0)
        text = self._errors.read()[-500:].decode(errors="replace").strip()
        return InfrastructureError(f"a worker of {self._name} {what}{f': {one_line(text)}' if text else ''}")
