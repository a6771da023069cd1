"""Warnings of a run that learns nothing more, said once, while there is time to stop it."""

import logging
from typing import Any

from transformers import TrainerCallback

logger = logging.getLogger(__name__)

PATIENCE = 5
"""Updates in a row."""
COLLAPSE = 0.1
"""The share of the first update's entropy below which little is left to choose from."""


class HealthWarnings(TrainerCallback):
    """Watches what is logged: whether any prompt of `PATIENCE` updates had completions with different rewards, and
    whether the entropy has fallen below `COLLAPSE` of what it was at first with a mean reward below one half."""

    def __init__(self) -> None:
        self._unmixed = 0
        self._first_entropy: float | None = None
        self._said: set[str] = set()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if not state.is_world_process_zero or "loss" not in logs:
            return
        self._unmixed = self._unmixed + 1 if logs.get("frac_reward_zero_std") == 1 and args.num_generations > 1 else 0
        if self._unmixed == PATIENCE:
            self._warn(
                "unmixed",
                f"in {PATIENCE} updates the completions of each prompt had all the same reward (the mean is "
                f"{logs.get('reward', 0):.3g}), of which nothing is learnt: give easier or harder prompts, worked "
                "examples (shots), or more num_generations",
            )
        entropy = logs.get("entropy")
        if entropy is None:
            return
        self._first_entropy = entropy if self._first_entropy is None else self._first_entropy
        if entropy < COLLAPSE * self._first_entropy and logs.get("reward", 1) < 0.5:
            self._warn(
                "collapsed",
                f"the entropy fell from {self._first_entropy:.3g} to {entropy:.3g} while the reward is "
                f"{logs['reward']:.3g}: lower learning_rate, or set beta or entropy_coef",
            )

    def _warn(self, what: str, message: str) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning(message)
