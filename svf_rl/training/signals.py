"""SIGTERM and SIGUSR1: a training run ends soon, in a state that it can resume from."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from svf_rl.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

# A launcher that gets a signal together with its processes passes it on to them: one request, not two.
_SAME_REQUEST_SECONDS = 3.0

_PR_SET_PDEATHSIG = 1


class StopRequest:
    """
    Whether a signal has asked this process to stop.

    Between steps the trainer looks at `requested`. Where there is no step to wait for (loading, the evaluations
    before and after training) a signal raises [`Stopped`] at once. A second signal ends the process on the spot.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        """Name of the signal that came, if one did."""
        self._waits = self._over = False
        self._came = 0.0

    @contextmanager
    def waits_for_step(self) -> Iterator[None]:
        """Within it a signal is only noted, and the one who entered looks at `requested`."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        if self.requested is not None:  # after the last step
            raise self._outside()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it the signals come here. Only a process's main thread can receive any; elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
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
            if time.monotonic() - self._came > _SAME_REQUEST_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.requested, self._came = signal.Signals(number).name, time.monotonic()
        if not self._waits:
            raise self._outside()

    def _outside(self) -> Stopped:
        return stopped(
            f"stopped by {self.requested} outside the steps: --resume resumes from the last checkpoint, or starts "
            "over where there is none"
        )


def stopped(message: str) -> Stopped:
    """The exception, which says `message` in the first process and nothing in the others."""
    return Stopped(message if os.environ.get("RANK", "0") == "0" else "")


def _end_with_launcher() -> None:
    """`accelerate launch` passes no signal on to a single process, which would train on without it: have the kernel
    send SIGTERM when it dies (Linux)."""
    if "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ:
        with suppress(OSError, AttributeError):  # no Linux
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
