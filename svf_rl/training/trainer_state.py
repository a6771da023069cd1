"""What a trainer knows in the middle of a run that neither transformers nor TRL saves: plain values, saved and put
back."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_callback import ExportableState
from trl import GRPOTrainer

_FILE = "progress"  # the name in the checkpoints of every version


def save_trainer_state(trainer: GRPOTrainer, folder: Path, shared: dict[str, Any]) -> None:
    """
    Write this process's file into a checkpoint.

    Args:
        trainer (`GRPOTrainer`): between two steps.
        folder (`Path`): of the checkpoint.
        shared (`dict`): plain values of the run besides.
    """
    main = trainer.is_world_process_zero()
    values = {
        "micro_step": trainer._step,
        # Completions that later steps are made of too; where the next one generates new ones there are none to keep.
        "buffered": None if between_generations(trainer) else trainer._buffered_inputs,
        "metrics": {name: list(values) for name, values in trainer._metrics["train"].items()},
        "step_time": trainer._current_train_step_time,
        "loss": trainer._tr_loss,
        "total_loss": trainer._total_loss_scalar,
        "last_logged": trainer._globalstep_last_logged,
        # Tables of completions are written by the main process, from what all have gather_parameters there.
        "logs": dict(trainer._logs) if main else {},
        "callbacks": [
            (type(callback).__name__, callback.state().get("attributes", {})) for callback in _stateful(trainer)
        ],
        **shared,
    }
    torch.save(_plain(values), folder / _file_name(trainer.args.process_index))


def load_trainer_state(trainer: GRPOTrainer, folder: Path) -> dict[str, Any]:
    """What [`save_trainer_state`] wrote for this process; where there are more processes than then, for the first."""
    own = folder / _file_name(trainer.args.process_index)
    path = own if own.is_file() else folder / _file_name(0)
    device = trainer.accelerator.device
    # of several processes on the CPU it is `cpu:0`, which no stored tensor can be mapped to
    return torch.load(path, map_location="cpu" if device.type == "cpu" else device, weights_only=True)


def restore_trainer_state(trainer: GRPOTrainer, values: dict[str, Any], same_batches: bool) -> None:
    """
    Put the values back into a trainer whose training is about to resume.

    Args:
        trainer (`GRPOTrainer`): after transformers has reset its counters.
        values (`dict`): from [`load_trainer_state`].
        same_batches (`bool`): whether a step has as many micro-batches as before.
    """
    trainer._step = values["micro_step"]
    if not same_batches:
        trainer._step = trainer.state.global_step * trainer.args.gradient_accumulation_steps
    trainer._buffered_inputs = values["buffered"]
    trainer._metrics["train"].clear()
    for name, numbers in values["metrics"].items():
        trainer._metrics["train"][name] = numbers
    trainer._current_train_step_time = values["step_time"]
    trainer._tr_loss = values["loss"].to(trainer.args.device)
    trainer._total_loss_scalar = values["total_loss"]
    trainer._globalstep_last_logged = values["last_logged"]
    for name, content in values["logs"].items():
        for key, items in content.items() if isinstance(content, dict) else [(None, content)]:
            queue = trainer._logs[name] if key is None else trainer._logs[name][key]
            queue.clear()
            queue.extend(items)
    for callback, (name, attributes) in zip(_stateful(trainer), values["callbacks"], strict=False):
        if type(callback).__name__ == name:
            for attribute, value in attributes.items():
                setattr(callback, attribute, value)


def between_generations(trainer: GRPOTrainer) -> bool:
    """Whether the next micro-batch is the first of newly generated ones."""
    return trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations) == 0


def _stateful(trainer: GRPOTrainer) -> list[Any]:
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, ExportableState)]


def _file_name(process: int) -> str:
    return f"{_FILE}_{process}.pt"


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
