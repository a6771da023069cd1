"""Changes to vLLM on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from torch import nn
from torch.nn import functional as F

from svf_rl.errors import SVFError

_LONGEST = 4096


def cpu_length(model: str, revision: str | None, trust_remote_code: bool) -> int:
    """Tokens of prompt and completion that vLLM allows on the CPU by default: the model's own limit, as vLLM
    understands it, and at most 4,096. There the cache for one sequence of 131,072 tokens takes many GB, and the first
    step is tried at full length."""
    from vllm.engine.arg_utils import EngineArgs

    engine = EngineArgs(model=model, revision=revision, trust_remote_code=trust_remote_code)
    return min(_LONGEST, engine.create_model_config().max_model_len)


@contextmanager
def plain_cpu_weights() -> Iterator[None]:
    """
    Engines built within it compute linear layers with PyTorch and keep their weights as they are.

    By default vLLM repacks linear weights for oneDNN (float32 everywhere, bf16 where the CPU has instructions for it),
    sgl or zentorch kernels and drops the originals; a repacked weight cannot be replaced later.
    """
    from vllm.model_executor.layers import utils

    original = utils.dispatch_cpu_unquantized_gemm

    def dispatch(layer: nn.Module, remove_weight: bool) -> None:
        if layer.weight.ndim != 2:  # convolutions and experts have no adapter; leave them to vLLM
            original(layer, remove_weight)
        else:
            layer.cpu_linear = F.linear

    with patch.object(utils, "dispatch_cpu_unquantized_gemm", dispatch):
        yield


def check_not_repacked(model: nn.Module) -> None:
    """Raises `SVFError` where vLLM repacked a weight of its `model` all the same."""
    empty = [name for name, parameter in model.named_parameters() if parameter.numel() == 0]
    if empty:
        raise SVFError(f"vLLM repacked {empty[0]}, so that no weight can be synced: report this with your CPU's name")


@contextmanager
def plain_cpu_collectives() -> Iterator[None]:
    """
    Engines built within it communicate through `torch.distributed`.

    By default the processes of one vLLM use shared memory on CPUs with AVX-512, under a name that is the same for every
    run started by a launcher: two runs on one machine would write into the same memory.
    """
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    with patch.object(CpuCommunicator, "_all_group_ranks_share_shm_group_name", lambda self: False):
        yield
