"""A curriculum: training rows of several levels, of which the next is taken when the accuracy on one is high enough."""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from svf_rl.errors import SVFError, short_repr
from svf_rl.tasks.reasoning_gym import LEVEL


class Curriculum(TrainerCallback, ExportableState):
    """
    Which rows a run trains on. Its state is saved with checkpoints.

    Args:
        rows (`Dataset`): Training rows, with a column `curriculum_level`, from 0 on.
        accuracy (`float`): A level is left when this share of the completions was right.
        updates (`int`): It is the mean over so many batches of rollouts, which are updates where each has one.
        threshold (`float`): The first reward from which on a completion is right.

    Raises:
        SVFError: a level that is no number.
    """

    def __init__(self, rows: Dataset, accuracy: float, updates: int, threshold: float):
        self._rows, self._accuracy, self._updates, self._threshold = rows, accuracy, updates, threshold
        self._of_level: dict[float, list[int]] = {}
        for index, level in enumerate(rows[LEVEL]):
            if not isinstance(level, int | float):
                raise SVFError(f"training row {index}: {LEVEL} must be a number, not {short_repr(level)}")
            self._of_level.setdefault(level, []).append(index)
        self._levels = sorted(self._of_level)
        self._level = 0
        self._recent: list[float] = []

    @property
    def level(self) -> float:
        return self._levels[self._level]

    def at_level(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows that are of the level, each other one replaced by one of it: by the same for the same prompt (or the
        same row, where an environment makes the prompt), on whichever process."""
        own = self._of_level[self.level]
        return [
            row if row[LEVEL] == self.level else self._rows[own[crc32(repr(_asked(row)).encode()) % len(own)]]
            for row in rows
        ]

    def take(self, rewards: Tensor) -> None:
        """Note the first rewards (N,) of a batch of completions, NaN where one could not be scored."""
        known = rewards[~rewards.isnan()]
        self._recent = [*self._recent, (known >= self._threshold).float().mean().item() if len(known) else 0.0]
        enough = len(self._recent) >= self._updates
        if enough and sum(self._recent[-self._updates :]) / self._updates >= self._accuracy:
            if self._level + 1 < len(self._levels):
                self._level += 1
            self._recent = []

    def state(self) -> dict[str, Any]:
        """What checkpoints keep."""
        return {"args": {}, "attributes": {"_level": self._level, "_recent": self._recent}}


def _asked(row: dict[str, Any]) -> Any:
    return row["prompt"] if "prompt" in row else sorted(row.items())
