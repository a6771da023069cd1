"""What an evaluation is asked for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from svf_rl.described import described
from svf_rl.episodes.arguments import ToolArguments
from svf_rl.errors import SVFError
from svf_rl.experts.arguments import EngineArguments
from svf_rl.tasks import TaskOptions


@dataclass
class EvaluationArguments(EngineArguments, ToolArguments):
    """
    What is evaluated, and how. `options` says where the rows come from, `adapters` are compared with the base.

    Raises:
        SVFError: a value is out of range, or two do not go together.
    """

    model: str
    tasks: list[str] = field(
        metadata={"help": "Such as gsm8k,math or quickstart:choice (a skill); columns for your own data."}
    )
    adapters: list[str] = field(
        default_factory=list, metadata={"help": "A saved SVF or LoRA adapter; may be given several times."}
    )
    options: TaskOptions = field(default_factory=TaskOptions)
    reward: str | Mapping[str, Any] | None = described(
        None, "Grades in place of the task's own: a name, or {name: numeric, column: gold}."
    )
    limit: int | None = described(None, "Only the first so many items of each task.")
    samples: int = described(1, "Completions an item.")
    temperature: float | None = described(None, "Default: 0, greedy; 0.8 with several samples.")
    top_p: float = described(1.0, "Draw from the most likely tokens that make up this share.")
    k: list[int] | None = described(None, "The k of pass@k, as in 1,10 (default: 1 and --samples).")
    out: str | None = described(
        None, "Folder of the results, where a second call resumes (default: runs/eval-MODEL, one for each setting)."
    )
    max_tokens: int | None = described(None, "Of a completion (default: the task's).")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = described(
        "auto", "Of the weights; auto is that of the files, without CUDA float32 for half precision."
    )
    trust_remote_code: bool = described(False, "Run model code that comes from the Hub.")
    chat_template_kwargs: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "For the chat template: '{enable_thinking: false}'."}
    )
    max_tool_calling_iterations: int | None = described(None, "With tools: turns after the first, at most.")
    tool_timeout: float = described(
        30.0, "Seconds that a call of a tool, or of an environment's reset or get_reward, may take."
    )
    max_model_length: int | None = described(
        None, "With an environment: tokens of a prompt and its completion at most (default: the model's)."
    )
    max_failed: float = described(0.25, "Share of a batch's checks that may fail by themselves.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            raise SVFError("name at least one task, as in --tasks gsm8k,math")
        twice = [name for name in self.tasks if self.tasks.count(name) > 1]
        if twice:
            raise SVFError(f"task {twice[0]!r} is named twice")
        for name in ("limit", "samples", "max_tokens", "max_tool_calling_iterations", "max_model_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SVFError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if not self.tool_timeout > 0:
            raise SVFError(f"--tool-timeout must be above 0 seconds, not {self.tool_timeout:g}")
        if self.max_tool_calling_iterations is not None and not (self.tools or self.environment):
            raise SVFError("--max-tool-calling-iterations is for tools: give --tools or --environment too")
        if self.max_model_length is not None and not self.environment:
            raise SVFError("--max-model-length is for environments, of which nobody knows what they say: leave it out")
        if self.temperature is None:
            self.temperature = 0.0 if self.samples == 1 else 0.8
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise SVFError(f"--temperature must be 0 (greedy) or more, not {self.temperature}")
        if self.samples > 1 and self.temperature == 0:
            raise SVFError(f"--samples {self.samples} at temperature 0 are all the same: give --temperature above 0")
        if not 0 < self.top_p <= 1:
            raise SVFError(f"--top-p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.max_failed <= 1:
            raise SVFError(f"--max-failed must be between 0 and 1, not {self.max_failed}")
        if self.k is None:
            self.k = sorted({1, self.samples})
        for k in self.k:
            if not 1 <= k <= self.samples:
                raise SVFError(
                    f"pass@{k} needs at least {max(k, 1)} samples an item: --k is at most --samples ({self.samples})"
                )
