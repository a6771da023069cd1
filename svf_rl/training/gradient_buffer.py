"""The buffer through which ZeRO reduces gradients, as large as the gradients."""

from typing import Any

from accelerate.utils import DeepSpeedPlugin
from torch import nn

from svf_rl.svf.sharding import full_shape

# DeepSpeed's default (runtime/zero/config.py); ours is as large as what is trained, and at most this.
REDUCE_BUCKET_VALUES = 500_000_000


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
