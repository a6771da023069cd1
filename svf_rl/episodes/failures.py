"""What a user's environments do wrong: each reason is told once, and batches of nothing else end a run."""

import logging

from svf_rl.errors import SVFError

logger = logging.getLogger(__name__)

MOST_FAILED = 3
"""Batches of which all environments fail, one after another, until a run ends."""


class Failures:
    """Of the environments of a run."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._batches, self._last = 0, ""

    def note(self, what: str) -> None:
        """`what`: which environment, and how it failed."""
        self._last = what
        if what not in self._told:
            self._told.add(what)
            logger.warning("%s: such samples cannot be scored, and take no part in the training", what)

    def check_batch(self, all_failed: bool) -> None:
        """Raises `SVFError` where those of all samples, over all processes, have failed in `MOST_FAILED` batches in a
        row: such a run trains on nothing."""
        self._batches = self._batches + 1 if all_failed else 0
        if self._batches >= MOST_FAILED:
            why = f": {self._last}" if self._last else ""
            raise SVFError(f"all environments failed in {MOST_FAILED} batches in a row{why}")
