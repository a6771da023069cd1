"""What the trainer asks of a model: hidden states, the output layer, the reference, the state of what is trained."""

import hashlib
import inspect
import types
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from svf_rl.errors import SVFError
from svf_rl.svf import reference_mode, svf_layers
from svf_rl.svf.sharding import gather_parameters, is_sharded


def add_hidden_states_forward(model: PreTrainedModel) -> None:
    """
    Teach `model` the call `model(..., hidden_states_only=True)`, which returns the last hidden states
    (batch, length, d) and makes no logits. It goes through `forward`, so that wrappers (DDP, DeepSpeed) see the call.
    """
    original = model.forward

    def forward(self: PreTrainedModel, *args: Any, hidden_states_only: bool = False, **kwargs: Any) -> Any:
        if hidden_states_only:
            return self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        return original(*args, **kwargs)

    forward.__signature__ = _signature(original)  # type: ignore[attr-defined]  # `generate` reads it
    model.forward = types.MethodType(forward, model)


def hidden_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, completion_length: int) -> Tensor:
    """
    The hidden states that predict the last `completion_length` tokens.

    Args:
        input_ids, attention_mask (`Tensor` of shape `(B, P + T)`): Left-padded prompts and right-padded completions.
        completion_length (`int`): `T`.

    Returns:
        `Tensor` of shape `(B, T, d)`.
    """
    # Positions count real tokens, as they do in the generator; models with learnt positions need it.
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    states = model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, hidden_states_only=True)
    return states[:, -completion_length - 1 : -1]


def output_layer(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight (V, d) and bias (V,) of the layer that makes the logits. Where ZeRO-3 holds them these are whole copies,
    since the loss computes with them outside of the layer's own forward and backward."""
    layer = model.get_output_embeddings()
    weight, bias = layer.weight, getattr(layer, "bias", None)
    if not is_sharded(weight):
        return weight, bias
    if weight.requires_grad:
        raise SVFError("the output layer cannot be trained under ZeRO-3: take it out of modules_to_save")
    with gather_parameters([weight] if bias is None else [weight, bias]):
        return weight.detach().clone(), None if bias is None else bias.detach().clone()


def reference(model: Any) -> AbstractContextManager[None]:
    """Within it, `model` (unwrapped) is the reference policy of the KL term."""
    return reference_mode(model) if svf_layers(model) else model.disable_adapter()


def trainable_digest(model: nn.Module) -> str:
    """Hex digest of every trained value: it changes exactly when a generator needs new weights."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        if parameter.requires_grad:
            with gather_parameters([parameter]):
                digest.update(parameter.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy())
    return digest.hexdigest()


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What is trained, by its names in the model; all processes of ZeRO-3 gather it together."""
    state = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            with gather_parameters([parameter]):
                state[name] = parameter.detach().cpu().clone()
    return state


@contextmanager
def trained_alone(model: nn.Module) -> Iterator[None]:
    """Within it, `model.state_dict()` has the trained parameters alone. DeepSpeed puts it into its checkpoints, less
    what is frozen; but a frozen weight with two names, as a tied embedding, stays under the second."""
    trained = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}

    def keep_trained(_: nn.Module, state: dict[str, Any], prefix: str, __: dict[str, Any]) -> None:
        for name in [name for name in state if name.removeprefix(prefix) not in trained]:
            del state[name]

    hook = model.register_state_dict_post_hook(keep_trained)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def multiplier_statistics(model: nn.Module) -> dict[str, float]:
    """Mean, deviation, smallest and largest multiplier of the singular values, by kind of module (`gate_proj`, ...)."""
    kinds: dict[str, list[Tensor]] = {}
    for name, layer in svf_layers(model).items():
        with gather_parameters(layer.svf_z.parameters()):
            m = layer.active_multiplier()
            m = None if m is None else m.clone()  # it may be `z` itself
        if m is not None:
            kinds.setdefault(name.rpartition(".")[2], []).append(m)
    statistics = {}
    for kind, parts in kinds.items():
        m = torch.cat(parts)
        statistics[f"z/{kind}/mean"] = m.mean().item()
        statistics[f"z/{kind}/std"] = m.std(correction=0).item()
        statistics[f"z/{kind}/min"] = m.min().item()
        statistics[f"z/{kind}/max"] = m.max().item()
    return statistics


def _signature(forward: Any) -> inspect.Signature:
    """That of the bound method `forward`, with the `self` back that binding takes away again."""
    signature = inspect.signature(forward)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return signature.replace(parameters=[itself, *signature.parameters.values()])
