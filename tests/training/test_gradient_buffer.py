"""ZeRO's buffer for gradients has room for what is trained, and for no more."""

from accelerate.utils import DeepSpeedPlugin
from torch import nn

from svf_rl.training.zero import fit_gradient_buffer


def partly_trained() -> nn.Module:
    """A model of 6 trained values and 20 frozen ones."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(4, 5, bias=False))
    model[1].requires_grad_(False)
    return model


def test_it_is_as_large_as_the_gradients() -> None:
    plugin = DeepSpeedPlugin(zero_stage=2)
    fit_gradient_buffer(plugin, partly_trained())
    assert plugin.deepspeed_config["zero_optimization"]["reduce_bucket_size"] == 6


def test_what_a_user_has_set_stays() -> None:
    zero = {"stage": 2, "reduce_bucket_size": 1000}
    plugin = DeepSpeedPlugin(hf_ds_config={"zero_optimization": zero, "train_batch_size": 1})
    fit_gradient_buffer(plugin, partly_trained())
    assert plugin.deepspeed_config["zero_optimization"]["reduce_bucket_size"] == 1000
