"""The `z` nearest to a changed weight: least squares over the singular directions of the one that it was made from."""

import torch
from torch import Tensor

from svf_rl.svf.config import LARGEST
from svf_rl.svf.decompose import Factors

# Below this share of the largest, a singular value is rounding: nothing of a change can be told by it.
_SMALLEST = 1e-7
_STEPS, _ENOUGH = 12, 1e-12


@torch.no_grad()
def nearest_multiplier(factors: Factors, change: Tensor) -> tuple[Tensor, float]:
    """
    `m` (r,) for which `U diag(s·(m − 1)) Vᵀ` is nearest to `change` (out, in), and the share of `‖change‖²` that it is
    then. Both in fp64; the share is 1 for no change at all.

    `U` and `V` are orthonormal up to the rounding of their storage, so that the residual's projections are added until
    nothing comes any more. Multipliers stay within [`LARGEST`], in size.
    """
    u, s, vt = (tensor.double() for tensor in (factors.U, factors.s, factors.Vt))
    change = change.double()
    known = s > _SMALLEST * s.max()
    coefficients, residual, size = torch.zeros_like(s), change, change.square().sum()
    if size == 0:
        return torch.ones_like(s), 1.0
    bound = (LARGEST - 1) * s
    for _ in range(_STEPS):
        step = ((u.T @ residual) * vt).sum(1) * known  # uᵢᵀ R vᵢ
        coefficients = (coefficients + step).clamp(-bound, bound)
        residual = change - (u * coefficients) @ vt
        if step.square().sum() <= _ENOUGH**2 * size:
            break
    m = 1 + torch.where(known, coefficients / s, 0.0)
    return m, 1 - (residual.square().sum() / size).item()
