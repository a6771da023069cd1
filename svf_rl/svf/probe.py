"""A few numbers that tell whether the same `z` means the same weights here as where it was trained."""

import torch
from torch import Tensor

from svf_rl.svf.decompose import Factors

TOLERANCE = 1e-3
_SIDE = 4  # projections a side, 16 numbers in all


@torch.no_grad()
def probe(weight: Tensor, factors: Factors, m: Tensor) -> Tensor:
    """
    `A W' B` with fixed random signs `A` (4, out) and `B` (in, 4), scaled by `1 / √(out·in)`.

    The factors of one `W` are not unique (equal singular values, other hardware), and where they differ the same `z`
    gives another `W'`; random projections keep the size of such a difference.

    Args:
        weight (`Tensor` of shape `(out, in)`): The frozen weight.
        factors ([`Factors`]): Its factors.
        m (`Tensor` of shape `(r,)`): The multiplier of the singular values.

    Returns:
        `Tensor` of shape `(16,)`, fp32, on the CPU.
    """
    rows, columns = weight.shape
    generator = torch.Generator().manual_seed(0)
    A = (torch.randint(0, 2, (_SIDE, rows), generator=generator) * 2 - 1).to(weight.device, torch.float32)
    B = (torch.randint(0, 2, (columns, _SIDE), generator=generator) * 2 - 1).to(weight.device, torch.float32)
    left, right = A @ factors.U.float(), factors.Vt.float() @ B  # (4, r), (r, 4)
    delta = factors.s * (m.float() - 1)
    projected = A @ (weight.float() @ B) + (left * delta) @ right
    return (projected / (rows * columns) ** 0.5).flatten().cpu()


def agrees(probe: Tensor, recorded: Tensor) -> bool:
    """Whether two probes are equal up to `TOLERANCE`, relative to the recorded one."""
    return bool((probe - recorded).norm() <= TOLERANCE * recorded.norm())
