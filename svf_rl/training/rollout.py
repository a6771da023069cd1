"""The generator that the settings ask for, and completions as the loss, the rewards and the metrics take them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.trainer.utils import pad

from svf_rl.errors import SVFError
from svf_rl.generation import Completion, CompletionGenerator, cut_at_stop
from svf_rl.generation.vllm.tensor_parallel import check_divides
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.storage.bundled import find_accelerate_config
from svf_rl.training.weight_sharing import start_sharing

Answer = str | list[dict[str, Any]]
"""A completion as rewards take it: text, or where the prompt is a conversation the assistant's message, or all messages
of an episode with tools."""


@dataclass
class EpisodeCounts:
    """Of the `episodes` of one process: calls of tools, those that failed, those of them that did not end in time, and
    episodes that outgrew the context."""

    episodes: int = 0
    calls: int = 0
    failures: int = 0
    timeouts: int = 0
    outgrown: int = 0


@dataclass(frozen=True)
class Rollout:
    """
    `B` prompts of one process with a completion each.

    Args:
        prompts (`list`): As the rows have them: texts or conversations.
        prompt_ids, completion_ids (`list[list[int]]`): Their tokens.
        completions (`list[Answer]`): The completions as rewards take them, what follows a stop string included.
        finished (`list[bool]`): Whether a completion ended by itself, or was cut off.
        logprobs (`list[list[float]]`, *optional*): Log-probabilities of the tokens under the generator.
        tool_masks (`list[list[int]]`, *optional*): For each token 1, or 0 where a tool or an environment wrote it.
        extra (`dict[str, list]`, *optional*): What a `rollout_func` gave for the rewards, one value a prompt.
        counts ([`EpisodeCounts`], *optional*): What the episodes with tools or environments came to.
    """

    prompts: list[Any]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    completions: list[Answer]
    finished: list[bool]
    logprobs: list[list[float]] | None = None
    tool_masks: list[list[int]] | None = None
    extra: dict[str, list[Any]] = field(default_factory=dict)
    counts: EpisodeCounts | None = None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion that the model wrote."""
        if self.tool_masks is None:
            return [len(ids) for ids in self.completion_ids]
        return [sum(mask) for mask in self.tool_masks]

    @classmethod
    def of(
        cls,
        prompts: list[Any],
        prompt_ids: list[list[int]],
        completions: Sequence[Completion],
        tokenizer: PreTrainedTokenizerBase,
    ) -> "Rollout":
        """From what a generator gave for `prompt_ids`."""
        ids = [completion.token_ids for completion in completions]
        answers: list[Answer] = tokenizer.batch_decode(ids, skip_special_tokens=True)
        if not isinstance(prompts[0], str):
            answers = [[{"role": "assistant", "content": text}] for text in answers]
        finished = [completion.finished for completion in completions]
        logprobs = [completion.logprobs for completion in completions if completion.logprobs is not None]
        return cls(prompts, prompt_ids, ids, answers, finished, logprobs if len(logprobs) == len(ids) else None)

    def tensors(self, pad_token_id: int, device: torch.device, multiple_of: int | None = None) -> dict[str, Tensor]:
        """`prompt_ids` and `prompt_mask` (B, P), padded on the left, `completion_ids` and `completion_mask` (B, T), on
        the right, and where there are any `tool_mask` and `sampling_per_token_logps` (B, T), NaN where the generator
        knows none."""

        def padded(rows: Sequence[Sequence[Any]], value: int, side: str, dtype: torch.dtype = torch.long) -> Tensor:
            return pad([torch.tensor(row, dtype=dtype) for row in rows], value, side, multiple_of).to(device)

        tensors = {
            "prompt_ids": padded(self.prompt_ids, pad_token_id, "left"),
            "prompt_mask": padded([[1] * len(ids) for ids in self.prompt_ids], 0, "left"),
            "completion_ids": padded(self.completion_ids, pad_token_id, "right"),
            "completion_mask": padded([[1] * len(ids) for ids in self.completion_ids], 0, "right"),
        }
        if self.tool_masks is not None:
            tensors["tool_mask"] = padded(self.tool_masks, 0, "right")
        if self.logprobs is not None:
            tensors["sampling_per_token_logps"] = padded(self.logprobs, 0, "right", torch.float)
        return tensors


def before_stop(completion: Answer, stop: Sequence[str]) -> Answer:
    """`completion` up to the first stop string in it."""
    if isinstance(completion, str):
        return cut_at_stop(completion, stop)
    return [
        {**message, "content": cut_at_stop(message.get("content") or "", stop)}
        if message["role"] == "assistant"
        else message
        for message in completion
    ]


def build_generator(
    model: PeftModel,
    args: SVFReinforceConfig,
    device: str,
    eos_token_ids: list[int],
    tokenizer: PreTrainedTokenizerBase,
    max_num_seqs: int = 256,
) -> CompletionGenerator:
    """The vLLM of `use_vllm`, colocated (where it decodes `max_num_seqs` sequences together) or on servers, or
    transformers' generation with the model in training."""
    if not args.use_vllm:
        if is_deepspeed_zero3_enabled():
            raise SVFError(
                "use_vllm=False cannot generate with a model that ZeRO-3 has shared out: set use_vllm=True, or use "
                f"{find_accelerate_config('accelerate_configs/zero2.yaml')}"
            )
        from svf_rl.generation.transformers_generator import TransformersGenerator

        return TransformersGenerator(
            model, eos_token_ids=eos_token_ids, pad_token_id=tokenizer.pad_token_id, tokenizer=tokenizer
        )
    if getattr(model.get_base_model(), "hf_quantizer", None) is not None:
        raise SVFError("use_vllm=True cannot roll out a quantised model, as vLLM has its own weights: set it to False")
    dtype = model.get_input_embeddings().weight.dtype
    if args.vllm_mode == "server":
        from svf_rl.generation.server.generator import VLLMServersGenerator

        return VLLMServersGenerator(
            args.server_urls,
            dtype=str(dtype).removeprefix("torch."),
            timeout=args.vllm_server_timeout,
            on_failure=args.vllm_server_failure,
            device=device,
            folder=args.vllm_server_folder,
        )
    from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator

    config = model.get_base_model().config
    path = config._name_or_path
    if not path:
        raise SVFError("vLLM needs the base model as a folder or Hub name: load it with from_pretrained")
    check_divides(config, args.vllm_tensor_parallel_size)
    start = partial(
        ColocatedVLLMGenerator,
        path,
        dtype=dtype,
        seed=args.seed,
        device=device,
        revision=getattr(config, "_commit_hash", None),
        max_model_len=args.vllm_max_model_length,
        max_num_seqs=max_num_seqs,
        gpu_memory_utilization=args.vllm_gpu_memory_utilization,
        enable_sleep_mode=args.vllm_enable_sleep_mode,
        enforce_eager=args.vllm_enforce_eager,
        trust_remote_code=args.trust_remote_code,
        tensor_parallel_size=args.vllm_tensor_parallel_size,
    )
    return start_sharing(model, args, lambda weights: start(shared=weights))
