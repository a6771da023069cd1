"""The memory of a training run as pure functions: bytes by kind of tensor, their share of a GPU, and what is left.

Bytes of tensors are exact. Constants of other programs that are not are named here, with their source.
"""

from dataclasses import dataclass, fields

from svf_rl.training.gradient_buffer import REDUCE_BUCKET_VALUES

# DeepSpeed's default (runtime/zero/config.py): stage 3 keeps at most so many gathered values alive.
MAX_LIVE_VALUES = 1_000_000_000

# What no tensor of ours explains: CUDA's context, cuBLAS and NCCL work spaces, fragmentation. An allowance.
RESERVE = 3 * 2**29  # 1.5 GiB

STAGES = (0, 1, 2, 3)  # ZeRO; 0 is DDP, or one process

# Numbers of the size of a trained value that an optimiser keeps for it, by the beginning of its name in transformers.
_OPTIMIZER_STATES = {
    "sgd": 0, "adagrad": 1, "rmsprop": 1, "lion": 1, "paged_lion": 1, "lomo": 0, "adafactor": 1,
    "ademamix": 3, "paged_ademamix": 3, "adam": 2, "paged_adam": 2, "stable_adamw": 2, "schedule_free_sgd": 1,
    "schedule_free": 2,
}  # fmt: skip


@dataclass(frozen=True)
class TensorBytes:
    """
    Bytes of a whole model in training by kind of tensor, before anything is sharded.

    Args:
        base (`int`): The frozen weights `W` and everything else of the base model, tied weights once.
        buffers (`int`): What the base model holds beside its parameters, such as rotary frequencies.
        factors (`int`): `U` and `Vt`, in the model's type.
        singular_values (`int`): `s`, in fp32.
        masks (`int`): The experts' masks of a combination, in fp32.
        trained (`int`): `z` in fp32; `A` and `B` of LoRA; `α` of a combination; whole modules (`modules_to_save`).
        gradients (`int`): Of what is trained, in its type.
        optimizer (`int`): State of the optimiser.
    """

    base: int = 0
    buffers: int = 0
    factors: int = 0
    singular_values: int = 0
    masks: int = 0
    trained: int = 0
    gradients: int = 0
    optimizer: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


def optimizer_bytes(optimizer: str, trained_bytes: int) -> tuple[int, bool]:
    """Bytes of an optimiser's state, its step counters apart, and whether the optimiser is one that is known here; an
    unknown one is taken for Adam."""
    name = optimizer.lower()
    known = [prefix for prefix in _OPTIMIZER_STATES if name.startswith(prefix)]
    states = _OPTIMIZER_STATES[max(known, key=len)] if known else 2
    # states of 8 bits a value stand for ones of 32
    size = trained_bytes // 4 if "8bit" in name else trained_bytes // 8 if "4bit" in name else trained_bytes
    return states * size, bool(known)


@dataclass(frozen=True)
class Run:
    """
    How a run uses its GPUs.

    Args:
        processes (`int`): GPUs of all nodes.
        stage (`int`): ZeRO stage, 0 without.
        micro_batch (`int`): Sequences of one forward pass on one GPU.
        accumulation (`int`): Micro-batches of an update.
        checkpointing (`bool`): Gradient checkpointing.
        rollouts (`str`): `"colocated"` or `"server"` vLLM, or `"transformers"`.
        share (`float`): Of a GPU's memory that a colocated vLLM takes.
        sleep (`bool`): Whether it gives that back while the model is trained.
        tensor_parallel (`int`): GPUs that share one colocated vLLM.
    """

    processes: int
    stage: int
    micro_batch: int
    accumulation: int
    checkpointing: bool
    rollouts: str
    share: float
    sleep: bool
    tensor_parallel: int


def held(tensors: TensorBytes, run: Run) -> dict[str, int]:
    """
    Bytes of one GPU by kind of tensor, which stay throughout the run.

    Stage 1 shards the optimiser's state, stage 2 gradients too, stage 3 the base weights and factors too. `s` is a
    buffer, which ZeRO does not shard, and DeepSpeed keeps parameters as small as `z` whole in stage 3. Under ZeRO the
    optimiser works on an fp32 copy of what it updates.
    """
    n, stage = run.processes, run.stage
    state = tensors.optimizer + (tensors.trained if stage else 0)

    def part(size: int, from_stage: int) -> int:
        return -(-size // n) if stage >= from_stage else size

    return {
        "base weights": part(tensors.base, 3),
        "factors U, Vt": part(tensors.factors, 3),
        "s, masks, buffers": tensors.singular_values + tensors.masks + tensors.buffers,
        "trained values": tensors.trained,
        "gradients": part(tensors.gradients, 2),
        "optimiser state": part(state, 1),
    }


def buckets(tensors: TensorBytes, run: Run) -> int:
    """Bytes through which gradients are reduced: DDP's copy of them, or DeepSpeed's buffer."""
    if run.stage:
        return min(tensors.gradients, 4 * REDUCE_BUCKET_VALUES)
    return tensors.gradients if run.processes > 1 else 0


def gathered(tensors: TensorBytes, run: Run, output_layer: int, itemsize: int) -> int:
    """Bytes that stage 3 gathers at most at one time: the output layer, whole for the loss, and live weights."""
    if run.stage < 3:
        return 0
    return output_layer + min(tensors.base + tensors.factors - output_layer, MAX_LIVE_VALUES * itemsize)


@dataclass(frozen=True)
class GPU:
    """
    One GPU of a run, in bytes.

    Args:
        held (`dict[str, int]`): By kind of tensor, throughout the run.
        buckets (`int`): See [`buckets`].
        gathered (`int`): See [`gathered`].
        activations (`int`, *optional*): At the peak of one micro-batch; `None` where that is not known.
        engine (`int`): A colocated vLLM's share of the GPU.
        update (`int`), rollout (`int`), sync (`int`): At the peak of each part of a step, the reserve included.
    """

    held: dict[str, int]
    buckets: int
    gathered: int
    activations: int | None
    engine: int
    update: int
    rollout: int
    sync: int

    @property
    def peak(self) -> int:
        return max(self.update, self.rollout, self.sync)


def gpu(
    tensors: TensorBytes,
    run: Run,
    memory: int,
    activations: int | None,
    output_layer: int,
    itemsize: int,
    rebuild: int,
    largest_factors: int,
    generation: int,
) -> GPU:
    """
    The memory of one GPU of a run.

    Args:
        tensors ([`TensorBytes`]): The whole model.
        run ([`Run`]): How it is run.
        memory (`int`): Bytes of the GPU.
        activations (`int`, *optional*): Bytes at the peak of one micro-batch.
        output_layer (`int`): Bytes of the output layer's weight.
        itemsize (`int`): Bytes of a value of the base model.
        rebuild (`int`): Bytes at the peak of rebuilding one weight for a sync.
        largest_factors (`int`): Bytes of `W`, `U` and `Vt` of the largest adapted matrix, gathered for it in stage 3.
        generation (`int`): Bytes of transformers' generation, where the model in training generates.
    """
    parts = held(tensors, run)
    always = sum(parts.values()) + RESERVE
    engine = int(run.share * memory) if run.rollouts == "colocated" else 0
    reduce, whole = buckets(tensors, run), gathered(tensors, run, output_layer, itemsize)
    syncs = run.rollouts == "colocated"
    return GPU(
        held=parts,
        buckets=reduce,
        gathered=whole,
        activations=activations,
        engine=engine,
        update=always + reduce + whole + (activations or 0) + (0 if run.sleep else engine),
        rollout=always + engine + (generation + whole if run.rollouts == "transformers" else 0),
        sync=always + engine + (rebuild + (largest_factors if run.stage == 3 else 0) if syncs else 0),
    )


@dataclass(frozen=True)
class KVCache:
    """What a colocated vLLM has left for its cache: bytes of one GPU, and of one token on one GPU (`None`: unknown)."""

    bytes: int
    bytes_a_token: int | None

    @property
    def tokens(self) -> int | None:
        return None if not self.bytes_a_token else max(0, self.bytes) // self.bytes_a_token

    def sequences(self, length: int) -> int | None:
        return None if self.tokens is None else self.tokens // length


def kv_cache(run: Run, memory: int, engine_weights: int, bytes_a_token: int | None) -> KVCache:
    """A colocated vLLM's share of a GPU less its copy of the weights (`engine_weights` bytes over all its GPUs)."""
    return KVCache(int(run.share * memory) - -(-engine_weights // run.tensor_parallel), bytes_a_token)
