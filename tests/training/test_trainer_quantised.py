"""Training over a quantised base model: completions by transformers, `z` in float32, and no vLLM."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig

from svf_rl.errors import SVFError
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig, svf_layers

Make = Callable[..., Any]


def in_int8() -> Any:
    pytest.importorskip("optimum.quanto")
    return AutoModelForCausalLM.from_pretrained(model_path(), quantization_config=QuantoConfig(weights="int8"))


def test_it_is_trained_with_completions_of_transformers(make_trainer: Make, z_of: Make) -> None:
    trainer = make_trainer(in_int8(), use_vllm=False, beta=0.1, logging_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == 0.0
    assert any((z != 1).any() for z in z_of(trainer).values())


@pytest.mark.parametrize(
    "where", [{}, {"vllm_mode": "server", "vllm_server_base_url": "http://localhost:9"}], ids=["colocated", "server"]
)
def test_vllm_is_refused_since_it_has_the_original_weights(where: dict[str, str], make_trainer: Make) -> None:
    with pytest.raises(SVFError, match=r"^use_vllm=True cannot roll out a quantised model.*False$"):
        make_trainer(in_int8(), use_vllm=True, **where)


def test_an_update_of_a_server_is_refused() -> None:
    from svf_rl.generation.server.z_update import describe_layout

    with pytest.raises(SVFError, match="is quantized"):
        describe_layout(get_peft_model(in_int8(), SVFConfig()))


def test_z_is_not_rounded_as_trl_rounds_what_is_trained_over_bitsandbytes(make_trainer: Make, z_of: Make) -> None:
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(load_in_8bit=True)
    base = AutoModelForCausalLM.from_pretrained(model_path(), quantization_config=config)
    torch.manual_seed(0)
    model = get_peft_model(base, SVFConfig(init="random", task_type="CAUSAL_LM"))
    before = {f"{n}.weight": layer.svf_z["default"].weight.clone() for n, layer in svf_layers(base).items()}
    trainer = make_trainer(model, peft_config=False, use_vllm=False)
    assert all(torch.equal(z, before[name]) for name, z in z_of(trainer).items())
    assert base.is_loaded_in_8bit
