"""Weight decay towards the base model."""

from typing import Any

import torch
from torch import nn

from svf_rl.svf import svf_layers


def decay_towards_identity(optimizer: torch.optim.Optimizer, model: nn.Module, weight_decay: float) -> None:
    """
    Make `optimizer` decay `z − 1` (for the sigmoid: the distance from where the multiplier is 1) instead of `z`.

    Decaying `z` itself would scale every singular value towards 0 and destroy the model. The decay is decoupled, as in
    AdamW: after each step, `z ← z − lr · weight_decay · (z − 1)`.
    """
    if any("towards_identity" in group for group in optimizer.param_groups):
        return  # it does already: `train` was called a second time
    identity: dict[nn.Parameter, float] = {
        vector.weight: layer.svf_mask[name].identity
        for layer in svf_layers(model).values()
        for name, vector in layer.svf_z.items()
    }
    for group in list(optimizer.param_groups):
        ours = [p for p in group["params"] if p in identity]
        if ours:
            group["params"] = [p for p in group["params"] if p not in identity]
            optimizer.add_param_group({**group, "params": ours, "weight_decay": 0.0, "towards_identity": weight_decay})

    @torch.no_grad()
    def decay(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"] if "towards_identity" in group else ():
                p.lerp_(torch.full_like(p, identity[p]), group["lr"] * group["towards_identity"])

    optimizer.register_step_post_hook(decay)
