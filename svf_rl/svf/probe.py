"""A few numbers that tell whether the same `z` means the same weights here as where it was trained."""

import torch
from torch import Tensor

from svf_rl.svf.decompose import Factors

TOLERANCE = 1e-3
_SIDE = 4  # projections a side, 16 numbers in all


@torch.no_grad()
def probe(factors: Factors, m: Tensor) -> Tensor:
    """
    `A (W' − W) B` with fixed random signs `A` (4, out) and `B` (in, 4), scaled by `1 / √(out·in)`.

    The factors of one `W` are not unique (equal singular values, other hardware), and where they differ the same `z`
    gives another `W'`; random projections keep the size of such a difference. `W` itself takes no part: fingerprints
    compare it, and the rounding of a model cast after its decomposition would drown the difference.

    Args:
        factors ([`Factors`]): The factors, U (out, r) and Vt (r, in).
        m (`Tensor` of shape `(r,)`): The multiplier of the singular values.

    Returns:
        `Tensor` of shape `(16,)`, fp32, on the CPU.
    """
    A, B = _signs(factors)
    left, right = A @ factors.U.float(), factors.Vt.float() @ B  # (4, r), (r, 4)
    projected = (left * (factors.s * (m.float() - 1))) @ right
    return (projected / (A.shape[1] * B.shape[0]) ** 0.5).flatten().cpu()


@torch.no_grad()
def agrees(factors: Factors, m: Tensor, weight: Tensor, recorded: Tensor) -> bool:
    """Whether the factors of `weight` (out, in) give the recorded probe, up to `TOLERANCE` relative to `W'`."""
    A, B = _signs(factors)
    of_weight = (A @ (weight.float() @ B) / weight.numel() ** 0.5).flatten().cpu()  # (16,)
    return bool((probe(factors, m) - recorded).norm() <= TOLERANCE * (of_weight + recorded).norm())


def _signs(factors: Factors) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows, columns = factors.U.shape[0], factors.Vt.shape[1]
    A = torch.randint(0, 2, (_SIDE, rows), generator=generator) * 2 - 1
    B = torch.randint(0, 2, (columns, _SIDE), generator=generator) * 2 - 1
    return A.to(factors.U.device, torch.float32), B.to(factors.U.device, torch.float32)
