"""What the script that starts a run tells its trainer."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from svf_rl.runs.summary import RunSummary
from svf_rl.training.checkpoints import Checkpoint
from svf_rl.training.signals import StopRequest


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
    """

    summary: RunSummary = field(default_factory=RunSummary)
    settings: dict[str, Any] | None = None
    rows: dict[str, str] | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    checkpoint: Checkpoint | None = None
    phases: Phases = field(default_factory=Phases)
    base: dict[str, float] | None = None

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"base": self.base, "seconds": self.phases.so_far()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the values of a checkpoint."""
        self.base = state["base"]
        self.phases.add(state["seconds"])
