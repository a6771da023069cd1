"""The memory of a training run as pure functions: bytes by kind of tensor, their share of a GPU, and what is left; and
sizes as text.

Bytes of tensors are exact. Constants of other programs are named here, with their source.
"""

import re
from dataclasses import astuple, dataclass

from svf_rl.errors import SVFError
from svf_rl.training.zero import REDUCE_BUCKET_VALUES

# DeepSpeed's default (runtime/zero/config.py) for the largest number of gathered values that stage 3 keeps alive.
MAX_LIVE_VALUES = 1_000_000_000

# An allowance for what the tensors do not explain: CUDA's context, cuBLAS and NCCL work spaces, fragmentation.
RESERVE = 3 * 2**29  # 1.5 GiB

STAGES = (0, 1, 2, 3)  # ZeRO; 0 is DDP, or one process

# How many numbers an optimiser keeps for each trained value, by the beginning of its name in transformers.
_OPTIMIZER_STATES = {
    "sgd": 0, "adagrad": 1, "rmsprop": 1, "lion": 1, "paged_lion": 1, "lomo": 0, "adafactor": 1,
    "ademamix": 3, "paged_ademamix": 3, "adam": 2, "paged_adam": 2, "stable_adamw": 2, "schedule_free_sgd": 1,
    "schedule_free": 2,
}  # fmt: skip

_UNITS = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


@dataclass(frozen=True)
class TensorBytes:
    """Bytes of a whole model in training by kind of tensor, before anything is sharded."""

    base: int = 0  # the frozen weights `W` and everything else of the base model, tied weights once
    buffers: int = 0  # of the base model, such as rotary frequencies
    factors: int = 0  # `U` and `Vt`, in the model's type
    singular_values: int = 0  # `s`, in fp32
    masks: int = 0  # the experts' masks of a combination, in fp32
    trained: int = 0  # `z` in fp32; `A` and `B` of LoRA; `α` of a combination; whole modules (`modules_to_save`)
    gradients: int = 0  # of what is trained, in its type
    optimizer: int = 0  # its state

    @property
    def total(self) -> int:
        return sum(astuple(self))


def optimizer_bytes(optimizer: str, trained_bytes: int) -> tuple[int, bool]:
    """Bytes of an optimiser's state without its step counters, and whether the optimiser is known here; an unknown one
    counts as Adam."""
    name = optimizer.lower()
    known = [prefix for prefix in _OPTIMIZER_STATES if name.startswith(prefix)]
    states = _OPTIMIZER_STATES[max(known, key=len)] if known else 2
    # states of 8 bits a value stand for ones of 32
    size = trained_bytes // 4 if "8bit" in name else trained_bytes // 8 if "4bit" in name else trained_bytes
    return states * size, bool(known)


@dataclass(frozen=True)
class Run:
    """How a run uses its GPUs."""

    processes: int  # GPUs of all nodes
    stage: int  # of ZeRO, 0 without
    micro_batch: int  # sequences of one forward pass on one GPU
    accumulation: int  # micro-batches of an update
    checkpointing: bool  # of gradients
    rollouts: str  # "colocated" or "server" vLLM, or "transformers"
    share: float  # of a GPU's memory that a colocated vLLM takes
    sleep: bool  # whether it gives that back while the model is trained
    tensor_parallel: int  # GPUs that share one colocated vLLM
    shareable: bool = False  # whether the adapter lets a colocated vLLM share the model's weights

    @property
    def shared(self) -> bool:
        """Whether the model's weights and those of a colocated vLLM are the same."""
        return self.shareable and self.rollouts == "colocated" and self.tensor_parallel == 1 and self.stage < 3


def held_bytes(tensors: TensorBytes, run: Run) -> dict[str, int]:
    """
    Bytes of one GPU by kind of tensor, allocated throughout the run.

    Stage 1 shards the optimiser's state, stage 2 gradients too, stage 3 the base weights and factors too. `s` is a
    buffer, which ZeRO does not shard, and DeepSpeed keeps parameters as small as `z` whole in stage 3. Under ZeRO the
    optimiser works on an fp32 copy of the trained values. Weights that are shared with vLLM are in its share of the
    GPU, less those of the adapted matrices, which are on no GPU.
    """
    n, stage = run.processes, run.stage
    state = tensors.optimizer + (tensors.trained if stage else 0)

    def part(size: int, from_stage: int) -> int:
        return -(-size // n) if stage >= from_stage else size

    return {
        "base weights": 0 if run.shared else part(tensors.base, 3),
        "factors U, Vt": part(tensors.factors, 3),
        "s, masks, buffers": tensors.singular_values + tensors.masks + tensors.buffers,
        "trained values": tensors.trained,
        "gradients": part(tensors.gradients, 2),
        "optimiser state": part(state, 1),
    }


def bucket_bytes(tensors: TensorBytes, run: Run) -> int:
    """Bytes through which gradients are reduced: DDP's copy of them, or DeepSpeed's buffer."""
    if run.stage:
        return min(tensors.gradients, 4 * REDUCE_BUCKET_VALUES)
    return tensors.gradients if run.processes > 1 else 0


def gathered_bytes(tensors: TensorBytes, run: Run, output_layer: int, itemsize: int) -> int:
    """The most bytes that stage 3 gathers at the same time: the whole output layer for the loss, and live weights."""
    if run.stage < 3:
        return 0
    return output_layer + min(tensors.base + tensors.factors - output_layer, MAX_LIVE_VALUES * itemsize)


@dataclass(frozen=True)
class GPU:
    """One GPU of a run, in bytes."""

    held: dict[str, int]  # of [`held_bytes`]
    buckets: int  # of [`bucket_bytes`]
    gathered: int  # of [`gathered_bytes`]
    activations: int | None  # at the peak of one micro-batch; `None` where that is not known
    engine: int  # a colocated vLLM's share
    # at the peak of each part of a step, the reserve included
    update: int
    rollout: int
    sync: int

    @property
    def peak(self) -> int:
        return max(self.update, self.rollout, self.sync)


@dataclass(frozen=True)
class KVCache:
    """What is left for the cache of a colocated vLLM on one GPU."""

    bytes: int
    bytes_a_token: int | None  # `None` where that is not known

    @property
    def tokens(self) -> int | None:
        return None if not self.bytes_a_token else max(0, self.bytes) // self.bytes_a_token

    def sequences(self, length: int) -> int | None:
        return None if self.tokens is None else self.tokens // length


def kv_cache(run: Run, memory: int, engine_weights: int, bytes_a_token: int | None) -> KVCache:
    """A colocated vLLM's share of a GPU minus its copy of the weights (`engine_weights` bytes over all its GPUs)."""
    return KVCache(int(run.share * memory) - -(-engine_weights // run.tensor_parallel), bytes_a_token)


def parse_memory(text: str) -> int:
    """
    Bytes of a size such as `80GB` (10⁹ bytes) or `80GiB` (2³⁰ bytes); capitals and spaces do not matter.

    Raises:
        SVFError: no positive number with a known unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise SVFError(
            f"--gpu-memory {text!r} is not a valid size: give a number and MB, GB, TB, MiB, GiB or TiB, as in 80GB"
        )
    size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size <= 0:
        raise SVFError(f"--gpu-memory must be more than 0, not {text}")
    return size


def gib(size: int) -> str:
    """Bytes in units of 2³⁰, with two decimals, or four where the number is small."""
    value = size / 2**30
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.4f}"
