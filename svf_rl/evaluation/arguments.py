"""What an evaluation is asked for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from svf_rl.errors import SVFError
from svf_rl.tasks import TaskOptions


@dataclass
class EvaluationArguments:
    """
    Args:
        model (`str`): folder or Hub name of the base model; `quickstart` is the bundled one.
        tasks (`list[str]`): names of tasks; `quickstart:choice` names a skill of the quickstart.
        adapters (`list[str]`, *optional*): saved SVF or LoRA adapters, each compared with the base.
        options ([`TaskOptions`], *optional*): where the rows come from.
        reward (`str` or mapping, *optional*): grades in place of the tasks' own reward, as a recipe names it.
        limit (`int`, *optional*): only the first so many items of a task.
        samples (`int`, *optional*, defaults to 1): completions an item.
        temperature (`float`, *optional*): default: 0 (greedy) for one sample, 0.8 for several.
        top_p (`float`, *optional*, defaults to 1.0): draw from the most likely tokens that make up this share.
        k (`list[int]`, *optional*): the k of pass@k; default: 1 and the number of samples.
        out (`str`, *optional*): folder of the results; default: `runs/eval-` and the model's name.
        backend (`str`, *optional*, defaults to `"vllm"`): `"vllm"` or `"transformers"`.
        seed (`int`, *optional*, defaults to 0): of the samples.
        max_tokens (`int`, *optional*): tokens of a completion; default: the task's.
        dtype (`str`, *optional*, defaults to `"auto"`): of the weights; auto is that of the files, and on a machine
            without CUDA float32 in place of a half-precision type.
        batch_size (`int`, *optional*): completions written together, and lost together when the run is killed;
            default: 512 with vLLM, 32 with transformers.
        trust_remote_code (`bool`, *optional*, defaults to `False`): run model code that comes from the Hub.
        gpu_memory_utilization (`float`, *optional*, defaults to 0.85): share of the GPU's memory for vLLM.
        enforce_eager (`bool`, *optional*, defaults to `False`): vLLM compiles nothing: a faster start, slower tokens.
        chat_template_kwargs (`dict`, *optional*): passed on to the chat template, such as `{"enable_thinking": False}`.
        max_failed (`float`, *optional*, defaults to 0.25): the share of a batch whose checks may fail by themselves
            before the run stops.

    Raises:
        SVFError: a value is out of range, or two do not go together.
    """

    model: str
    tasks: list[str]
    adapters: list[str] = field(default_factory=list)
    options: TaskOptions = field(default_factory=TaskOptions)
    reward: str | Mapping[str, Any] | None = None
    limit: int | None = None
    samples: int = 1
    temperature: float | None = None
    top_p: float = 1.0
    k: list[int] | None = None
    out: str | None = None
    backend: Literal["vllm", "transformers"] = "vllm"
    seed: int = 0
    max_tokens: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_size: int | None = None
    trust_remote_code: bool = False
    gpu_memory_utilization: float = 0.85
    enforce_eager: bool = False
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    max_failed: float = 0.25

    def __post_init__(self) -> None:
        if not self.tasks:
            raise SVFError("name at least one task, as in --tasks gsm8k,math")
        twice = [name for name in self.tasks if self.tasks.count(name) > 1]
        if twice:
            raise SVFError(f"task {twice[0]!r} is named twice")
        for name in ("limit", "samples", "max_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SVFError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if self.temperature is None:
            self.temperature = 0.0 if self.samples == 1 else 0.8
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise SVFError(f"--temperature must be 0 (greedy) or more, not {self.temperature}")
        if self.samples > 1 and self.temperature == 0:
            raise SVFError(f"--samples {self.samples} at temperature 0 are all the same: give --temperature above 0")
        for name in ("top_p", "gpu_memory_utilization"):
            if not 0 < getattr(self, name) <= 1:
                raise SVFError(f"--{name.replace('_', '-')} must be above 0 and at most 1, not {getattr(self, name)}")
        if not 0 <= self.max_failed <= 1:
            raise SVFError(f"--max-failed must be between 0 and 1, not {self.max_failed}")
        if self.k is None:
            self.k = sorted({1, self.samples})
        for k in self.k:
            if not 1 <= k <= self.samples:
                raise SVFError(
                    f"pass@{k} needs at least {max(k, 1)} samples an item: --k is at most --samples ({self.samples})"
                )
        self.batch_size = self.batch_size or (512 if self.backend == "vllm" else 32)
