"""What the script that starts a run shares with its trainer: signals, seconds by phase, what it resumes from."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from svf_rl.errors import Stopped
from svf_rl.runs.summary import RunSummary
from svf_rl.training.checkpoints import Checkpoint

# A launcher that gets a signal together with its processes passes it on to them: one request, not two.
_SAME_REQUEST_SECONDS = 3.0

_PR_SET_PDEATHSIG = 1


_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1", signal.SIGINT: "Ctrl-C"}


class StopRequest:
    """
    Whether SIGTERM, SIGUSR1 or Ctrl-C has asked this process to stop.

    Between steps the trainer looks at `requested`. Where there is no step to wait for (loading, the evaluations
    before and after training) a signal raises [`Stopped`] at once. A second signal ends the process on the spot.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        """Name of the signal that came, if one did."""
        self._waits = self._over = False
        self._came = 0.0
        self._parent = os.getppid()

    @contextmanager
    def notes(self) -> Iterator[None]:
        """Within it a signal is only noted, and the one who entered looks at `requested`."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    @contextmanager
    def waits_for_step(self) -> Iterator[None]:
        """[`notes`] what comes between the steps; a signal after the last one raises [`Stopped`]."""
        with self.notes():
            yield
        if self.requested is not None:  # after the last step
            raise self._outside()

    def pass_on(self, name: str) -> None:
        """Ask as the signal `name`, which came to another request, would have."""
        if self.requested is None:
            self.requested = name
            if not self._waits:
                raise self._outside()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it the signals come here. Only a process's main thread can receive any; elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in _NAMES}
        _end_with_launcher()
        try:
            yield
        finally:
            if self.requested is None:
                for number, handler in before.items():
                    signal.signal(number, handler)
            self._over = True  # what comes while the interpreter shuts down must not change the exit status

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self._over:
            os._exit(Stopped.status)
        if self.requested is not None:
            if not self._is_same_request(number):
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.requested, self._came = _NAMES[signal.Signals(number)], time.monotonic()
        if not self._waits:
            raise self._outside()
        if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
            # a handler may come in the middle of a print
            os.write(2, b"\nends with a checkpoint after the step under way; Ctrl-C once more ends at once\n")

    def _is_same_request(self, number: int) -> bool:
        if number == signal.SIGTERM and self._parent not in (1, os.getppid()):
            self._parent = os.getppid()  # Ctrl-C has ended the launcher too, however long that took it
            return True
        if number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            return False  # no launcher passes it on: who presses it a second time means it
        return time.monotonic() - self._came <= _SAME_REQUEST_SECONDS

    def _outside(self) -> Stopped:
        return stopped(
            f"stopped by {self.requested} outside the steps: --resume resumes from the last checkpoint, or starts "
            "over where there is none"
        )


def stopped(message: str) -> Stopped:
    """The exception, which says `message` in the first process and nothing in the others."""
    return Stopped(message if os.environ.get("RANK", "0") == "0" else "")


def leave_process_group() -> None:
    """For several processes that have come to the same end: the interpreter's end, left to do it, now and then aborts
    one whose communication threads still run, and a run that has ended well would count as failed."""
    from torch import distributed

    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.destroy_process_group()
        # DDP keeps a group alive, whose threads give the last tensors back in their own time and under the GIL: one
        # that asks for it when the interpreter has begun to end brings the process down.
        deadline = time.monotonic() + 5
        time.sleep(0.01)
        while _gloo_at_work() and time.monotonic() < deadline:
            time.sleep(0.01)


def _gloo_at_work() -> bool:
    """Whether a thread of gloo runs, or would if there were a core for it (Linux). Not to be asked without having
    released the GIL just before, for which one may wait asleep."""
    for status in Path("/proc/self/task").glob("*/stat"):
        with suppress(OSError):  # it has just ended
            name, _, rest = status.read_text().partition("(")[2].rpartition(")")
            if name == "pt_gloo_runloop" and rest.split()[0] == "R":
                return True
    return False


def _end_with_launcher() -> None:
    """`accelerate launch` passes no signal on to a single process, which would train on without it: have the kernel
    send SIGTERM when it dies (Linux)."""
    if "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ:
        with suppress(OSError, AttributeError):  # no Linux
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Phases:
    """Seconds by phase of a run, those spent before it was interrupted included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: tuple[str, float] | None = None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._running = name, time.perf_counter()
        yield
        self.seconds, self._running = self.so_far(), None

    def add(self, seconds: dict[str, float]) -> None:
        for name, value in seconds.items():
            self.seconds[name] = round(self.seconds.get(name, 0.0) + value, 2)

    def so_far(self) -> dict[str, float]:
        """With what the phase under way has taken until now."""
        if self._running is None:
            return dict(self.seconds)
        name, start = self._running
        return self.seconds | {name: round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 2)}


@dataclass
class RunContext:
    """
    A run, as its trainer sees it.

    Args:
        summary ([`RunSummary`], *optional*): What the model card is written from; default: the trainer's settings.
        settings (`dict`, *optional*): What a run that resumes must share with its checkpoint; default: the trainer's
            settings.
        rows (`dict[str, str]`, *optional*): Digest of the rows by split ([`rows_digest`]); default: of those of
            training and validation.
        stop ([`StopRequest`], *optional*): Asks the run to stop between two steps.
        checkpoint ([`Checkpoint`], *optional*): What the run resumes from; its files have been checked.
        phases ([`Phases`], *optional*): Seconds by phase, kept in checkpoints.
        base (`dict`, *optional*): The evaluation before training, kept in checkpoints.
        warm_up (`dict`, *optional*): What the summary says of the warm-up, kept in checkpoints.
    """

    summary: RunSummary = field(default_factory=RunSummary)
    settings: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    stop: StopRequest = field(default_factory=StopRequest)
    checkpoint: Checkpoint | None = None
    phases: Phases = field(default_factory=Phases)
    base: dict[str, float] | None = None
    warm_up: dict[str, Any] = field(default_factory=dict)
