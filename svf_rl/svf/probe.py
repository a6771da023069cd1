"""A few numbers that tell whether the same `z` gives the same weights here as in its training."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from svf_rl.svf.decompose import Factors

TOLERANCE = 1e-3
# Measured on the bundled model and on random matrices up to 1,024², of the change that z makes: rounding between fp32,
# bf16 and fp16 gives at most .09, other weights at a distance of .1 % as much, of 1 % from .1 to .6, another model .8.
SHARE = 0.1
ROUNDING = 0.02
"""Of the change, between factors of the same weight in other types: measured alike up to 512², at most .009."""
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
    made: Projections = project_factors(factors)
    return replace(made, weight=_project_weight(weight))


@torch.no_grad()
def project_factors(factors: Factors) -> Projections:
    """As [`project`], of the matrix that the factors make: where the weight itself is not at hand."""
    A, B, scale = _signs(len(factors.U), factors.Vt.shape[1], factors.U.device)
    left, s = ((A @ factors.U.float()) * scale).cpu(), factors.s.float().cpu()
    right = (factors.Vt.float() @ B).cpu()
    return Projections(left, s, right, weight=(left * s) @ right)


def _signs(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor, float]:
    generator = torch.Generator().manual_seed(0)
    A = (torch.randint(0, 2, (_SIDE, rows), generator=generator) * 2 - 1).to(device, torch.float32)
    B = (torch.randint(0, 2, (columns, _SIDE), generator=generator) * 2 - 1).to(device, torch.float32)
    return A, B, (rows * columns) ** -0.5


def _project_weight(weight: Tensor) -> Tensor:
    """In fp64, whose sums do not depend on the device beyond what fp32 shows; in blocks, for the memory."""
    A, B, scale = _signs(len(weight), weight.shape[1], weight.device)
    parts = zip(A.double().split(1024, dim=1), weight.split(1024), strict=True)
    total = sum(part @ (rows.double() @ B.double()) for part, rows in parts)
    assert isinstance(total, Tensor)
    return (total * scale).float().cpu()


@torch.no_grad()
def was_written(matrix: Projections, weight: Tensor, rounding: float) -> bool:
    """Whether `weight` (out, in) is not the matrix that was projected, beyond relative errors of `rounding` in its
    elements."""
    allowed = 4 * rounding * weight.float().norm().item() * weight.numel() ** -0.5
    return not bool((_project_weight(weight) - matrix.weight).norm() <= allowed)


@torch.no_grad()
def probe(matrix: Projections, m: Tensor, mix: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """
    `A (W' − W) B` of the multiplier `m` (r,): shape (16,), fp32, on the CPU. `mix` is `C` of a core that mixes, from
    rows (n, r) to rows.

    The factors of one `W` are not unique (equal singular values, other hardware), and where they differ the same `z`
    gives another `W'`; random projections keep the size of such a difference. `W` itself is left out: fingerprints
    compare it, and the rounding of a model cast after its decomposition would hide the difference.
    """
    change = (matrix.left * (matrix.s * (m.float().cpu() - 1))) @ matrix.right
    if mix is not None:
        change = change + matrix.left @ mix(matrix.right.T).T
    return change.flatten()


def agrees(matrix: Projections, found: Tensor, recorded: Tensor, same_weight: bool = True) -> bool:
    """Whether the probe that was `found` on this matrix is the recorded one: up to `TOLERANCE` relative to `W'`, with
    what the rounding of the factors makes of the change; on a weight that is not the adapter's own to the bit up to
    `SHARE` of the change itself, or any weight would do for a small change."""
    if not torch.isfinite(recorded).all():
        return False
    error = (found - recorded).norm()
    if same_weight:
        return bool(error <= TOLERANCE * (matrix.weight.flatten() + recorded).norm() + ROUNDING * recorded.norm())
    return bool(error <= SHARE * recorded.norm())
