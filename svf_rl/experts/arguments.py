"""What is said of the engine that answers, and of a merge. Nothing slow is imported here."""

from dataclasses import dataclass
from typing import Literal

from svf_rl.described import described
from svf_rl.errors import SVFError

# vLLM's share of the GPU. Experts, their base model and its factors stand on the GPU too: a sync then takes a fraction
# of a second, on the CPU it would take a minute for 8B.
SHARE_ALONE, SHARE_BESIDE_EXPERTS = 0.85, 0.4


@dataclass(kw_only=True)
class EngineArguments:
    """How completions are made."""

    backend: Literal["vllm", "transformers"] = described(
        "vllm", "What generates: vLLM, or transformers, which is slower and starts at once."
    )
    batch_size: int | None = described(
        None, "Completions written together, and lost together when the run is killed: 512, or 32."
    )
    gpu_memory_utilization: float | None = described(
        None, f"vLLM's share of the GPU: {SHARE_ALONE}, or {SHARE_BESIDE_EXPERTS} beside experts."
    )
    enforce_eager: bool = described(False, "vLLM compiles nothing: a faster start, slower tokens.")
    seed: int = described(0, "Of the samples.")

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise SVFError(f"--batch-size must be at least 1, not {self.batch_size}")
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise SVFError(f"--gpu-memory-utilization must be above 0 and at most 1, not {share}")
        self.batch_size = self.batch_size or (512 if self.backend == "vllm" else 32)


@dataclass(frozen=True)
class MergeArguments:
    """How experts are combined and written."""

    weights: list[list[float]] | list[float] | None = described(
        None,
        "Of several experts, as in 0.5,0.5; for a scope of layers or matrices also a row a group, as in "
        "'1,0;0,1' (default: their mean).",
    )
    scope: Literal["global", "layer", "matrix"] = described(
        "global", "What a row of the weights is for: all matrices, a layer, or a matrix."
    )
    form: Literal["mask", "deviation"] = described("mask", "mask: sum of alpha*m; deviation: 1 + sum of alpha*(m-1).")
    normalized: bool = described(False, "Refuse weights that do not sum to 1.")
    max_shard_size: str = described("5GB", "Of one file of weights.")
