"""What a trainer knows in the middle of a run that neither transformers nor TRL saves: plain values, saved and put
back."""

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.trainer_callback import ExportableState

if TYPE_CHECKING:
    from svf_rl.training.trainer import SVFReinforceTrainer

FILE = "progress_{}.pt"
"""Of a process, in the checkpoints of every version."""


def save_trainer_state(trainer: "SVFReinforceTrainer", folder: Path) -> None:
    """Write this process's file into the checkpoint in `folder`, between two steps."""
    between_generations = trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations) == 0
    stops = trainer.control.should_training_stop and trainer.state.global_step < trainer.state.max_steps
    values = {
        "micro_step": trainer._step,
        # Completions that later steps are made of too; where the next one generates new ones there are none to keep.
        "buffered": None if between_generations else trainer._buffered_inputs,
        "metrics": {name: list(values) for name, values in trainer._metrics["train"].items()},
        "step_time": trainer._current_train_step_time,
        "loss": trainer._tr_loss,
        "total_loss": trainer._total_loss_scalar,
        "last_logged": trainer._globalstep_last_logged,
        # Tables of completions are written by the main process, from what all have gathered there.
        "logs": dict(trainer._logs) if trainer.is_world_process_zero() else {},
        "callbacks": [
            (type(callback).__name__, callback.state().get("attributes", {})) for callback in _stateful(trainer)
        ],
        # by the patience of then: another one may see it otherwise
        "ended_early": trainer.args.early_stopping_patience if stops else None,
        "synced": trainer.synced,
        "seconds": trainer.recorder.seconds,
        "run_state": {
            "base": trainer.context.base,
            "seconds": trainer.context.phases.so_far(),
            "warm_up": trainer.context.warm_up,
        },
        "tensorboard": trainer.recorder.tensorboard_folder(),
    }
    torch.save(_plain(values), folder / FILE.format(trainer.args.process_index))


def load_trainer_state(trainer: "SVFReinforceTrainer", folder: Path) -> dict[str, Any]:
    """What [`save_trainer_state`] wrote for this process; where there are more processes than then, for the first."""
    own = folder / FILE.format(trainer.args.process_index)
    path = own if own.is_file() else folder / FILE.format(0)
    device = trainer.accelerator.device
    # of several processes on the CPU it is `cpu:0`, which no stored tensor can be mapped to
    return torch.load(path, map_location="cpu" if device.type == "cpu" else device, weights_only=True)


def restore_trainer_state(trainer: "SVFReinforceTrainer", values: dict[str, Any], same_batches: bool) -> None:
    """
    Put the values back into a trainer whose training is about to resume.

    Args:
        trainer ([`SVFReinforceTrainer`]): after transformers has reset its counters.
        values (`dict`): from [`load_trainer_state`].
        same_batches (`bool`): whether a step has as many micro-batches as before.
    """
    trainer._step = values["micro_step"]
    if not same_batches:
        trainer._step = trainer.state.global_step * trainer.args.gradient_accumulation_steps
    trainer._buffered_inputs = values["buffered"]
    trainer._metrics["train"].clear()
    trainer._metrics["train"].update(values["metrics"])
    trainer._current_train_step_time = values["step_time"]
    trainer._tr_loss = values["loss"].to(trainer.args.device)
    trainer._total_loss_scalar = values["total_loss"]
    trainer._globalstep_last_logged = values["last_logged"]
    for name, content in values["logs"].items():
        for key, items in content.items() if isinstance(content, dict) else [(None, content)]:
            queue = trainer._logs[name] if key is None else trainer._logs[name][key]
            queue.clear()
            queue.extend(items)
    saved: dict[str, list[dict[str, Any]]] = {}
    for name, attributes in values["callbacks"]:
        saved.setdefault(name, []).append(attributes)
    for callback in _stateful(trainer):
        own = saved.get(type(callback).__name__)
        for attribute, value in (own.pop(0) if own else {}).items():
            setattr(callback, attribute, value)
    trainer.recorder.seconds = values["seconds"]
    trainer.restore_sync(values["synced"])


def _stateful(trainer: "SVFReinforceTrainer") -> list[Any]:
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, ExportableState)]


def _plain(value: Any) -> Any:
    """`value` of types that `torch.load` reads without running code; anything else, which a reward may have logged, as
    text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | deque):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, torch.Tensor | bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # a subclass, such as an enumeration's, could not be read back
    return str(value)
