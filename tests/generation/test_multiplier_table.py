"""The rows of a factored engine: each token reads its own."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from svf_rl.errors import SVFError
from svf_rl.generation.vllm.factored.adapters import AdapterRows
from svf_rl.generation.vllm.factored.table import BASE, MultiplierTable

S = {"up": torch.tensor([3.0, 2.0, 1.0]), "down": torch.tensor([5.0, 4.0])}


def _table(slots: int = 4) -> MultiplierTable:
    return MultiplierTable(S, tokens=16, slots=slots)


def _add(table: MultiplierTable, row: int, multipliers: dict[str, Tensor]) -> int:
    table.values[row] = table.row_of(multipliers)
    return row


def _rows(
    table: MultiplierTable, rows: list[int], tokens: list[int], name: str, dtype: torch.dtype = torch.float32
) -> Tensor:
    table.assign(np.repeat(rows, tokens))
    return table.scale_(torch.ones(sum(tokens), len(S[name]), dtype=dtype), table.columns[name])


def test_each_token_is_scaled_by_the_row_of_its_request() -> None:
    table = _table()
    m = torch.tensor([1.0, 0.5, 2.0])
    row = _add(table, 2, {"up": m})
    scaled = _rows(table, [row, BASE], [2, 1], "up")
    assert torch.equal(scaled, torch.stack([S["up"] * m, S["up"] * m, S["up"]]))
    assert torch.equal(_rows(table, [row, BASE], [2, 1], "down"), S["down"].expand(3, 2))  # it adapts up alone
    assert torch.equal(_rows(table, [row, row], [1, 2], "up"), (S["up"] * m).expand(3, 3))


def test_small_changes_are_not_rounded_away_in_bf16() -> None:
    """A multiplier of 1 + 2⁻⁹ is 1 in bf16, and yet moves some of the products."""
    s = torch.linspace(3, 1, 64)
    table = MultiplierTable({"up": s}, tokens=16, slots=1)
    row = _add(table, 1, {"up": torch.full((64,), 1 + 2**-9)})
    h = torch.linspace(1, 2, 64).bfloat16()
    table.assign(np.array([row, BASE]))
    one, base = table.scale_(h.repeat(2, 1), table.columns["up"])
    assert torch.equal(base, (h.float() * s).bfloat16())
    assert torch.equal(one, (h.float() * (s * (1 + 2**-9))).bfloat16())
    assert not torch.equal(one, base)


def _answers(adapters: AdapterRows, numbers: list[int]) -> list[float]:
    """What the first column of `down` is multiplied by for a token of each of these adapters."""
    adapters.set_active_adapters(set(), SimpleNamespace(index_mapping=tuple(numbers)))
    scaled = adapters.table.scale_(torch.ones(len(numbers), 2), adapters.table.columns["down"])
    return (scaled[:, 0] / S["down"][0]).tolist()


def test_a_row_is_no_part_of_a_graph() -> None:
    """The multiplier of a directly trained `z` is the parameter; each update would lengthen the graph of a row."""
    adapters = AdapterRows(_table())
    for value in (1.0, 2.0):
        adapters.put(1, {"down": torch.nn.Parameter(torch.full((2,), value))})
        assert _answers(adapters, [1]) == [value]
        assert not adapters._values[1].requires_grad
        assert not adapters.table.values.requires_grad


def test_what_is_tried_in_inference_mode_leaves_room_for_adapters() -> None:
    """As vLLM tries dummies before it compiles; their places are used again."""
    rows = AdapterRows(_table())
    with torch.inference_mode():
        rows.add_dummy_lora(SimpleNamespace(lora_int_id=1), 8)
        rows.remove_adapter(1)
    m = torch.tensor([1.0, 0.5, 2.0])
    rows.put(1, {"up": m})
    rows.set_active_adapters(set(), SimpleNamespace(index_mapping=[1]))
    assert torch.equal(rows.table.scale_(torch.ones(1, 3), rows.table.columns["up"])[0], S["up"] * m)


def test_any_number_of_adapters_takes_turns_in_the_slots() -> None:
    adapters = AdapterRows(_table(slots=3))
    place, random = adapters.table.values.data_ptr(), Random(0)
    for number in range(1, 41):
        adapters.put(number, {"down": torch.tensor([float(number), 1.0])})
    for _ in range(200):
        chosen = random.sample(range(1, 41), 3)
        numbers = [random.choice([0, *chosen]) for _ in range(8)]
        assert _answers(adapters, numbers) == [float(number or 1) for number in numbers]
        if random.random() < 0.3:  # one that is in use, or not, becomes another
            adapters.put(chosen[0], {"down": torch.tensor([float(chosen[0]), 2.0])})
    assert adapters.table.values.data_ptr() == place


def test_a_new_version_is_read_at_once_and_a_dropped_one_is_gone() -> None:
    adapters = AdapterRows(_table(slots=2))
    for value in (2.0, 3.0):
        adapters.put(5, {"down": torch.tensor([value, 1.0])})
        assert _answers(adapters, [5, 0]) == [value, 1.0]
    for number in range(100, 10_100):
        adapters.put(number, {})
        assert adapters.remove_adapter(number)
    assert adapters.list_adapters() == {5}
    assert adapters.remove_adapter(5)
    assert not adapters.remove_adapter(5)
    with pytest.raises(SVFError, match="no adapter 5"):
        adapters.check(5)
    adapters.put(6, {"down": torch.tensor([4.0, 1.0])})
    assert _answers(adapters, [0, 6]) == [1.0, 4.0]


def test_adapters_take_four_bytes_a_value_and_new_ones_the_place_of_dropped_ones() -> None:
    """10,000 come and go, of which 1,000 are held; in a process of its own, whose memory nothing else moves."""
    values = 20_000
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        empty, full, early, late = process.submit(_come_and_go, values).result()
    assert (full - empty) / 1000 == pytest.approx(4 * values, rel=0.1)
    assert late - early < 0.02 * (full - empty)


def _come_and_go(values: int) -> list[int]:
    """Bytes of the process with none, with 1,000, after 3,000 and after 10,000."""
    adapters = AdapterRows(MultiplierTable({"up": torch.ones(values)}, tokens=16, slots=8))
    random, m = Random(0), torch.rand(values)
    found = [_resident()]
    for number in range(1, 10_001):
        adapters.put(number, {"up": m})
        adapters.remove_adapter(number - 1000)
        in_batch = random.sample(sorted(adapters.list_adapters())[-8:], min(8, number))
        adapters.set_active_adapters(set(), SimpleNamespace(index_mapping=tuple(in_batch)))
        if number in (1000, 3000, 10_000):
            found.append(_resident())
    return found


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
