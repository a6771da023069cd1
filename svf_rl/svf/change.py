"""What the change of one weight is like: how large, of what rank, and whether along its singular directions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from svf_rl.svf.decompose import Factors


@dataclass(frozen=True)
class Change:
    """
    Four figures of a change `dW` of a weight `W = U diag(s) Vᵀ`. A figure that is not defined is `None`: all but
    `relative` where nothing changed, and all of them where the change is not finite.

    Args:
        relative (`float`): `‖dW‖ / ‖W‖` (Frobenius norms).
        stable_rank (`float`): `‖dW‖²` (Frobenius) over the square of the largest singular value of `dW`; from 1 to the
            rank of `dW`.
        effective_rank (`float`): the exponential of the entropy of the squares of the singular values of `dW`, which
            are divided by their sum (Roy and Vetterli, "The effective rank", EUSIPCO 2007, section 2, who take the
            singular values themselves); in the same range.
        diagonal (`float`): the share of `‖dW‖²` that is on the diagonal of `Uᵀ dW V`: 1 for a change of singular values
            alone (0.999 and more where the factors are stored in bf16), and about `1 / max(out, in)` for a random one
            (compare arXiv 2511.08567 and 2508.16546).
    """

    relative: float | None
    stable_rank: float | None = None
    effective_rank: float | None = None
    diagonal: float | None = None


@torch.no_grad()
def measure_change(change: Tensor, factors: Factors) -> Change:
    """The figures of `change` (out, in), any floating type, computed in fp64 where it is. `factors` are those of the
    weight before."""
    dW = change.double()
    if not dW.isfinite().all():
        return Change(None)
    size, before = dW.square().sum(), factors.s.double().norm()
    if size == 0:
        return Change(0.0)
    tall = dW if dW.shape[0] >= dW.shape[1] else dW.T
    squares = torch.linalg.eigvalsh(tall.T @ tall).clamp_min(0)  # (r,) ascending, of the singular values
    shares = squares / squares.sum()
    along = ((factors.U.double().T @ dW) * factors.Vt.double()).sum(1)  # (r,): uᵢᵀ dW vᵢ
    return Change(
        relative=(size.sqrt() / before).item() if before > 0 else None,
        stable_rank=(size / squares[-1]).item(),
        effective_rank=torch.special.entr(shares).sum().exp().item(),
        # at most 1 but for the rounding of U and V
        diagonal=min(1.0, (along.square().sum() / size).item()),
    )
