"""What a value must be beyond its type: the range of each number, and texts that can be shown and passed on."""

import math
from collections.abc import Mapping
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.settings.yaml_values import shown

# Every other number is one of fp32, and an integer has at most 31 bits.
_LARGEST = 2**31 - 1
_LARGEST_FLOAT = 3.4e38
_LONGEST = 4096  # letters of a text of one line, as of a path
_INTERVALS = {
    "[0, inf)": "learning_rate weight_decay max_grad_norm warmup_steps warm_up_steps eval_delay init_std top_k "
    "entropy_coef vllm_importance_sampling_clip_min save_total_limit layers_to_transform",
    "[1e-30, inf)": "adam_epsilon",
    "[0.01, 100]": "repetition_penalty",
    "(0, inf)": "num_train_epochs logging_steps eval_steps save_steps vllm_importance_sampling_clip_max max_multiplier "
    "evolution_sigma tool_timeout",
    "[1, inf)": "lora_r lora_alpha per_device_train_batch_size gradient_accumulation_steps generation_batch_size "
    "steps_per_generation num_generations num_iterations torch_empty_cache_steps ddp_bucket_cap_mb ddp_timeout "
    "max_completion_length pad_to_multiple_of vllm_max_model_length early_stopping_patience num_completions_to_print "
    "print_completions_steps dataloader_prefetch_factor max_tool_calling_iterations curriculum_updates",
    "[0, 1]": "min_p",
    "[0, 1)": "adam_beta1 adam_beta2 lora_dropout",
    "(0, 1]": "vllm_gpu_memory_utilization curriculum_accuracy",
    "(0, 1)": "validation_share",
    "[0, 4294967295]": "seed data_seed",  # those of NumPy
    "[0, 256]": "dataloader_num_workers",
}
_RANGES = {key: interval for interval, keys in _INTERVALS.items() for key in keys.split()}
_LINES = ("system_prompt",)
"""Keys whose text may have several lines, or be empty."""


def check_limits(values: Mapping[str, Any], empty: Mapping[str, Any]) -> None:
    """Raises `SVFError` for the first value of a recipe that its key cannot have. `empty` has the defaults, of which
    some are the empty text."""
    for key, value in values.items():
        if isinstance(value, str) and key not in _LINES:
            if not value.strip() and value != empty.get(key):
                raise SVFError(f"{key} must not be empty: remove it, or give it a value")
            if not value.isprintable():
                raise SVFError(f"{key} must be one line of printable text, not {shown(value)}")
            if len(value) > _LONGEST:
                raise SVFError(f"{key} must have at most {_LONGEST} letters, not {len(value)}")
        _check_parts(key, value)


def check_numbers(values: Mapping[str, Any]) -> None:
    """Raises `SVFError` for the first number that is out of the range of its key."""
    for key, value in values.items():
        if isinstance(value, int | float):
            _check_number(key, value)


def _check_parts(key: str, value: Any) -> None:
    match value:
        case str():
            if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
                raise SVFError(f"{key} must be text without NUL and broken characters, not {shown(value)}")
        case int() | float():
            _check_number(key, value)
        case list():
            for part in value:
                _check_parts(key, part)
        case dict():
            for name, part in value.items():
                _check_parts(key, name)
                _check_parts(f"{key}: {name}", part)


def _check_number(key: str, value: int | float) -> None:
    if isinstance(value, bool):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise SVFError(f"{key} must be a finite number, not {value}")
    if key == "max_steps" and value != -1 and value < 1:
        raise SVFError(f"max_steps must be at least 1, or -1 for num_train_epochs, not {shown(value)}")
    interval = _RANGES.get(key, "(-inf, inf)")
    low, high = (float(end) for end in interval[1:-1].split(","))
    below = value <= low if interval[0] == "(" else value < low
    above = value >= high if interval[-1] == ")" else value > high
    if below or above:
        starts = f"{'above' if interval[0] == '(' else 'at least'} {low:.12g}"
        ends = "" if math.isinf(high) else f" and {'below' if interval[-1] == ')' else 'at most'} {high:.12g}"
        raise SVFError(f"{key} must be {starts}{ends}, not {shown(value)}")
    if abs(value) > _LARGEST_FLOAT and isinstance(value, float):
        raise SVFError(f"{key} must be between {-_LARGEST_FLOAT:g} and {_LARGEST_FLOAT:g}, not {value:g}")
    if isinstance(value, int) and abs(value) > max(_LARGEST, high if math.isfinite(high) else 0):
        raise SVFError(f"{key} must be at most {_LARGEST}, not {shown(value)}")
