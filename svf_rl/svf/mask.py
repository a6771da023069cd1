"""From the trained vector to the multiplier of the singular values: the formulas of SVF, without any module. The cores
other than `diagonal` are in `core.py`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from svf_rl.errors import SVFError
from svf_rl.svf.config import LARGEST, SVFConfig
from svf_rl.svf.core import DIAGONAL, Core, make_core


def is_sound(z: Tensor) -> bool:
    """Whether every value of a `z` is a finite number of at most [`LARGEST`], in size."""
    return bool((z.abs() <= LARGEST).all())


@dataclass(frozen=True)
class Mask(Core):
    """The core `diagonal`: how one adapter turns `z` into the multiplier `m`; see [`SVFConfig`] for the options."""

    parameterization: str = "direct"
    max_multiplier: float = 2.0
    renormalize: bool = False

    @classmethod
    def of(cls, config: SVFConfig) -> "Mask":
        return cls(config.parameterization, config.max_multiplier, config.renormalize)

    def check(self) -> None:
        """Raises `SVFError` for options that [`SVFConfig`] does not take."""
        known = self.parameterization in ("direct", "sigmoid") and type(self.renormalize) is bool
        known &= type(self.max_multiplier) in (int, float)
        if not known or (self.parameterization == "sigmoid" and not 1 < self.max_multiplier <= LARGEST):
            raise SVFError(f"{self} is the mask of no adapter: see SVFConfig")

    @property
    def identity(self) -> float:  # type: ignore[override]
        """The value of `z` at which `m = 1`."""
        return 1.0 if self.parameterization == "direct" else -math.log(self.max_multiplier - 1)

    def size(self, r: int) -> int:
        return r

    def __call__(self, z: Tensor, s: Tensor) -> Tensor:
        """The multiplier `m` (r,) of the singular values `s` (r,), in the type of the trained `z` (r,)."""
        m = z if self.parameterization == "direct" else self.max_multiplier * torch.sigmoid(z)
        if self.renormalize:
            total, target = (s * m).sum(), s.sum()
            # An all-zero W has nothing to keep; dividing by its total, even unused, would make the gradient NaN.
            m = m * torch.where(total == 0, 1.0, target / torch.where(total == 0, 1.0, total))
        return m


def core_of(config: SVFConfig, path: str) -> Core:
    """That of an adapter, for the matrix at the module path `path`."""
    return Mask.of(config) if config.core == DIAGONAL else make_core(config.core, config.core_seed, path)


def initial_z(size: int, config: SVFConfig) -> Tensor:
    """The start of training: shape `(size,)`, fp32, on the CPU; random starts draw from torch's global generator."""
    identity = core_of(config, "").identity
    if config.init == "identity":
        return torch.full((size,), identity, dtype=torch.float32)
    mean = identity if config.parameterization == "direct" else config.init_mean
    return mean + config.init_std * torch.randn(size, dtype=torch.float32)


def multiplier_of_all(s: Tensor, adapters: Iterable[tuple[Mask, Tensor]]) -> Tensor:
    """`m = 1 + Σ (m_k − 1)` (r,) of adapters together, in fp64; see [`change_of_singular_values`]."""
    s = s.double()
    m = [mask(z.detach().to(s), s) for mask, z in adapters]
    return sum((one - 1 for one in m[1:]), start=m[0]) if m else torch.ones_like(s)


def change_of_singular_values(s: Tensor, adapters: Iterable[tuple[Mask, Tensor]]) -> Tensor:
    """
    `s·(m − 1)` (r,) of the singular values `s` (r,), added up over adapters (the mask and the `z` (r,) of each): what
    `W'` is rebuilt from.

    In fp64: the rounding of an fp32 change moves one element in eight of an fp32 `W'` by a bit or more. Whoever
    computes it from the same `z` gets the same bits.
    """
    s = s.double()
    change = torch.zeros_like(s)
    for mask, z in adapters:
        change = change + s * (mask(z.detach().to(s), s) - 1)
    return change
