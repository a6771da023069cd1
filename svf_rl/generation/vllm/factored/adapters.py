"""Which row of the table each adapter of an engine has. vLLM calls this where it would call its manager of LoRAs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from svf_rl.errors import SVFError
from svf_rl.generation.vllm.factored.table import BASE, MultiplierTable


class AdapterRows:
    """Adapters by the number (`lora_int_id`) of the requests for them; 0 is the base model."""

    def __init__(self, table: MultiplierTable):
        self.table = table
        self._row_of = {0: BASE}

    def __contains__(self, number: int) -> bool:
        return number in self._row_of

    def put(self, number: int, multipliers: Mapping[str, Tensor]) -> None:
        """Answer requests with this number by these `m` (r,) of matrices. Raises `SVFError` for an adapter that does
        not suit, see [`MultiplierTable`]; an earlier one of the number stays then."""
        if number in self._row_of:
            self.table.write(self._row_of[number], multipliers)
        else:
            self._row_of[number] = self.table.add(multipliers)

    def check(self, number: int) -> None:
        """Raises `SVFError` where no adapter has the number."""
        if number not in self:
            raise SVFError(f"the engine has no adapter {number} (any more): put it there before asking for it")

    # What vLLM asks of a manager of adapters:

    def set_active_adapters(self, requests: set[Any], mapping: Any) -> None:
        """Give the tokens of a batch the rows of their adapters."""
        numbers = mapping.index_mapping
        self.table.assign(np.fromiter(map(self._row_of.__getitem__, numbers), np.int64, len(numbers)))

    def add_adapter(self, request: Any) -> bool:
        self.check(request.lora_int_id)
        return True

    def remove_adapter(self, number: int) -> bool:
        if number not in self.list_adapters():
            return False
        row = self._row_of.pop(number)
        if row != BASE:
            self.table.drop(row)
        return True

    def list_adapters(self) -> set[int]:
        return set(self._row_of) - {0}

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
        """The model is tried and captured with the row of the base."""
        self._row_of[request.lora_int_id] = BASE
        return True
