"""What DeepSpeed asks of a model for its checkpoints, and gets."""

from collections.abc import Callable
from typing import Any

from peft import get_peft_model

from svf_rl.svf import SVFConfig
from svf_rl.training.optimizer_state import trained_alone


def test_a_frozen_weight_goes_under_none_of_its_names(tiny_llama: Callable[..., Any]) -> None:
    model = get_peft_model(tiny_llama(tied=True), SVFConfig())
    whole = set(model.state_dict())
    assert {name.rpartition(".model.")[2] for name in whole} >= {"embed_tokens.weight"}
    assert any("lm_head" in name for name in whole)
    with trained_alone(model):
        kept = set(model.state_dict())
    assert kept == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("svf_z" in name for name in kept)
    assert set(model.state_dict()) == whole
