"""Rebuilding one weight from its factors: `W' = W + U diag(s·(m − 1)) Vᵀ`."""

import torch
from torch import Tensor

# 512 × r blocks keep the temporaries far below one matrix and are large enough for full matrix-multiply speed.
_BLOCK = 512


@torch.no_grad()
def merged_weight(weight: Tensor, U: Tensor, Vt: Tensor, delta: Tensor) -> Tensor:
    """
    `W + U diag(delta) Vᵀ`, accumulated above the type of `W` and rounded once; bit-equal to `W` where `delta` is 0.

    Adding to the stored `W` (instead of multiplying the factors out) keeps the rounding of the factors out of the
    part of the weight that training did not touch.

    Args:
        weight (`Tensor` of shape `(out, in)`): The frozen weight; it is only read.
        U (`Tensor` of shape `(out, r)`), Vt (`Tensor` of shape `(r, in)`): The factors.
        delta (`Tensor` of shape `(r,)`): `s·(m − 1)`.

    Returns:
        `Tensor` of shape `(out, in)` in the type of `weight`. Extra memory: the result and a few blocks of 512 × r.
    """
    # bf16 needs fp32 sums; an fp32 weight needs fp64, or the sum over r terms already moves the last bit.
    wide = torch.float64 if weight.dtype in (torch.float32, torch.float64) else torch.float32
    merged = torch.empty_like(weight, memory_format=torch.contiguous_format)
    rows, columns = weight.shape
    for i in range(0, rows, _BLOCK):
        left = U[i : i + _BLOCK].to(wide) * delta.to(wide)  # (block, r)
        for j in range(0, columns, _BLOCK):
            old, right = weight[i : i + _BLOCK, j : j + _BLOCK].to(wide), Vt[:, j : j + _BLOCK].to(wide)
            new = torch.addmm(old, left, right)
            if wide == torch.float32:
                _repair_cancelled(new, old, U[i : i + _BLOCK], delta, right, torch.finfo(weight.dtype).eps)
            merged[i : i + _BLOCK, j : j + _BLOCK] = new
    return merged


def _repair_cancelled(new: Tensor, old: Tensor, U: Tensor, delta: Tensor, right: Tensor, eps: float) -> None:
    """
    Compute again, in fp64 and in place, the few elements of `new = old + U diag(delta) right` that fp32 leaves more
    than half a unit in the last place of the final type (machine epsilon `eps`) in doubt: there the terms cancel.
    """
    # The error of the fp32 sum: about 2⁻²³ of the size of its r terms, by the inequality of Cauchy and Schwarz.
    error = 2.0**-23 * (old.abs() + (U * delta).norm(dim=1, keepdim=True) * right.norm(dim=0))  # as `new`
    i, j = (new.abs() * (eps / 4) < error).nonzero(as_tuple=True)
    change = (U[i].double() * delta.double() * right[:, j].T.double()).sum(dim=1)
    new[i, j] = (old[i, j].double() + change).to(new.dtype)
