"""Activations of one micro-batch, found by running the trainer's own forward and backward passes without data.

Every operation runs on fake tensors, which have shapes and types but no memory; the bytes of live storages are added up
as PyTorch would allocate them. So the figure is right for any architecture, and follows the code of layers and loss.
"""

import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig
from trl.models.utils import disable_gradient_checkpointing

from svf_rl.losses.objective import reinforce_loss
from svf_rl.losses.token_logprobs import LogitTransform, token_statistics
from svf_rl.svf.layer import held_factors
from svf_rl.training.packing import PackedRows
from svf_rl.training.policy import hidden_states, output_layer, reference


@dataclass(frozen=True)
class Activations:
    """Bytes alive in one micro-batch, without the model and its gradients."""

    saved: int  # after the policy's forward pass: what the backward pass needs
    # at the peak of each part, `saved` included; the reference pass comes before the policy's
    forward: int
    reference: int
    loss: int
    backward: int

    @property
    def peak(self) -> int:
        return max(astuple(self))

    def extended(self, shorter: "Activations", layers: int) -> "Activations":
        """Of a model with `layers` more layers: each adds what the last one of this model adds to `shorter`."""
        return Activations(*(a + layers * (a - b) for a, b in zip(astuple(self), astuple(shorter), strict=True)))


@dataclass(frozen=True)
class Batch:
    """What a micro-batch is."""

    sequences: int
    prompt: int  # tokens; every position counts
    completion: int
    checkpointing: bool  # of gradients
    reference: bool  # whether the loss has a KL term
    rows: PackedRows | None  # what it is computed in, without values; where there are none, in padded rows
    direction: str | None  # of the exact divergence, as in [`token_statistics`]


def trace(model: Any, batch: Batch, checkpointing_kwargs: dict[str, Any] | None = None) -> Activations:
    """
    The activations of `model`, whose tensors are fake; to be called within their mode.

    Raises:
        RuntimeError: an operation depends on values, which fake tensors do not have.
    """
    model.train()
    hook = None
    if batch.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing_kwargs)
        # as transformers' enable_input_require_grads, which cannot be undone
        hook = model.get_input_embeddings().register_forward_hook(lambda _m, _i, output: output.requires_grad_(True))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    ids = torch.zeros(batch.sequences, batch.prompt + batch.completion, dtype=torch.long)
    mask, advantages = torch.ones_like(ids), torch.zeros(batch.sequences)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    existing = [*model.parameters(), *model.buffers(), *held_factors(model), *gradients, ids, mask, advantages]
    try:
        with LiveBytes(existing) as live:
            return _passes(model, batch, ids, mask, advantages, live)
    finally:
        if hook is not None:
            hook.remove()
            model.gradient_checkpointing_disable()


def _passes(model: Any, batch: Batch, ids: Tensor, mask: Tensor, advantages: Tensor, live: "LiveBytes") -> Activations:
    """The passes of the trainer's `_statistics` and `_compute_loss`, in their order."""
    completion = batch.completion
    states = _states(batch, ids, mask)
    ref_hidden = None
    if batch.reference:
        checkpointing = disable_gradient_checkpointing(model, None) if batch.checkpointing else nullcontext()
        with torch.no_grad(), reference(model), checkpointing:
            ref_hidden = states(model)
    during_reference = live.take_peak()
    hidden = states(model)  # (n, d)
    saved, forward = live.now, live.take_peak()
    tokens = token_statistics(
        hidden, ids[:, -completion:].flatten(), *output_layer(model), LogitTransform(), ref_hidden,
        direction=batch.direction,
    )  # fmt: skip
    logps = tokens.logps.view(-1, completion)
    kl = None if tokens.kl is None else tokens.kl.view(-1, completion)
    loss = reinforce_loss(logps, advantages, mask[:, -completion:], None, kl, 0.1, "sum", float(len(ids)))
    during_loss = live.take_peak()
    loss.backward()
    return Activations(saved, forward, during_reference, during_loss, live.take_peak())


def _states(batch: Batch, ids: Tensor, mask: Tensor) -> Callable[[Any], Tensor]:
    """As the trainer's [`arrange`], from shapes."""
    if batch.rows is None:
        return lambda model: hidden_states(model, ids, mask, batch.completion).flatten(0, 1)
    shapes = {name: value for name, value in vars(batch.rows).items() if value is not None}
    empty = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in shapes.items()}
    return replace(batch.rows, **empty).hidden_states


class LiveBytes(TorchDispatchMode):
    """A context that adds up the storages created by operations, as long as they are referenced."""

    def __init__(self, existing: Iterable[Tensor]):
        super().__init__()
        self.now = self._peak = 0
        # kept alive, so that no other storage gets the same identity
        self._existing = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in existing)}
        self._seen: dict[int, weakref.ref[Any]] = {}

    def take_peak(self) -> int:
        """The most bytes alive at once since the last call."""
        peak, self._peak = self._peak, self.now
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._existing or key in self._seen:
            return

        def drop(_: Any) -> None:
            self.now -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, drop)
        self.now += size
        self._peak = max(self._peak, self.now)


def decoder_layers(model: nn.Module, config: PretrainedConfig) -> nn.ModuleList | None:
    """The list of the model's layers where all of them are alike, and several; else `None`."""
    count = getattr(config, "num_hidden_layers", 0)
    if len(set(getattr(config, "layer_types", None) or [""])) != 1:
        return None
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count > 3:
            kinds = {tuple((n, tuple(p.shape), p.requires_grad) for n, p in each.named_parameters()) for each in module}
            return module if len(kinds) == 1 else None
    return None
