"""Every core of SVF, DoRA and full fine-tuning through the same trainer: updates, the reference, and resuming."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import read_metrics
from peft import LNTuningConfig, LoraConfig, PeftConfig
from torch import Tensor
from transformers import TrainerCallback

from svf_rl.svf import SVFConfig

Make = Callable[..., Any]


def svf(**values: Any) -> Callable[[], PeftConfig]:
    return lambda: SVFConfig(task_type="CAUSAL_LM", **values)


MLP = ["gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, Callable[[], PeftConfig]] = {
    **{core: svf(core=core) for core in ("top:3", "bottom:3", "projected:13", "band:1", "block:4", "block:4:random")},
    "biases": svf(biases=True),
    "dora": lambda: LoraConfig(r=1, target_modules=MLP, use_dora=True, task_type="CAUSAL_LM"),
    "full": lambda: LNTuningConfig(target_modules=MLP, task_type="CAUSAL_LM"),
}
each = pytest.mark.parametrize("config", ADAPTERS.values(), ids=ADAPTERS)
SETTINGS = {
    "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 0.01,
    "advantage": "leave_one_out", "beta": 0.1, "weight_decay": 0.1,
}  # fmt: skip


class StopAfter(TrainerCallback):
    def __init__(self, step: int):
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == self._step


def values(trainer: Any, trained: bool = True) -> dict[str, Tensor]:
    parameters = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    return {name: p.detach().clone() for name, p in parameters if p.requires_grad is trained}


@each
def test_training_moves_what_is_trained_and_nothing_else(make_trainer: Make, scripted: Make, config: Make) -> None:
    trainer = make_trainer(peft_config=config(), generator=scripted(), **SETTINGS)
    before, frozen = values(trainer), values(trainer, trained=False)
    trainer.train()
    after = values(trainer)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(value, frozen[name]) for name, value in values(trainer, trained=False).items())
    kl = [line["kl"] for line in read_metrics(Path(trainer.args.output_dir)) if "kl" in line]
    assert kl[-1] > 0
    if isinstance(trainer.model.peft_config["default"], LoraConfig):  # which computes W + BA in another order
        assert kl[0] < 1e-6
    else:
        assert kl[0] == 0


@each
def test_a_run_that_goes_on_is_the_run_that_was_left_alone(
    make_trainer: Make, scripted: Make, tmp_path: Path, config: Make
) -> None:
    whole = make_trainer(peft_config=config(), generator=scripted(), **SETTINGS)
    whole.train()
    folder = str(tmp_path / "cut")
    first = make_trainer(peft_config=config(), generator=scripted(), output_dir=folder, **SETTINGS)
    first.add_callback(StopAfter(2))
    first.train()
    again = make_trainer(peft_config=config(), generator=scripted(), output_dir=folder, **SETTINGS)
    again.train("auto")
    expected, found = values(whole), values(again)
    assert again.state.global_step == 4
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_projected_13_trains_13_values(make_trainer: Make, scripted: Make) -> None:
    trainer = make_trainer(peft_config=ADAPTERS["projected:13"](), generator=scripted(), **SETTINGS)
    trainer.train()
    assert sum(value.numel() for value in values(trainer).values()) == 13
