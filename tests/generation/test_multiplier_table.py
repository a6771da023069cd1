"""The rows of a factored engine: each token reads its own."""

import numpy as np
import pytest
import torch
from torch import Tensor

from svf_rl.errors import SVFError
from svf_rl.generation.vllm.factored.table import BASE, MultiplierTable

S = {"up": torch.tensor([3.0, 2.0, 1.0]), "down": torch.tensor([5.0, 4.0])}


def _table(**settings: bool) -> MultiplierTable:
    return MultiplierTable(S, tokens=16, **settings)


def _rows(
    table: MultiplierTable, rows: list[int], tokens: list[int], name: str, dtype: torch.dtype = torch.float32
) -> Tensor:
    table.assign(np.repeat(rows, tokens))
    return table.scale(torch.ones(sum(tokens), len(S[name]), dtype=dtype), table.columns[name])


def test_each_token_is_scaled_by_the_row_of_its_request() -> None:
    table = _table()
    m = torch.tensor([1.0, 0.5, 2.0])
    row = table.add({"up": m})
    scaled = _rows(table, [row, BASE], [2, 1], "up")
    assert torch.equal(scaled, torch.stack([S["up"] * m, S["up"] * m, S["up"]]))
    assert torch.equal(_rows(table, [row, BASE], [2, 1], "down"), S["down"].expand(3, 2))  # it adapts up alone
    assert torch.equal(_rows(table, [row, row], [1, 2], "up"), (S["up"] * m).expand(3, 3))


def test_small_changes_are_not_rounded_away_in_bf16() -> None:
    """A multiplier of 1 + 2⁻⁹ is 1 in bf16, and yet moves some of the products."""
    s = torch.linspace(3, 1, 64)
    table = MultiplierTable({"up": s}, tokens=16)
    row = table.add({"up": torch.full((64,), 1 + 2**-9)})
    h = torch.linspace(1, 2, 64).bfloat16()
    table.assign(np.array([row, BASE]))
    one, base = table.scale(h.expand(2, 64), table.columns["up"])
    assert torch.equal(base, (h.float() * s).bfloat16())
    assert torch.equal(one, (h.float() * (s * (1 + 2**-9))).bfloat16())
    assert not torch.equal(one, base)


def test_it_grows_and_takes_rows_again() -> None:
    table = _table()
    rows = [table.add({"down": torch.tensor([float(number), 1.0])}) for number in range(1, 41)]
    assert len(set(rows)) == 40
    assert BASE not in rows
    for number, row in enumerate(rows, start=1):
        assert torch.equal(_rows(table, [row], [1], "down")[0], S["down"] * torch.tensor([float(number), 1.0]))
    for row in rows:
        table.drop(row)
    size = len(table.values)
    for _ in range(1000):
        table.drop(table.add({}))
    assert len(table.values) == size


def test_a_fixed_one_says_that_it_is_full() -> None:
    table = _table(fixed=True)
    place, count = table.values.data_ptr(), len(table.values)
    for _ in range(count - 1):
        table.add({})
    with pytest.raises(SVFError, match=f"full with {count - 1} adapters: enforce_eager lets it grow"):
        table.add({})
    assert table.values.data_ptr() == place
