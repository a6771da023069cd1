"""What becomes of a recipe's keys where there is no GPU."""

import os
from collections.abc import Collection, Mapping
from typing import Any

import torch

from svf_rl.errors import SVFError


def cpu_process_keys() -> dict[str, Any]:
    """Settings without which each process that accelerate starts on the CPU would count as the only one: not all of its
    launchers pass on its `use_cpu`, and TrainingArguments does not read it."""
    launched = "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        if on_cpu:
            raise SVFError("with ACCELERATE_USE_CPU in the environment accelerate leaves DeepSpeed out: unset it")
        return {"ddp_backend": "gloo"} if launched else {}
    return {"use_cpu": True} if launched or on_cpu else {}


def drop_gpu_keys(values: Mapping[str, Any], explicit: Collection[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """The values for a machine without CUDA, and one line for each that was changed.

    A half-precision `dtype` becomes float32, unless it is among the `explicit` keys: on a CPU it works, only slowly.
    """
    kept, warnings = dict(values), []
    for key in ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32", "vllm_enable_sleep_mode"):
        # `bf16: null` would let TRL turn it on
        if kept.get(key, False) is not False:
            kept[key] = False
            warnings.append(f"no CUDA device: {key} is off")
    if "vllm_gpu_memory_utilization" in kept:
        del kept["vllm_gpu_memory_utilization"]
        warnings.append("no CUDA device: vllm_gpu_memory_utilization has no effect")
    if kept.get("dtype") in ("bfloat16", "float16") and "dtype" not in explicit:
        warnings.append(f"no CUDA device: dtype is float32 (--dtype {kept['dtype']} keeps what the recipe says)")
        kept["dtype"] = "float32"
    if str(kept.get("attn_implementation")).startswith("flash_attention"):
        warnings.append(f"no CUDA device: attn_implementation is sdpa instead of {kept['attn_implementation']}")
        kept["attn_implementation"] = "sdpa"
    return kept, warnings


def without_autocast(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values without those that transformers refuses without a GPU, and one line for each that matters."""
    kept = {key: value for key, value in values.items() if key not in ("use_cpu", "tf32")}
    warnings = []
    for key in ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"):
        if kept.pop(key, False):
            warnings.append(f"{key}: the half-precision copies of autocast are not part of the plan")
    return kept, warnings
