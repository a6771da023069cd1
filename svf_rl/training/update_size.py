"""How far an update moves the weights, by which learning rates of different methods can be compared."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from svf_rl.svf import svf_layers
from svf_rl.svf.sharding import gather_parameters

if TYPE_CHECKING:
    from svf_rl.training.trainer import SVFReinforceTrainer


class UpdateSize(TrainerCallback):
    """
    Adds `update/relative_change` to the metrics of a step: `‖W'after − W'before‖ / ‖W'after‖` over all adapted matrices
    together (Frobenius norm), from the factors alone: `U` and `V` have orthonormal columns. Adapters that are not SVF
    have no such number.

    With Adam, whose first update moves each value by the learning rate, it is the learning rate for the core
    `diagonal`, about as much for `projected`, less for `top` and `bottom`, and more for `band`; for `block` it is the
    rate times the sum of its `k` singular values over the norm of all.
    """

    def __init__(self, trainer: "SVFReinforceTrainer") -> None:
        self._trainer = trainer
        self._before: Tensor | None = None

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._before = core_entries(self._trainer.accelerator.unwrap_model(self._trainer.model))

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        before, self._before = self._before, None
        if before is None:
            return
        after = core_entries(self._trainer.accelerator.unwrap_model(self._trainer.model))
        assert after is not None
        self._trainer.recorder.add("update/relative_change", ((after - before).norm() / after.norm()).item())


@torch.no_grad()
def core_entries(model: nn.Module) -> Tensor | None:
    """What the active adapters make of the singular values of all SVF layers, one after another, fp32: `s·m`, and the
    entries of `C` of a core that mixes singular directions. `None` where no layer has one."""
    parts = []
    for layer in svf_layers(model).values():
        with gather_parameters(layer.svf_z.parameters()):
            entries = layer.core_entries()
            if entries is not None:
                parts.append(entries.float())
    return torch.cat(parts) if parts else None
