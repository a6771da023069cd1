"""A run that was cut off and goes on is the run that was not cut off, to the bit."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from svf_rl.errors import SVFError
from svf_rl.training.callbacks import TIMING

Make = Callable[..., Any]
Z = Callable[[Any], dict[str, Tensor]]

EVERY_OTHER = {
    "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 0.02,
    "advantage": "leave_one_out", "beta": 0.1, "weight_decay": 0.1, "max_grad_norm": 1.0, "log_completions": True,
    "num_completions_to_print": 1, "lr_scheduler_type": "linear",
}  # fmt: skip
SEVERAL_UPDATES = {"use_vllm": True}  # from one generation: TRL wants an engine that gives log-probabilities


class CutOff(RuntimeError):
    pass


class CutOffAt(TrainerCallback):
    """Ends the process, as it were, in the middle of an update."""

    def __init__(self, step: int):
        self._step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self._step:
            raise CutOff


def lines(folder: Path) -> list[dict[str, Any]]:
    """`metrics.jsonl`, less what measures seconds."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(TIMING)} for line in read]


def tables(folder: Path) -> dict[str, str]:
    return {path.name: pd.read_parquet(path).to_json() for path in sorted((folder / "completions").glob("*.parquet"))}


@pytest.fixture
def rollouts(scripted: Make) -> Callable[[], Any]:
    def log_probabilities(prompt: list[int], tokens: list[int]) -> list[float]:
        return [-1.0 - (token % 7) / 10 for token in tokens]

    return lambda: scripted(logprobs=log_probabilities)


@pytest.fixture
def runs(make_trainer: Make, rollouts: Make, tmp_path: Path) -> Callable[..., tuple[Any, Any]]:
    """`runs(cut=(3,), **settings)`: the trainer of a run that was left alone, and that of one that was cut off in these
    updates and went on each time."""

    def build(cut: tuple[int, ...] = (3,), again: dict[str, Any] | None = None, **settings: Any) -> tuple[Any, Any]:
        def make(name: str, *callbacks: Any, **others: Any) -> Any:
            own = {**EVERY_OTHER, "output_dir": str(tmp_path / name), **settings, **others}
            return make_trainer(rollouts=rollouts(), callbacks=list(callbacks), **own)

        whole = make("whole")
        whole.train()
        for update in cut:
            with pytest.raises(CutOff):
                make("cut", CutOffAt(update), **(again or {})).train("auto")
        broken = make("cut", **(again or {}))
        broken.train("auto")
        return whole, broken

    return build


def assert_same(whole: Any, broken: Any, z_of: Z) -> None:
    expected, found = z_of(whole), z_of(broken)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert any(not torch.equal(z, torch.ones_like(z)) for z in expected.values())
    folders = [Path(trainer.args.output_dir) for trainer in (whole, broken)]
    assert lines(folders[0]) == lines(folders[1])
    assert tables(folders[0]) == tables(folders[1])


@pytest.mark.parametrize(
    ("cut", "settings"),
    [
        ((3,), {}),
        ((2, 4, 4, 6), {}),
        ((5,), {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 4, "steps_per_generation": 2}),
        ((3, 6), {"gradient_accumulation_steps": 1, "steps_per_generation": 4, "save_steps": 1, **SEVERAL_UPDATES}),
        ((4, 6), {"num_iterations": 3, "save_steps": 1, **SEVERAL_UPDATES}),
        ((4, 5), {"num_iterations": 2, "logging_steps": 4, "save_steps": 3, "logging_first_step": True, **SEVERAL_UPDATES}),
        ((3, 12), {"max_steps": -1, "num_train_epochs": 3}),  # four updates each, in an order of its own
        ((6, 8), {"max_steps": 9, "save_steps": 4, "logging_strategy": "epoch"}),
        ((6,), {"save_strategy": "epoch", "num_train_epochs": 2, "max_steps": -1}),
    ],
    ids=["plain", "often", "accumulation", "several-updates", "iterations", "logs-between", "epochs", "epoch-logs", "epoch-saves"],
)  # fmt: skip
def test_the_same_run_to_the_bit(runs: Make, z_of: Z, cut: tuple[int, ...], settings: dict[str, Any]) -> None:
    assert_same(*runs(cut, **settings), z_of)
