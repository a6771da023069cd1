"""A change of singular values as a product of two thin matrices, which is what engines of LoRA take."""

import torch
from torch import Tensor

from svf_rl.svf.decompose import Factors


@torch.no_grad()
def low_rank(factors: Factors, delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """
    `B` (out, rank) and `A` (rank, in), fp32, whose product is the best approximation of that rank of `U diag(delta) Vᵀ`
    (Eckart and Young): the directions with the largest `delta` (r,) in size. Where there are fewer, the rest is 0.
    """
    kept = strongest(delta, rank)
    root = delta[kept].abs().sqrt()
    B, A = factors.U.new_zeros(len(factors.U), rank), factors.Vt.new_zeros(rank, factors.Vt.shape[1])
    B, A = B.float(), A.float()
    B[:, : len(kept)] = factors.U[:, kept].double() * (root * delta[kept].sign())
    A[: len(kept)] = root[:, None] * factors.Vt[kept].double()
    return B, A


def strongest(delta: Tensor, rank: int) -> Tensor:
    """Which of `delta` (r,) the best approximation keeps, the largest first."""
    return delta.abs().argsort(descending=True, stable=True)[:rank]
