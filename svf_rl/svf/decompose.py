"""Thin SVD of one weight matrix, W = U diag(s) Vᵀ, in fp64.

Factors computed in fp32 depend on the number of threads (W'(z) moves by 1e-4) and miss a reconstruction of 1e-6;
fp64 avoids both, so all work here is fp64 and the result is rounded once, to the storage dtype, by `Factors.to`.
"""

import hashlib
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from svf_rl.errors import SVFError

ALGORITHM_VERSION = 2
"""Part of every cache key: raise it when the factors of the same weight change."""

BLOCK = 1 << 18
"""Elements hashed as one block. Part of the fingerprint's definition."""

# Below this s_min/s_max the Gram method's U is orthonormal only to eps·(s_max/s_min)² > 2e-6, so `auto` turns to SVD.
SMALLEST_GRAM_RATIO = 1e-5


@dataclass(frozen=True)
class Factors:
    """W = U diag(s) Vᵀ with U (out, r), s (r,) descending and ≥ 0, Vt (r, in), r = min(out, in)."""

    U: Tensor
    s: Tensor
    Vt: Tensor

    def to(self, dtype: torch.dtype, device: str | torch.device | None = None) -> "Factors":
        """U and Vt rounded to the storage `dtype`; s always in fp32, since z scales it."""
        return Factors(
            U=self.U.to(device=device, dtype=dtype),
            s=self.s.to(device=device, dtype=torch.float32),
            Vt=self.Vt.to(device=device, dtype=dtype),
        )


def sha256_of_blocks(blocks: Iterable[Tensor], dtype: torch.dtype | None = None) -> bytes:
    """SHA-256 over the SHA-256 of each block's bytes, converted to `dtype` first.

    A tree, so that several cores can hash (hashlib releases the GIL): one core hashes 1.5 GB/s, and hashing takes most
    of the time of a start from the cache. Not torch's number of threads, which launchers set to 1 for each process.
    """

    def digest(block: Tensor) -> bytes:
        # Converted here, in the worker, so that only one block a thread exists in the new dtype.
        data = block.to(device="cpu", dtype=dtype).contiguous().view(torch.uint8)
        return hashlib.sha256(data.numpy().data).digest()

    with ThreadPoolExecutor(max_workers=min(8, len(os.sched_getaffinity(0)))) as pool:
        return hashlib.sha256(b"".join(pool.map(digest, blocks))).digest()


def fingerprint(weight: Tensor) -> str:
    """Hex SHA-256 of a weight (out, in): of its shape and its values as fp32, for any dtype and strides.

    bf16 and fp16 convert to fp32 exactly, so a weight and its exact upcast agree. An fp64 weight that fp32 cannot hold
    is hashed as fp64. Extra memory: one block a thread.
    """
    _check_matrix(weight)
    rows = max(1, BLOCK // weight.shape[1])
    blocks = weight.detach().split(rows)
    wide = weight.dtype == torch.float64 and any(not torch.equal(b.float().double(), b) for b in blocks)
    dtype = torch.float64 if wide else torch.float32
    head = f"{weight.shape[0]}x{weight.shape[1]} {dtype}".encode()
    return hashlib.sha256(head + sha256_of_blocks(blocks, dtype)).hexdigest()


def thin_svd(weight: Tensor, method: Literal["auto", "svd", "gram"] = "auto") -> Factors:
    """Fp64 factors of a finite weight (out, in), any floating dtype, on the weight's device.

    `svd` calls LAPACK or cuSOLVER. `gram` takes the eigenvectors V of the smaller Gram matrix and then U = W V / s,
    with s the column norms of W V: U diag(s) Vᵀ = W V Vᵀ is W to fp64 rounding however small s is. Where s is exactly
    0, the column of U is 0 too: nothing multiplies it, so there is no basis to complete.

    The largest element of each column of U is positive: nothing else fixes the sign of a pair of singular vectors, on
    which `C` of a core that mixes pairs depends.

    W'(z) is determined by W only where singular values differ. Methods agree on it to 1e-7 when neighbours are
    1e-8·s_max apart, and need not agree at all when singular values are equal (an orthogonal matrix has many
    decompositions).

    Raises:
        SVFError: `weight` is not a matrix of floating numbers, is empty, or holds NaN or infinity.
    """
    _check_matrix(weight)
    W = weight.detach().to(torch.float64)  # (out, in)
    largest = max(abs(value) for value in torch.stack(torch.aminmax(W)).tolist())
    if not math.isfinite(largest):
        raise SVFError("the weight holds NaN or infinite values; repair the checkpoint before decomposing it")
    # A power of two is exact, and keeps the squares in the Gram matrix inside fp64's range.
    scale = 2.0 ** max(-1000, min(1000, math.frexp(largest)[1]))
    wide = W.shape[0] < W.shape[1]
    tall = (W.T if wide else W) / scale  # (max, r): both methods are up to twice as fast on the tall orientation

    if method not in ("auto", "svd", "gram"):
        raise SVFError(f"unknown decomposition method {method!r}; use auto, svd or gram")
    if method != "svd":
        # Measured (2-core AMD EPYC, MKL, fp64, 1 thread; see benchmarks/decompose.py): gram took 0.47, 0.77, 0.60 s on
        # 1024×1024, 1024×2816, 2816×1024 and svd 0.64, 1.23, 1.24 s; gram also won at 96×256 and with 2 threads. So
        # gram is used for every shape. On CUDA too (H100: gram 0.14 s, svd 1.8 s on 4096×14336 and 14336×4096). Only
        # ill-conditioned or rank-deficient matrices use svd, since gram's U is not orthonormal for them.
        left, s, right = _gram(tall)
    if method == "svd" or (method == "auto" and s[-1] <= SMALLEST_GRAM_RATIO * s[0]):
        left, s, right = torch.linalg.svd(tall, full_matrices=False)

    s = s * scale
    if wide:  # Wᵀ = left diag(s) right  ⇒  W = rightᵀ diag(s) leftᵀ
        left, right = right.T, left.T
    U, Vt = left.contiguous(), right.contiguous()
    lowest, highest = torch.aminmax(U, dim=0)
    signs = torch.where(-lowest > highest, -1.0, 1.0).to(torch.float64)
    U *= signs
    Vt *= signs[:, None]
    return Factors(U=U, s=s, Vt=Vt)


def _gram(tall: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, r) → left (n, r), s (r,), right (r, r), from the eigenvectors of tallᵀ tall (r, r)."""
    V = torch.linalg.eigh(tall.T @ tall).eigenvectors
    left = tall @ V  # (n, r): columns orthogonal, of length s
    s, order = torch.linalg.vector_norm(left, dim=0).sort(descending=True)
    left = left[:, order] / torch.where(s > 0, s, 1.0)
    return left, s, V[:, order].T


def _check_matrix(weight: Tensor) -> None:
    if weight.dim() != 2 or weight.numel() == 0 or not weight.dtype.is_floating_point:
        raise SVFError(
            f"expected a non-empty floating-point matrix (out, in), got {weight.dtype} of shape {tuple(weight.shape)}"
        )
    if weight.is_meta:
        raise SVFError("the weight is on the meta device and has no values; load the model's weights first")
