"""Rebuilding one weight from its factors: `W' = W + U diag(s·(m − 1)) Vᵀ`, and `U C Vᵀ` for cores that mix."""

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def merged_weight(
    weight: Tensor,
    U: Tensor,
    Vt: Tensor,
    delta: Tensor,
    off_diagonal: Callable[[Tensor], Tensor | None] | None = None,
) -> Tensor:
    """
    `W + U diag(delta) Vᵀ` in the type of `weight` (out, in), which is only read; U (out, r), Vt (r, in), and `delta`
    (r,) is `s·(m − 1)`. Accumulated above that type and rounded once; bit-equal to `W` where `delta` is 0.
    `off_diagonal` is for `U (diag(delta) + C) Vᵀ`: it makes `u C` of rows `u` (n, r), in their type.

    Adding to the stored `W` (instead of multiplying the factors out) keeps the rounding of the factors out of the
    part of the weight that training did not touch. Extra memory: the result, and work space of about one matrix in
    fp32 at most (`4·r²` bytes with fp64 sums, half of it with fp32 sums).
    """
    # bf16 needs fp32 sums; an fp32 weight needs fp64, or the sum over r terms already moves the last bit.
    wide = torch.float64 if weight.dtype in (torch.float32, torch.float64) else torch.float32
    merged = torch.empty_like(weight, memory_format=torch.contiguous_format)
    (rows, columns), r = weight.shape, len(delta)
    # Blocks small against a matrix, large enough for the speed of a matrix product. Few rows of blocks, since Vᵀ is
    # converted once for each of them.
    height, width = max(64, r // 4), max(64, 3 * r // 16)
    left_space = weight.new_empty((height, r), dtype=wide)
    right_space = weight.new_empty((r, width), dtype=wide)
    right_norm = weight.new_empty(columns, dtype=wide)
    for i in range(0, rows, height):
        h = min(height, rows - i)
        left = left_space[:h].copy_(U[i : i + h]).mul_(delta)
        if off_diagonal is not None and (more := off_diagonal(U[i : i + h].to(wide))) is not None:
            left += more
        left_norm = left.norm(dim=1, keepdim=True)  # (h, 1)
        for j in range(0, columns, width):
            w = min(width, columns - j)
            old, right = weight[i : i + h, j : j + w].to(wide), right_space[:, :w].copy_(Vt[:, j : j + w])
            new = torch.addmm(old, left, right)
            if wide == torch.float32:
                if i == 0:
                    right_norm[j : j + w] = right.norm(dim=0)
                size = left_norm * right_norm[j : j + w]
                _repair_cancelled(
                    new, old, size, U[i : i + h], delta, off_diagonal, right, torch.finfo(weight.dtype).eps
                )
            merged[i : i + h, j : j + w] = new
    return merged


def _repair_cancelled(
    new: Tensor,
    old: Tensor,
    size: Tensor,
    U: Tensor,
    delta: Tensor,
    off_diagonal: Callable[[Tensor], Tensor | None] | None,
    right: Tensor,
    eps: float,
) -> None:
    """
    Compute again, in fp64 and in place, the few elements of `new = old + U diag(delta) right` that fp32 leaves more
    than half a unit in the last place of the final type (machine epsilon `eps`) in doubt: there the terms cancel.
    The terms of an element are as large as `size`, the product of the norms of its row and column (Cauchy and Schwarz).
    """
    error = 2.0**-23 * (old.abs() + size)  # of the fp32 sum, about
    i, j = (new.abs() * (eps / 4) < error).nonzero(as_tuple=True)
    rows = U[i].double()
    left = rows * delta.double()
    if off_diagonal is not None and (more := off_diagonal(rows)) is not None:
        left += more
    change = (left * right[:, j].T.double()).sum(dim=1)
    new[i, j] = (old[i, j].double() + change).to(new.dtype)


def rebuild_bytes(shape: tuple[int, int], itemsize: int) -> int:
    """Bytes at the peak of rebuilding one `W'` of `shape` for a sync: the result and the blocks of
    [`merged_weight`]."""
    (rows, columns), r = shape, min(shape)
    wide = 8 if itemsize >= 4 else 4
    height, width = max(64, r // 4), max(64, 3 * r // 16)
    # the old block and the new one; sums in fp32 are checked, which takes two more
    blocks = (2 if wide == 8 else 4) * min(height, rows) * min(width, columns)
    return rows * columns * itemsize + wide * (height * r + r * width + columns + blocks)
