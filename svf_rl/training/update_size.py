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
    together (Frobenius norm), which is `‖s·(m after − m before)‖ / ‖s·m after‖`, since `U` and `V` have orthonormal
    columns. Cores that mix directions have no such number.

    With Adam, whose first update moves each value by the learning rate, it is the learning rate for the core
    `diagonal`, and less for a core of fewer values.
    """

    def __init__(self, trainer: "SVFReinforceTrainer") -> None:
        self._trainer = trainer
        self._before: Tensor | None = None

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._before = scaled_singular_values(self._trainer.accelerator.unwrap_model(self._trainer.model))

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        before, self._before = self._before, None
        if before is None:
            return
        after = scaled_singular_values(self._trainer.accelerator.unwrap_model(self._trainer.model))
        assert after is not None
        self._trainer.recorder.add("update/relative_change", ((after - before).norm() / after.norm()).item())


@torch.no_grad()
def scaled_singular_values(model: nn.Module) -> Tensor | None:
    """`s·m` of the active adapters of all SVF layers, one after another, fp32; `None` where there is no such layer, or
    a core mixes singular directions."""
    parts = []
    for layer in svf_layers(model).values():
        names = [name for name in layer.active_adapters if name in layer.svf_z]
        if any(layer.svf_mask[name].mixes for name in names):
            return None
        with gather_parameters(layer.svf_z.parameters()):
            m = layer.active_multiplier()
            if m is not None:
                parts.append((layer.svf_factors.s * m).float().clone())
    return torch.cat(parts) if parts else None
