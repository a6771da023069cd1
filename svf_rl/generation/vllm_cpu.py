"""Keeping vLLM's weights loadable on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F


@contextmanager
def plain_cpu_weights() -> Iterator[None]:
    """
    Engines built within it compute linear layers with PyTorch and keep their weights as they are.

    By default vLLM repacks linear weights for oneDNN (float32 everywhere, bf16 where the CPU has instructions for it),
    sgl or zentorch kernels and drops the originals; nothing can be loaded into a repacked weight afterwards.
    """
    from vllm.model_executor.layers import utils

    original = utils.dispatch_cpu_unquantized_gemm

    def dispatch(layer: nn.Module, remove_weight: bool) -> None:
        if layer.weight.ndim != 2:  # convolutions and experts have no adapter; leave them to vLLM
            return original(layer, remove_weight)
        layer.cpu_linear = _linear
        return None

    utils.dispatch_cpu_unquantized_gemm = dispatch
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = original


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x, weight, bias)
