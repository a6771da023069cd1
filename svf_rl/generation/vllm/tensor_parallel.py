"""Several processes that form one vLLM engine: each has a shard of every weight, and all generate together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed
from transformers import PretrainedConfig

from svf_rl.errors import SVFError

# vLLM pads a vocabulary to a multiple of this before it divides it.
_VOCABULARY_PADDING = 64


class EngineRanks:
    """The processes of this process's engine: consecutive ranks, as many as vLLM's tensor-parallel size, which make
    each of its calls together."""

    def __init__(self, size: int):
        self.size = size
        self.first = True
        if size > 1:
            from vllm.distributed.parallel_state import get_tp_group

            self._group = get_tp_group()
            self.first = self._group.rank_in_group == 0
            # a shared-memory channel for engines that one process controls; nothing would remove it at the end
            self._group.mq_broadcaster = None

    def gather(self, items: Sequence[Any]) -> tuple[list[Any], slice]:
        """The items of all ranks, in order of the ranks, and the slice of them that is this rank's."""
        if self.size == 1:
            return list(items), slice(None)
        if torch.cuda.is_available():
            # vLLM's collectives and those of the training use different communicators: while the latter are busy, the
            # former can hang on GPUs without NVLink (huggingface/trl#3671)
            distributed.barrier(device_ids=[torch.cuda.current_device()])
        by_rank: list[list[Any]] = [[] for _ in range(self.size)]
        distributed.all_gather_object(by_rank, list(items), group=self._group.cpu_group)
        start = sum(map(len, by_rank[: self._group.rank_in_group]))
        return [item for part in by_rank for item in part], slice(start, start + len(items))


def check_processes(size: int, processes: int) -> None:
    """Raises `SVFError` unless `processes` processes divide into engines of `size` processes."""
    if size < 1:
        raise SVFError(f"vllm_tensor_parallel_size must be at least 1, not {size}")
    if size > 1 and processes == 1:
        raise SVFError(
            f"vllm_tensor_parallel_size: {size} spreads one vLLM over {size} processes, and there is one: start more "
            "(accelerate launch --num_processes), or remove the key"
        )
    if processes % size:
        raise SVFError(
            f"vllm_tensor_parallel_size ({size}) does not divide the number of processes ({processes}): change one of "
            "them"
        )


def check_divides(config: PretrainedConfig, size: int) -> None:
    """Raises `SVFError` unless vLLM can divide the model of this configuration over `size` processes."""
    part = find_undivided_part(config, size)
    if part is not None:
        raise SVFError(f"vllm_tensor_parallel_size ({size}) does not divide the model's {part}: change it")


def find_undivided_part(config: PretrainedConfig, size: int) -> str | None:
    """A part of the model that vLLM cannot divide over `size` processes; `None` if there is none."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    key_value_heads = getattr(text, "num_key_value_heads", None) or heads
    # key-value heads are repeated where there are fewer of them than processes
    repeated = key_value_heads is not None and size % key_value_heads == 0
    vocabulary = getattr(text, "vocab_size", None)
    padded = vocabulary and -(-vocabulary // _VOCABULARY_PADDING) * _VOCABULARY_PADDING
    parts = {
        "attention heads": heads,
        "key-value heads": None if repeated else key_value_heads,
        "MLP columns": getattr(text, "intermediate_size", None),
        "tokens of the padded vocabulary": padded,
    }
    return next((f"{count} {name}" for name, count in parts.items() if count and count % size), None)
