"""Weights that an engine and the model it was made for hold once: the model's become views of the engine's."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Adoption(TorchDispatchMode):
    """
    Within it an engine loads its weights. Where it copies one of them whole, and it is there what the model's parameter
    of that name is, the parameter's tensor is replaced by that place in the engine, which may be a part of a fused or
    padded one. What it lays out or computes in another way stays with both.

    Args:
        parameters (`Mapping[str, nn.Parameter]`): Of the model, by their names in the files.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        super().__init__()
        self._parameters = parameters
        self._read: dict[int, tuple[nn.Parameter, Tensor]] = {}  # by the address of what was read of the files
        self._copied: list[tuple[nn.Parameter, Tensor]] = []  # to where

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            place, source = args[:2]
            parameter, read = self._read.get(source.data_ptr(), (None, None))
            if parameter is not None and read is not None and source.numel() == read.numel():
                self._copied.append((parameter, place))
        return func(*args, **(kwargs or {}))

    def watch(self, weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """These weights of the files, by name, as the engine takes them one by one."""
        for name, weight in weights:
            if name in self._parameters:
                self._read[weight.data_ptr()] = (self._parameters[name], weight)
            yield name, weight
            self._adopt()

    def _adopt(self) -> None:
        for parameter, place in self._copied:
            same = place.shape == parameter.shape and place.dtype == parameter.dtype and not place.is_inference()
            if same and torch.equal(place.to(parameter.device), parameter.data):
                parameter.data = place
        if self._copied:
            self._copied.clear()
            self._read.clear()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if error[0] is None:
            self._adopt()
