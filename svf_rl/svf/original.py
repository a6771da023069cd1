"""The weights that a quantised model was made from, of which SVF takes the factors: its layers keep their kernels."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from svf_rl.errors import SVFError
from svf_rl.storage.json_files import read_json
from svf_rl.svf.checkpoint import dtype_of_model, read_weight, stored_names
from svf_rl.svf.sharding import without_values
from svf_rl.svf.stored_weights import StoredWeights, local_folder
from svf_rl.svf.targets import is_linear, quantization_of

# Of a kernel, relative to the weight that it stands for. Measured: 8 bits 0.01 to 0.03, 4 bits 0.1 to 0.35, 2 bits 0.5
# to 0.9, another matrix of the same size 1.4; and 0.41 of bitsandbytes' 4 bits on the CPU where rows have 96 values.
_LARGEST_ERROR = 0.4


def files_of(model: Any) -> tuple[nn.Module, StoredWeights, dict[str, str]]:
    """`model` without values, as its class makes it of its configuration; the checkpoint that its `name_or_path` names;
    and what the files call the weights of its linear layers. Raises `SVFError` for none, or a quantised one."""
    config, source = getattr(model, "config", None), getattr(model, "name_or_path", None)
    if not source or config is None:
        raise SVFError("the model names no checkpoint that it was loaded from")
    commit = getattr(config, "_commit_hash", None) if source == config.name_or_path else None
    folder, _ = local_folder(source, commit)
    content = read_json(folder / "config.json", "name the folder of a transformers checkpoint")
    if content.get("quantization_config") is not None:
        raise SVFError(f"{source} holds quantised weights only")
    with without_values():
        plain = type(model)(copy.deepcopy(config))
    # the files may be read much later, from another working directory
    stored = StoredWeights(source, folder.absolute(), getattr(plain, "base_model_prefix", ""))
    wanted = [f"{name}.weight" for name, module in plain.named_modules() if is_linear(module)]
    return plain, stored, stored_names(plain, stored.names, wanted)


class OriginalWeights:
    """Those of a quantised `model`, read one by one from the checkpoint that its `name_or_path` names."""

    def __init__(self, model: nn.Module):
        self._model: Any = model

    @cached_property
    def _files(self) -> tuple[nn.Module, StoredWeights, dict[str, str]]:
        return files_of(self._model)

    @contextmanager
    def _of(self, name: str, module: nn.Module) -> Iterator[None]:
        try:
            yield
        except SVFError as error:
            raise SVFError(
                f"{name} is quantized ({quantization_of(module)}), and SVF takes factors from the weights before that: "
                f"{error}. Set model.name_or_path to the unquantised checkpoint, a folder or a name on the Hub, before "
                "the adapter is put on, or load the model unquantised"
            ) from error

    def find(self, name: str, module: nn.Module) -> str:
        """What the files call the weight of the quantised `module` at that path. Raises `SVFError` for none."""
        with self._of(name, module):
            _, stored, names = self._files
            if f"{name}.weight" not in names:
                raise SVFError(f"the model's class has no linear layer {name}")
            return stored.find(names[f"{name}.weight"])[1]

    @torch.no_grad()
    def read(self, name: str, module: nn.Module) -> Tensor:
        """
        The weight `W` (out, in) of the quantised `module` of that path, in the type of the loaded model, on its device.

        Raises:
            SVFError: there is none; or the kernel computes something else than about `W x`, or passes back something
                else than about `Wᵀ g`, so that nothing below it could be trained.
        """
        key = self.find(name, module)
        with self._of(name, module):
            unquantised, stored, _ = self._files
            weight = read_weight(stored, key, unquantised.get_submodule(name))
            weight = weight.to(module.weight.device, dtype_of_model(None, unquantised, stored, key))
            error, backward = kernel_errors(module, weight)
            if not error <= _LARGEST_ERROR:
                raise SVFError(f"what it computes is {error:.0%} off those of the checkpoint, more than 4 bits explain")
        if not backward <= _LARGEST_ERROR:
            raise SVFError(
                f"{name} is quantized ({quantization_of(module)}), and its kernel passes no gradient to its input, or "
                "a wrong one: quantise weights only (not activations), or load the model unquantised; with 4 bits of "
                "bitsandbytes on a CPU load it anew, and put the adapter on before the first forward pass"
            )
        return weight


def keep_trainable(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights for inference, which it does in the first evaluation on a CPU: they
    pass no gradient then, and reading the model's `state_dict` spoils them."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def kernel_errors(module: Any, weight: Tensor) -> tuple[float, float]:
    """How far a linear layer is off `W x` and, backward, off `Wᵀ g`, relative to these, for random `x` and `g`; the
    second is infinite where it passes no gradient."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(8, size, generator=generator).to(weight) for size in reversed(weight.shape))
    with torch.enable_grad():
        y = module(x.requires_grad_())
    forward = _distance(y if module.bias is None else y - module.bias, F.linear(x, weight))
    try:
        (passed,) = torch.autograd.grad(y, x, g.to(y))
    except (RuntimeError, NotImplementedError):  # torch's words for an operation without a derivative
        return forward, float("inf")
    return forward, _distance(passed, g @ weight)


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).float().norm() / expected.float().norm().clamp_min(1e-30))
