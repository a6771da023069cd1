"""What vLLM does otherwise on the CPU for an engine in the training process."""

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


@contextmanager
def plain_cpu_collectives() -> Iterator[None]:
    """
    Engines built within it communicate through `torch.distributed`.

    By default the processes of one vLLM meet in shared memory on CPUs that have AVX-512, under a name that is the same
    for every run that a launcher has started: two of them on one machine would write into each other's.
    """
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    original = CpuCommunicator._all_group_ranks_share_shm_group_name
    CpuCommunicator._all_group_ranks_share_shm_group_name = lambda self: False
    try:
        yield
    finally:
        CpuCommunicator._all_group_ranks_share_shm_group_name = original


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x, weight, bias)
