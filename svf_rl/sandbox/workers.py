"""A bounded pool of worker processes for checks that may hang, crash or use too much memory.

A worker is a command that writes one JSON line when it is ready, then reads one JSON line per request from its standard
input and writes one per reply to its standard output. It enforces the time-outs of requests on its own child processes;
the pool only replaces a worker that stops answering.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from svf_rl.errors import InfrastructureError

START_SECONDS = 120.0


def parallel_checks() -> int:
    """How many checks a process runs at once: its share of the machine's cores."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(1, len(os.sched_getaffinity(0)) // max(1, processes))


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
        self._idle: list[_Worker] = []
        self._forget()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def call(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """
        The reply to `request`, from a worker that has `timeout` seconds (the worker's own limit should be well below).

        Raises:
            InfrastructureError: two workers, one after the other, died or did not answer.
        """
        with self._free:
            for attempt in (1, 2):
                worker = None
                try:
                    # the second is a new one: the cause of the first one's death may have killed all idle ones
                    worker = self._take() if attempt == 1 else self._start()
                    reply = worker.call(request, timeout)
                except BaseException as error:  # an interrupt would leave a reply without a reader
                    if worker is not None:
                        worker.kill()
                    if attempt == 2 or not isinstance(error, InfrastructureError):
                        raise
                else:
                    with self._lock:
                        self._idle.append(worker)
                    return reply
        raise AssertionError("unreachable")

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
        try:
            return _Worker(self.name, self._command() if callable(self._command) else self._command)
        except OSError as error:  # no descriptor, process or memory left
            raise InfrastructureError(f"a worker of {self.name} could not be started: {error}") from error

    def _forget(self) -> None:
        """A forked child has none of its parent's workers."""
        self._lock, self._free = threading.Lock(), threading.BoundedSemaphore(self._size)
        self._idle = []


class _Worker:
    def __init__(self, name: str, command: Sequence[str]):
        self._name, self._rest = name, b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the worker)
        # in its own session: Ctrl-C reaches only the run, and `kill` reaches the worker's children
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True
        )
        try:
            os.set_blocking(self._process.stdin.fileno(), False)  # type: ignore[union-attr]
            self._read_line(time.monotonic() + START_SECONDS, START_SECONDS)
        except BaseException:  # after any error, since nothing else refers to this process yet
            self.kill()
            raise

    def call(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        deadline = time.monotonic() + timeout
        descriptor, rest = self._process.stdin.fileno(), memoryview(json.dumps(request).encode() + b"\n")
        try:
            while rest:
                self._wait_for(descriptor, select.POLLOUT, deadline, timeout)
                rest = rest[os.write(descriptor, rest) :]
        except BrokenPipeError:
            raise self._failure("died") from None
        reply: dict[str, Any] = json.loads(self._read_line(deadline, timeout))
        return reply

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            file.close()  # type: ignore[union-attr]

    def _wait_for(self, descriptor: int, event: int, deadline: float, timeout: float) -> None:
        poll = select.poll()  # `select` does not support descriptors above 1023
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise self._failure(f"did not answer within {timeout:g} s")

    def _read_line(self, deadline: float, timeout: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            self._wait_for(descriptor, select.POLLIN, deadline, timeout)
            parts.append(os.read(descriptor, 1 << 16))
            if not parts[-1]:
                raise self._failure("died")
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line

    def _failure(self, what: str) -> InfrastructureError:
        self._errors.seek(0)
        text = " ".join(self._errors.read()[-500:].decode(errors="replace").split())
        return InfrastructureError(f"a worker of {self._name} {what}{f': {text}' if text else ''}")
