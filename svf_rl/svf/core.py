"""Ways to spend few values on the factors `W = U diag(s) Vᵀ`: the mathematics of each `core`, without any module.

A core makes `W' = U (diag(s·m) + C) Vᵀ` of its trained values `z`. `m` (r,) scales the singular values, and `C` (r, r),
which only cores that *mix* have, leads from one singular direction to another. Beside `diagonal`, which is
[`svf_rl.svf.mask.Mask`], all values are deviations: `z = 0` is `W` itself.
"""

import hashlib
import math
import re
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from svf_rl.errors import SVFError

DIAGONAL = "diagonal"
KNOWN = "diagonal, top:k, bottom:k, projected:n, band:w, block:k, block:k:bottom or block:k:random"
_UNIFORM = 1 << 16
_WIDEST = 256  # `band:w`: each distance is a product of its own
_LARGEST_SHARED = 4096  # values of `projected:n`, each of which is a column of `P` for every matrix


class Core:
    """One adapter's core for one matrix."""

    identity: float = 0.0
    """The value of all of `z` at which `W' = W`."""
    mixes: ClassVar[bool] = False
    """Whether there is a `C`; without it `m` says all of the change."""
    shared: ClassVar[bool] = False
    """Whether all matrices of the model have one `z` together."""
    draws: bool = False
    """Whether anything of it is drawn, from the seed."""
    drawn: Tensor | None = None
    """What was drawn, or is fixed in its place, once it is needed. Runs on one base model have it together."""
    path: str = ""
    """Of the matrix, for errors."""

    def size(self, r: int) -> int:
        """How many values `z` has for a matrix of rank `r`. Raises `SVFError` where the rank is too small."""
        raise NotImplementedError

    def prepare(self, s: Tensor) -> None:
        """Draw what is drawn for the matrix of these singular values, where they are. It is done on demand too."""

    def __call__(self, z: Tensor, s: Tensor) -> Tensor:
        """The multiplier `m` (r,) of the singular values `s` (r,), in the type of `z`."""
        raise NotImplementedError

    def mix(self, h: Tensor, s: Tensor, z: Tensor, transposed: bool = False) -> Tensor:
        """`C h` of each `h` (..., r), or `Cᵀ h`, in the type of `z`."""
        raise NotImplementedError

    def entries(self, z: Tensor, s: Tensor) -> Tensor:
        """Those of `diag(s·m) + C` that are not 0 by construction, one after another, in the type of `z`. Their norm is
        that of `W'`, since `U` and `V` have orthonormal columns."""
        return s.to(z.dtype) * self(z, s)


class End(Core):
    """`top:k` and `bottom:k`: `m = 1 + z` for the `k` largest or smallest singular values, and 1 elsewhere."""

    def __init__(self, count: int, bottom: bool):
        self._count, self._bottom = count, bottom

    def size(self, r: int) -> int:
        return _at_most(r, self._count, "k", self, r)

    def __call__(self, z: Tensor, s: Tensor) -> Tensor:
        others = len(s) - self._count
        return 1 + F.pad(z, (others, 0) if self._bottom else (0, others))


class Projected(Core):
    """
    `projected:n`: `m = 1 + P v`, with one `v` (n,) for all matrices, as TinyLoRA shares its vector (arXiv 2602.04118,
    section 4).

    `P` (r, n) is random and fixed, with entries of mean 0 and variance `1/n`, so that `m − 1` is of the size of a value
    of `v`. It is drawn again from the seed and the matrix's path wherever it is needed, and the same on every machine:
    sums of four uniform integers, which involve no function that machines round differently.
    """

    shared = draws = True

    def __init__(self, count: int, seed: str):
        self._count, self._seed = count, seed

    def size(self, r: int) -> int:
        return _at_most(_LARGEST_SHARED, self._count, "n")

    def prepare(self, s: Tensor) -> None:
        self.projection(len(s), s.device)

    def projection(self, r: int, device: torch.device) -> Tensor:
        """`P` (r, n), fp32."""
        if self.drawn is None or len(self.drawn) != r:
            draws = torch.randint(_UNIFORM, (4, r, self._count), generator=_generator(self._seed), device="cpu").sum(0)
            variance = 4 * (_UNIFORM**2 - 1) / 12  # of such a sum
            centered = draws.double() - 2 * (_UNIFORM - 1)
            self.drawn = (centered / math.sqrt(variance * self._count)).float()
        if device.type != "meta" and self.drawn.device != device:
            self.drawn = self.drawn.to(device)
        return self.drawn.to(device)

    def __call__(self, z: Tensor, s: Tensor) -> Tensor:
        # no matrix product: autocast would round it to bf16
        return 1 + (self.projection(len(s), s.device).to(z.dtype) * z.to(s.device)).sum(-1)


class Band(Core):
    """
    `band:w`: `m = 1 + d`, and `C_ij = √(s_i s_j) b_ij` for `0 < |i − j| ≤ w`, which turns neighbouring singular
    directions into one another.

    `z` is `d` (r,), then for each distance from 1 to `w` the diagonal above and the one below, from the top left. The
    products are shifted ones, `O(r·w)` a token.
    """

    mixes = True

    def __init__(self, width: int):
        self._width = width

    def size(self, r: int) -> int:
        _at_most(_WIDEST, self._width, "w")
        _at_most(r - 1, self._width, "w", self, r)
        return r + sum(2 * (r - distance) for distance in range(1, self._width + 1))

    def __call__(self, z: Tensor, s: Tensor) -> Tensor:
        return 1 + z[: len(s)]

    def mix(self, h: Tensor, s: Tensor, z: Tensor, transposed: bool = False) -> Tensor:
        root, r = s.to(z.dtype).sqrt(), len(s)
        g, total, start = h.to(z.dtype) * root, None, r
        for distance in range(1, self._width + 1):
            above, below = z[start : start + 2 * (r - distance)].chunk(2)
            start += 2 * (r - distance)
            if transposed:
                above, below = below, above
            part = F.pad(above * g[..., distance:], (0, distance)) + F.pad(below * g[..., :-distance], (distance, 0))
            total = part if total is None else total + part
        assert total is not None
        return total * root

    def entries(self, z: Tensor, s: Tensor) -> Tensor:
        root, r = s.to(z.dtype).sqrt(), len(s)
        pairs = [
            (root[distance:] * root[:-distance]).repeat(2)  # above the diagonal, and below it
            for distance in range(1, self._width + 1)
        ]
        return torch.cat([super().entries(z, s), torch.cat(pairs) * z[r:]])


class Block(Core):
    """`block:k`: `C = E √S_k B √S_k Eᵀ` with a dense `B` (k, k), row by row in `z`, between `k` singular directions:
    the top ones, the bottom ones, or some drawn from the seed and the matrix's path."""

    mixes = True

    def __init__(self, count: int, where: str, seed: str):
        self._count, self._where, self._seed, self.draws = count, where, seed, where == "random"

    def size(self, r: int) -> int:
        return _at_most(r, self._count, "k", self, r) ** 2

    def prepare(self, s: Tensor) -> None:
        self.directions(len(s), s.device)

    def directions(self, r: int, device: torch.device) -> Tensor:
        """Which of the `r` singular directions, in order: (k,)."""
        if self.drawn is None:
            if self._where == "random":
                self.drawn = (
                    torch.randperm(r, generator=_generator(self._seed), device="cpu")[: self._count].sort().values
                )
            else:
                first = 0 if self._where == "top" else r - self._count
                self.drawn = torch.arange(first, first + self._count, device="cpu")
        if device.type != "meta" and self.drawn.device != device:
            self.drawn = self.drawn.to(device)
        return self.drawn.to(device)

    def __call__(self, z: Tensor, s: Tensor) -> Tensor:
        return torch.ones_like(s, dtype=z.dtype)

    def mix(self, h: Tensor, s: Tensor, z: Tensor, transposed: bool = False) -> Tensor:
        kept = self.directions(len(s), s.device)
        B = z.view(self._count, self._count)
        root = s[kept].to(z.dtype).sqrt()
        g = h.index_select(-1, kept).to(z.dtype) * root
        with torch.autocast(h.device.type, enabled=False):  # which would round to bf16 what is added in fp32
            change = F.linear(g, B.T if transposed else B) * root
        return change.new_zeros(h.shape).index_copy(-1, kept, change)

    def entries(self, z: Tensor, s: Tensor) -> Tensor:
        kept, s = self.directions(len(s), s.device), s.to(z.dtype)
        root = s[kept].sqrt()
        block = z.view(self._count, self._count) * root * root[:, None] + s[kept].diag()
        return torch.cat([s.index_fill(0, kept, 0.0), block.flatten()])


def make_core(core: str, seed: int, path: str) -> Core:
    """The core of that name for the matrix at the module path `path`; not of `diagonal`. Raises `SVFError` for a name
    that there is not."""
    found = re.fullmatch(r"(top|bottom|projected|band|block):([1-9][0-9]{0,8})(?::(bottom|random))?", str(core))
    if found is None or (found[3] and found[1] != "block"):
        raise SVFError(f"core must be {KNOWN} with a positive number, not {core!r:.100}")
    kind, number, own = found[1], int(found[2]), f"{seed}:{path}"
    made: Core
    if kind in ("top", "bottom"):
        made = End(number, kind == "bottom")
    elif kind == "projected":
        made = Projected(number, own)
    else:
        made = Band(number) if kind == "band" else Block(number, found[3] or "top", own)
    made.path = path
    return made


def _at_most(largest: int, value: int, name: str, core: Core | None = None, r: int = 0) -> int:
    """`value`. Raises `SVFError` where it is above `largest`, which the rank `r` of the core's matrix decides."""
    if value > largest:
        where, lower = "", "lower it"
        if core is not None:
            where = f" ({core.path or 'one'} has rank {r})"
            lower = f"{'lower it, or ' if largest else ''}name that matrix in exclude_modules"
        allowed = f"is above {largest}, the most that the adapted matrices allow{where}"
        raise SVFError(f"core: {name} = {value} {allowed}: {lower}")
    return value


def _generator(seed: str) -> torch.Generator:
    """On the CPU, from a hash that is the same everywhere."""
    digest = hashlib.sha256(seed.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
