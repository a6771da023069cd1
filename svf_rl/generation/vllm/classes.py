"""Classes of transformers that a vLLM engine in this process and the model in training share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import nn


@contextmanager
def separate_classes() -> Iterator[Callable[[nn.Module], None]]:
    """
    vLLM's Transformers backend builds its model from transformers' own class and turns that class into one that
    compiles its calls, after which no other model of it can be called. Here the class is afterwards what it was.

    Yields:
        A function for vLLM's model: within it, the modules of such classes become members of subclasses that compile.
    """
    from vllm.model_executor.models.transformers import base

    before: dict[type, tuple[tuple[type, ...], dict[str, Any]]] = {}
    decorate = base.Base._decorate_cls_for_torch_compile

    def remember(self: Any, cls: type, *args: Any, **kwargs: Any) -> None:
        before.setdefault(cls, (cls.__bases__, dict(vars(cls))))
        decorate(self, cls, *args, **kwargs)

    def separate(model: nn.Module) -> None:
        changed = {cls: _subclass(cls, bases, attributes) for cls, (bases, attributes) in before.items()}
        for module in model.modules():
            if type(module) in changed:
                module.__class__ = changed[type(module)]

    with patch.object(base.Base, "_decorate_cls_for_torch_compile", remember):
        try:
            yield separate
        finally:
            for cls, (bases, attributes) in before.items():
                for name in _added(cls, attributes):
                    delattr(cls, name)
                    if name in attributes:
                        setattr(cls, name, attributes[name])
                cls.__bases__ = bases


def _added(cls: type, before: dict[str, Any]) -> dict[str, Any]:
    """The attributes that `cls` itself did not have, or had with another value."""
    return {name: value for name, value in vars(cls).items() if before.get(name, before) is not value}


def _subclass(cls: type, bases: tuple[type, ...], before: dict[str, Any]) -> type:
    """What `cls` has become, as a subclass of what it was."""
    added = {**_added(cls, before), "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls, *(base for base in cls.__bases__ if base not in bases)), added)
