"""The table of a factored engine: a row for each adapter, a column for each singular value that it serves."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from svf_rl.errors import SVFError

BASE = 0
"""The row of the base model, `m = 1`."""


class MultiplierTable:
    """
    `values` (rows, columns) in fp32: `s·m` of each adapter. `rows` (tokens,) says which row each token of the current
    batch reads.

    An adapter is written by one copy of `columns` numbers. The table grows by doubling, which moves it.

    Args:
        singular_values (`Mapping[str, Tensor]`): `s` (r,) of each served matrix, in the order of the columns.
        tokens (`int`): The most tokens of a batch.
        fixed (`bool`, *optional*, defaults to `False`): CUDA graphs read the table where it is: it holds 256 MiB, and
            at least 64 rows, from the start, and does not grow.
    """

    def __init__(self, singular_values: Mapping[str, Tensor], tokens: int, fixed: bool = False):
        self.columns: dict[str, slice] = {}
        end = 0
        for name, s in singular_values.items():
            self.columns[name] = slice(end, end := end + s.numel())
        base = torch.cat([s.float() for s in singular_values.values()])
        rows = max(64, min(1024, 2**28 // base.nbytes)) if fixed else 16
        self.values = base.new_zeros(rows, end)
        self.values[BASE] = base
        self.rows = torch.zeros(tokens, dtype=torch.int64, device=base.device)
        self._fixed = fixed
        self._common: int | None = BASE  # the row of all tokens of the batch, where it is one
        self._free = list(range(rows - 1, BASE, -1))

    def add(self, multipliers: Mapping[str, Tensor]) -> int:
        """The row that from now on holds these `m` (r,) by matrix, and 1 for all others. Raises `SVFError` as `write`
        does, and where a fixed table is full."""
        values = self._values(multipliers)
        if not self._free:
            count = len(self.values)
            if self._fixed:
                raise SVFError(f"the engine's table is full with {count - 1} adapters: enforce_eager lets it grow")
            self.values = torch.cat([self.values, torch.zeros_like(self.values)])
            self._free = list(range(2 * count - 1, count - 1, -1))
        row = self._free.pop()
        self.values[row].copy_(values)
        return row

    def write(self, row: int, multipliers: Mapping[str, Tensor]) -> None:
        """Replace a row. Raises `SVFError` for a matrix that is not served, of another rank, or not finite; nothing is
        written then."""
        self.values[row].copy_(self._values(multipliers))

    def drop(self, row: int) -> None:
        self._free.append(row)

    def _values(self, multipliers: Mapping[str, Tensor]) -> Tensor:
        values = self.values[BASE].clone()
        for name, m in multipliers.items():
            columns = self.columns.get(name)
            if columns is None:
                raise SVFError(f"the adapter adapts {name}, which this engine does not serve in factors")
            if m.shape != values[columns].shape:
                raise SVFError(
                    f"the adapter has {m.numel()} values for {name}, which has rank {values[columns].numel()}"
                )
            values[columns] *= m.to(values)
        if not values.isfinite().all():
            raise SVFError("the adapter holds values that are not finite")
        return values

    def assign(self, rows: np.ndarray) -> None:
        """Let the tokens of a batch read these `rows` (tokens,)."""
        self._common = int(rows[0]) if len(rows) and (rows == rows[0]).all() else None
        self.rows[: len(rows)].copy_(torch.from_numpy(rows), non_blocking=True)

    def scale(self, h: Tensor, columns: slice) -> Tensor:
        """
        `h` (tokens, r), each token times its own `s·m`.

        In fp32 before it is rounded, as the trained layer does: in bf16 multipliers lose small changes of `z`.
        """
        values = self.values[:, columns]
        if self._common is not None and not h.is_cuda:  # a graph would keep the branch that it was captured with
            return (h * values[self._common]).to(h.dtype)
        return (h * values.index_select(0, self.rows[: len(h)])).to(h.dtype)
