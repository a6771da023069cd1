"""The adapters of an engine, and which of them a batch reads. vLLM calls this where it would call its manager of
LoRAs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svf_rl.errors import SVFError
from svf_rl.generation.vllm.factored.table import BASE, MultiplierTable


class AdapterRows:
    """
    Adapters by the number (`lora_int_id`) of the requests for them; 0 is the base model.

    Any number of them is kept, 4 bytes for each singular value; those of a batch are copied into slots of the table,
    where they stay until the slot is needed.

    Args:
        table ([`MultiplierTable`]): Of the engine.
        read (`Callable`, *optional*): The `m` (r,) of the matrices of the adapter in a folder. With it a request's
            adapter that is not there is read from the folder that the request names.
        kept (`int`, *optional*): With `read` no more than these stay, those that were used last. At least as many as
            a batch may have.
    """

    def __init__(
        self,
        table: MultiplierTable,
        read: Callable[[str], Mapping[str, Tensor]] | None = None,
        kept: int | None = None,
    ):
        self.table = table
        self._read, self._kept = read, kept
        self._values: dict[int, Tensor] = {}  # the one that was not used for longest first
        self._spare: list[Tensor] = []  # of dropped ones: the C library would leave gaps where they come and go
        self._row: dict[int, int] = {}  # of those in the table, the one that was not used for longest first
        self._free = list(range(len(table.values) - 1, BASE, -1))

    def __contains__(self, number: int) -> bool:
        return number == 0 or number in self._values

    def put(self, number: int, multipliers: Mapping[str, Tensor]) -> None:
        """Answer requests with this number by these `m` (r,) of matrices. Raises `SVFError` for an adapter that does
        not suit, see [`MultiplierTable.row_of`]; an earlier one of the number stays then."""
        values, place = self.table.row_of(multipliers), self._values.get(number)
        if place is None and self._spare:
            place = self._spare.pop()
        self._values[number] = values if place is None else place.copy_(values)
        if number in self._row:
            self.table.values[self._row[number]] = self._values[number]

    def check(self, number: int) -> None:
        """Raises `SVFError` where no adapter has the number."""
        if number not in self:
            raise SVFError(f"the engine has no adapter {number} (any more): put it there before asking for it")

    def first_alike(self, numbers: Iterable[int]) -> dict[int, int]:
        """For each of `numbers` the first of them that stands for the same values."""
        found: dict[int, int] = {}
        for number in numbers:
            if number not in found:
                values = self._values.get(number)  # none of the base model
                alike = (n for n in found if values is not None and n and torch.equal(self._values[n], values))
                found[number] = next(alike, number)
        return found

    # What vLLM asks of a manager of adapters:

    def set_active_adapters(self, requests: set[Any], mapping: Any) -> None:
        """Give the tokens of a batch the rows of their adapters."""
        for request in requests if self._read is not None else ():
            self._take(request)
        numbers = mapping.index_mapping
        rows = {0: BASE} | {number: self._row.pop(number) for number in set(numbers) & self._row.keys()}
        for number in set(numbers) - rows.keys():
            row = self._free.pop() if self._free else self._row.pop(next(iter(self._row)))
            self.table.values[row] = self._values[number]
            rows[number] = row
        self._row |= {number: row for number, row in rows.items() if number}
        self.table.assign(np.fromiter(map(rows.__getitem__, numbers), np.int64, len(numbers)))

    def add_adapter(self, request: Any) -> bool:
        if request.load_inplace:
            raise SVFError(
                f"adapter {request.lora_name} is not replaced while requests may be running as it: load the new one "
                "under another name, and unload this one"
            )
        self._take(request)
        return True

    def _take(self, request: Any) -> None:
        """Have the adapter of a request, and know it for the last one used."""
        number = request.lora_int_id
        if self._read is None or number in self._values:
            self.check(number)
            self._values[number] = self._values.pop(number)
            return
        self.put(number, self._read(request.lora_path))
        if self._kept is not None:
            for unused in list(self._values)[: -self._kept]:
                self.remove_adapter(unused)

    def remove_adapter(self, number: int) -> bool:
        if number in self._row:
            self._free.append(self._row.pop(number))
        values = self._values.pop(number, None)
        if values is not None:
            self._spare.append(values)
        return values is not None

    def list_adapters(self) -> set[int]:
        return set(self._values)

    def remove_all_adapters(self) -> None:
        for number in self.list_adapters():
            self.remove_adapter(number)

    def pin_adapter(self, number: int) -> bool:
        return number in self  # none is ever put out for another one

    def supports_tower_connector_lora(self) -> bool:
        return False

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        return default_rank

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        yield

    def add_dummy_lora(self, request: Any, rank: int) -> bool:
        """The model is tried and captured with the base model as every adapter."""
        self.put(request.lora_int_id, {})
        return True
