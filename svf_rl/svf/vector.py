"""What an adapter stores for one matrix: a trained `z`, or the trained weights of a combination of experts."""

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from svf_rl.svf.combine import combine, normalize


class _InFloat32(nn.Module):
    """It stays fp32 when the model is cast: bf16 around 1 has steps of 2⁻⁷, more than `z` moves in a whole training
    run."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_InFloat32":
        super()._apply(keeping_type(fn), recurse)
        return self

    def forward(self) -> Tensor:
        """What acts as `z` (r,). Only a call loads what accelerate keeps on the CPU or on disk."""
        return self.weight


class SVFVector(_InFloat32):
    """One trained vector. `decays_well`: the base model is at `z = 0`, where an optimizer's weight decay leads."""

    def __init__(self, z: Tensor, decays_well: bool = False):
        super().__init__()
        self.weight = nn.Parameter(z)  # (r,)
        self.decays_well = decays_well
        _vectors.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:  # of copies and unpickled ones
        super().__setstate__(state)
        _vectors.add(self)


_vectors: weakref.WeakSet[SVFVector] = weakref.WeakSet()


def _warn_of_decay(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Before a step of any optimizer: say once that its weight decay would pull some `z` to 0, and with it every
    singular value."""
    decaying = [group for group in optimizer.param_groups if group.get("weight_decay")]
    if not decaying or getattr(optimizer, "_svf_checked", None) == len(optimizer.param_groups):
        return
    optimizer._svf_checked = len(optimizer.param_groups)  # once for these groups
    harmed = {id(vector.weight) for vector in _vectors if not vector.decays_well}
    if any(id(parameter) in harmed for group in decaying for parameter in group["params"]):
        warnings.warn(
            f"weight_decay {decaying[0]['weight_decay']:g} pulls z of SVF to 0, and with it every singular value of "
            "the model: put the parameters whose names contain svf_z into a group with weight_decay 0, or train with "
            "svf_rl's trainer, whose decay leads to 1",
            stacklevel=3,
        )


register_optimizer_step_pre_hook(_warn_of_decay)


class SVFCombination(_InFloat32):
    """
    A `z` that is computed: the combination of the fixed masks of `K` experts with trained weights.

    It takes the place of an adapter's vector, and its `weight` is read in the same way. It has `K` vectors and `alpha`,
    which the matrices of one group share.
    """

    masks: Tensor

    def __init__(self, masks: Tensor, alpha: nn.Parameter, form: str, normalized: bool):
        super().__init__()
        self.alpha = alpha  # (K,) fp32
        self.register_buffer("masks", masks, persistent=False)  # (K, r) fp32
        self._form, self._normalized = form, normalized

    @property
    def used_alpha(self) -> Tensor:
        """The weights `(K,)` as they act: divided by their sum where they are to be normalized."""
        return normalize(self.alpha) if self._normalized else self.alpha

    @property
    def weight(self) -> Tensor:
        """`z'` of shape `(r,)`, with a gradient to `alpha`."""
        return combine(self.masks, self.used_alpha, self._form)


def keeping_type(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn`, but where it would change the type of a tensor, it only moves it."""

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move
