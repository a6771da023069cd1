"""Warnings of a run that learns nothing more, said once, while there is time to stop it."""

import logging
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from svf_rl.losses.objective import BASELINES

logger = logging.getLogger(__name__)

PATIENCE = 5
"""Updates in a row."""
COLLAPSE = 0.1
"""The share of the first update's entropy below which little is left to choose from."""


class HealthWarnings(TrainerCallback, ExportableState):
    """Watches what is logged: whether any prompt of `PATIENCE` updates had completions with different rewards, and
    whether the entropy has fallen below `COLLAPSE` of what it was at first with a mean reward below one half. Its state
    is saved with checkpoints."""

    def __init__(self) -> None:
        self._mixed: int | None = None  # the last update of which any had
        self._first_entropy: float | None = None
        self._said: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._mixed = state.global_step if self._mixed is None else min(self._mixed, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if not state.is_world_process_zero or "loss" not in logs:
            return
        # some baselines compare the completions of all prompts, and so it is with one of each; what could not be scored
        # is logged as `None`
        whole_batch, reward = BASELINES[args.advantage].whole_batch or args.num_generations == 1, logs.get("reward")
        mixed = logs.get("reward_std", 1) not in (0, None) if whole_batch else logs.get("frac_reward_zero_std") != 1
        if self._mixed is None or mixed:
            self._mixed = state.global_step
        updates = state.global_step - self._mixed
        if updates >= PATIENCE:
            advice = "give easier or harder prompts, worked examples (shots), or more num_generations"
            self._warn(
                "unmixed",
                f"in {updates} updates the completions of {'all prompts' if whole_batch else 'each prompt'} had all "
                f"the same reward ({'none at all' if reward is None else f'the mean is {reward:.3g}'}), which makes "
                f"none better than another: {'see why nothing was scored' if reward is None else advice}",
            )
        entropy = logs.get("entropy")
        if entropy is None:
            return
        self._first_entropy = entropy if self._first_entropy is None else self._first_entropy
        if entropy < COLLAPSE * self._first_entropy and reward is not None and reward < 0.5:
            self._warn(
                "collapsed",
                f"the entropy fell from {self._first_entropy:.3g} to {entropy:.3g} while the reward is "
                f"{reward:.3g}: lower learning_rate, or set beta or entropy_coef",
            )

    def _warn(self, what: str, message: str) -> None:
        if what not in self._said:
            self._said.append(what)
            logger.warning(message)

    def state(self) -> dict[str, Any]:
        """What checkpoints keep."""
        names = ("_mixed", "_first_entropy", "_said")
        return {"args": {}, "attributes": {name: getattr(self, name) for name in names}}
