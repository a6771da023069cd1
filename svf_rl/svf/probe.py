"""A few numbers that tell whether the same `z` gives the same weights here as in its training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from svf_rl.svf.decompose import Factors

TOLERANCE = 1e-3
_SIDE = 4  # projections a side, 16 numbers in all


@dataclass(frozen=True)
class Projections:
    """What a probe needs of one matrix, fp32 on the CPU: `A U` (4, r), `s` (r,), `Vᵀ B` (r, 4), and `A W B` (4, 4)."""

    left: Tensor
    s: Tensor
    right: Tensor
    weight: Tensor


@torch.no_grad()
def project(factors: Factors, weight: Tensor) -> Projections:
    """
    Project the frozen `weight` (out, in) and its factors on fixed random signs `A` (4, out) and `B` (in, 4), scaled by
    `1 / √(out·in)`.

    This is done once, while the whole matrix is available, and replaces it when adapters are saved and loaded.
    """
    generator = torch.Generator().manual_seed(0)
    (rows, columns), device = weight.shape, weight.device
    A = (torch.randint(0, 2, (_SIDE, rows), generator=generator) * 2 - 1).to(device, torch.float32)
    B = (torch.randint(0, 2, (columns, _SIDE), generator=generator) * 2 - 1).to(device, torch.float32)
    scale = (rows * columns) ** -0.5
    return Projections(
        left=((A @ factors.U.float()) * scale).cpu(),
        s=factors.s.float().cpu(),
        right=(factors.Vt.float() @ B).cpu(),
        weight=((A @ (weight.float() @ B)) * scale).cpu(),
    )


@torch.no_grad()
def probe(matrix: Projections, m: Tensor) -> Tensor:
    """
    `A (W' − W) B` of the multiplier `m` (r,): shape (16,), fp32, on the CPU.

    The factors of one `W` are not unique (equal singular values, other hardware), and where they differ the same `z`
    gives another `W'`; random projections keep the size of such a difference. `W` itself is left out: fingerprints
    compare it, and the rounding of a model cast after its decomposition would hide the difference.
    """
    return ((matrix.left * (matrix.s * (m.float().cpu() - 1))) @ matrix.right).flatten()


def agrees(matrix: Projections, m: Tensor, recorded: Tensor) -> bool:
    """Whether `m` on this matrix gives the recorded probe, up to `TOLERANCE` relative to `W'`."""
    if not torch.isfinite(recorded).all():
        return False
    return bool((probe(matrix, m) - recorded).norm() <= TOLERANCE * (matrix.weight.flatten() + recorded).norm())
