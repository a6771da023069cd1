"""The table of a factored engine: a row for each adapter, a column for each singular value that it serves."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from svf_rl.errors import SVFError

BASE = 0
"""The row of the base model: `m = 1`, or what a weight transfer has put there."""


class MultiplierTable:
    """
    `values` (slots + 1, columns) in fp32: `s·m` of the adapters of the current batch, after those of the base model.
    `rows` (tokens,) says which row each token of the batch reads. Both stay where they are, as CUDA graphs need it.
    `singular_values` (columns,) is `s` alone.

    Args:
        singular_values (`Mapping[str, Tensor]`): `s` (r,) of each served matrix, in the order of the columns.
        tokens (`int`): The most tokens of a batch.
        slots (`int`): The most adapters of a batch.
    """

    def __init__(self, singular_values: Mapping[str, Tensor], tokens: int, slots: int):
        self.columns: dict[str, slice] = {}
        end = 0
        for name, s in singular_values.items():
            self.columns[name] = slice(end, end := end + s.numel())
        self.singular_values = torch.cat([s.float() for s in singular_values.values()])
        self.values = self.singular_values.new_empty(slots + 1, end)
        self.values[BASE] = self.singular_values
        self.rows = torch.zeros(tokens, dtype=torch.int64, device=self.values.device)
        self._common: int | None = BASE  # the row of all tokens of the batch, where it is one

    # vLLM tries dummies in inference mode, whose tensors nothing outside of it may write to; and `m` may be the trained
    # parameter itself: a row would keep the graph of all rows before it
    @torch.inference_mode(False)
    @torch.no_grad()
    def row_of(self, multipliers: Mapping[str, Tensor]) -> Tensor:
        """The values (columns,) of an adapter with these `m` (r,) by matrix, and 1 for all others. Raises `SVFError`
        for a matrix that is not served, of another rank, or not finite."""
        for name, m in multipliers.items():
            columns = self.columns.get(name)
            if columns is None:
                raise SVFError(f"the adapter adapts {name}, which this engine does not serve in factors")
            if m.shape != (columns.stop - columns.start,):
                raise SVFError(
                    f"the adapter has {m.numel()} values for {name}, which has rank {columns.stop - columns.start}"
                )
        # Thousands are held: temporary tensors of their size would leave as large holes between them.
        values = self.singular_values.clone()
        for name, m in multipliers.items():
            values[self.columns[name]] *= m.to(values)
        if not torch.stack(values.aminmax()).isfinite().all():
            raise SVFError("the adapter holds values that are not finite")
        return values

    def assign(self, rows: np.ndarray) -> None:
        """Let the tokens of a batch read these `rows` (tokens,)."""
        self._common = int(rows[0]) if len(rows) and (rows == rows[0]).all() else None
        self.rows[: len(rows)].copy_(torch.from_numpy(rows), non_blocking=True)

    def scale_(self, h: Tensor, columns: slice) -> Tensor:
        """
        Multiply each token of `h` (tokens, r) by its own `s·m`, in place.

        In fp32 before it is rounded, as the trained layer does: in bf16 multipliers lose small changes of `z`.
        """
        values = self.values[:, columns]
        if self._common is not None and not h.is_cuda:  # a graph would keep the branch that it was captured with
            return h.mul_(values[self._common])
        return h.mul_(values.index_select(0, self.rows[: len(h)]))
