"""What DeepSpeed must be told of a model of which little is trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import DeepSpeedPlugin
from torch import Tensor, nn
from transformers import TrainerCallback

from svf_rl.svf.layer import fetch_with_layers
from svf_rl.svf.sharding import full_shape, gather_parameters

# DeepSpeed's default (runtime/zero/config.py); ours is as large as what is trained, and at most this.
REDUCE_BUCKET_VALUES = 500_000_000


class FetchLayers(TrainerCallback):
    """Tells ZeRO-3, when DeepSpeed has taken the model over, what each SVF layer computes with."""

    def on_train_begin(self, *_: Any, model: nn.Module, **__: Any) -> None:
        fetch_with_layers(model)


def fit_gradient_buffer(plugin: DeepSpeedPlugin, model: nn.Module) -> None:
    """
    Have DeepSpeed reduce the gradients of `model` through a buffer of as many values as are trained. Its default takes
    2 GB of every GPU in fp32, where SVF trains 400,000 values of an 8B model.

    Args:
        plugin (`DeepSpeedPlugin`): Of the run, before DeepSpeed starts; a `reduce_bucket_size` of the user's stays.
        model (`nn.Module`): With the parameters to train, sharded or not.
    """
    zero: dict[str, Any] = plugin.deepspeed_config["zero_optimization"]
    trained = sum(full_shape(parameter).numel() for parameter in model.parameters() if parameter.requires_grad)
    zero.setdefault("reduce_bucket_size", min(trained, REDUCE_BUCKET_VALUES))


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
