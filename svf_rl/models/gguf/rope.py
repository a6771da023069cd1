"""Llama 3.1's scaling of rotary frequencies, which GGUF holds as a factor for each pair of a head."""

from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from svf_rl.errors import SVFError

TENSOR = "rope_freqs.weight"
# What published models have: the factor, and the length that they were trained with.
_PUBLISHED = [(factor, 8192) for factor in (8.0, 32.0)]


def frequency_factors(config: PretrainedConfig) -> np.ndarray | None:
    """By what llama.cpp divides the frequency of each pair, (head / 2,) in fp32; `None` where nothing is scaled."""
    rope: dict[str, Any] = config.rope_parameters
    if rope.get("rope_type", "default") != "llama3":
        return None
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, head, 2, dtype=torch.float64) / head)
    lengths = 2 * torch.pi / plain
    trained, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((trained / lengths - low) / (high - low)).clamp(0, 1)
    return (1 / (smooth + (1 - smooth) / rope["factor"])).float().numpy()


def set_scaling(config: PretrainedConfig, factors: np.ndarray) -> None:
    """Set the scaling of which `factors` (head / 2,) come. Raises `SVFError` where it is of no published model."""
    plain = config.rope_parameters
    for factor, trained in _PUBLISHED:
        lengths = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": trained}
        config.rope_parameters = {**plain, "rope_type": "llama3", "factor": factor, **lengths}
        own = frequency_factors(config)
        if own is not None and own.shape == factors.shape and np.allclose(own, factors, rtol=1e-4):
            return
    raise SVFError("its rotary frequencies are scaled in a way that is not known here: use the model's own files")
