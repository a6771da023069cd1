"""Wrap, save, load and merge, in every family of models that the package names."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import SIZES
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from svf_rl.errors import SVFError
from svf_rl.svf import SVFConfig, svf_layers

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama, biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama, tied embeddings": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),  # biases in the attention
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "gemma": GemmaConfig(**SIZES, head_dim=8),  # tied embeddings
    "gemma2": Gemma2Config(**SIZES, head_dim=8),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=8),
    "phi3": Phi3Config(**SIZES),  # fused projections
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64, bos_token_id=1, eos_token_id=2),
}
LAYERS = {  # of mlp+attention, in both layers together
    **dict.fromkeys(CONFIGS, 10),
    "phi3": 6,
    "gpt2": 6,
}


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """A random model whose biases are not 0, so that a lost bias shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(params=CONFIGS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


def test_identity_save_load_and_merge(family: str, logits: Callable, perturb: Callable, tmp_path: Path) -> None:
    base = build(CONFIGS[family])
    untouched, again = copy.deepcopy(base), copy.deepcopy(base)
    model = get_peft_model(base, SVFConfig(target_modules="mlp+attention"))
    assert len(svf_layers(model)) == LAYERS[family]
    assert close(logits(model), logits(untouched))
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(untouched))

    trained = logits(perturb(model))
    assert not close(trained, logits(untouched))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(untouched, tmp_path)
    assert torch.equal(logits(loaded), trained)
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), logits(again))

    plain = loaded.merge_and_unload()
    assert not svf_layers(plain)
    assert {k: (v.shape, v.stride()) for k, v in plain.state_dict().items()} == {
        k: (v.shape, v.stride()) for k, v in again.state_dict().items()
    }
    assert close(logits(plain), trained)


@pytest.mark.parametrize("family", ["llama, tied embeddings", "gemma"])
def test_tied_embeddings_stay_tied_and_untouched(family: str, perturb: Callable) -> None:
    base = build(CONFIGS[family])
    before = base.get_input_embeddings().weight.detach().clone()
    merged = perturb(get_peft_model(base, SVFConfig(target_modules="mlp+attention"))).merge_and_unload()
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert torch.equal(merged.get_input_embeddings().weight, before)


def test_gpt2_adapts_the_projection_of_the_mlp_and_not_that_of_the_attention() -> None:
    names = {name.partition(".h.0.")[2] for name in svf_layers(get_peft_model(build(CONFIGS["gpt2"]), SVFConfig()))}
    assert names - {""} == {"mlp.c_fc", "mlp.c_proj"}


@pytest.mark.parametrize("targets", ["mlp", "mlp+attention", r".*\.experts"])
@pytest.mark.parametrize(
    "config",
    [
        Qwen3MoeConfig(**SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
        MixtralConfig(**SIZES, head_dim=8, num_local_experts=4),
    ],
    ids=["qwen3_moe", "mixtral"],
)
def test_fused_experts_are_refused_and_the_model_stays_as_it_was(config: PreTrainedConfig, targets: str) -> None:
    model = build(config)
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(SVFError, match="mixture-of-experts"):
        get_peft_model(model, SVFConfig(target_modules=targets))
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert len(svf_layers(get_peft_model(model, SVFConfig(target_modules="attention")))) == 4


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"], "lm_head", r".*(up_proj|lm_head)"])
@pytest.mark.parametrize("family", ["llama", "llama, tied embeddings"])
def test_the_output_layer_is_refused(family: str, targets: list[str] | str) -> None:
    with pytest.raises(SVFError, match="output layer lm_head"):
        get_peft_model(build(CONFIGS[family]), SVFConfig(target_modules=targets))
