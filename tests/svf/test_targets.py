"""Presets find the same layers in every family of models; what SVF cannot adapt is refused with one clear line."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from svf_rl.errors import SVFError
from svf_rl.svf.targets import TARGETS, find_targets, logical_weight, target_regex

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, bos_token_id=1, eos_token_id=2)
GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
SEPARATE = ("self_attn.q_proj", "self_attn.v_proj")
FAMILIES: list[tuple[PreTrainedConfig, tuple[str, ...], tuple[str, ...]]] = [
    (LlamaConfig(**SIZES), GATED, SEPARATE),
    (MistralConfig(**SIZES), GATED, SEPARATE),
    (Qwen2Config(**SIZES), GATED, SEPARATE),
    (Qwen3Config(**SIZES), GATED, SEPARATE),
    (GemmaConfig(**SIZES), GATED, SEPARATE),
    (GPT2, ("mlp.c_fc", "mlp.c_proj"), ("attn.c_attn",)),
    (PhiConfig(**SIZES), ("mlp.fc1", "mlp.fc2"), SEPARATE),
    (Phi3Config(**SIZES), ("mlp.gate_up_proj", "mlp.down_proj"), ("self_attn.qkv_proj",)),
    (GPTNeoXConfig(**SIZES), ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), ("attention.query_key_value",)),
]


def build(config: PreTrainedConfig) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(("config", "mlp", "attention"), FAMILIES, ids=lambda v: getattr(v, "model_type", ""))
def test_presets_find_every_layer_of_a_family(
    config: PreTrainedConfig, mlp: tuple[str, ...], attention: tuple[str, ...]
) -> None:
    model = build(config)
    order = [name for name, _ in model.named_modules()]
    for preset, kinds in {"mlp": mlp, "attention": attention, "mlp+attention": mlp + attention}.items():
        found = list(find_targets(model, preset))
        assert sorted({name.split(".", 3)[3] for name in found}) == sorted(kinds)
        assert len(found) == 2 * len(kinds)
        assert found == sorted(found, key=order.index)
        assert set(find_targets(model, TARGETS[preset])) == set(found)


def test_gpt2_is_matched_by_path_and_seen_in_logical_orientation() -> None:
    found = find_targets(build(GPT2), "mlp")
    assert "transformer.h.0.mlp.c_proj" in found
    assert "transformer.h.0.attn.c_proj" not in found
    assert found["transformer.h.0.mlp.c_fc"].weight.shape == (32, 128)
    assert logical_weight(found["transformer.h.0.mlp.c_fc"]).shape == (128, 32)


def test_the_logical_weight_is_a_view() -> None:
    linear = nn.Linear(3, 2)
    assert logical_weight(linear) is linear.weight


def test_an_expression_selects_layers_and_passes_over_what_is_not_linear() -> None:
    found = find_targets(build(LlamaConfig(**SIZES)), r".*layers\.1\..*")
    assert len(found) == 7
    assert all(isinstance(module, nn.Linear) for module in found.values())


def test_a_plain_module_without_embeddings_works() -> None:
    assert list(find_targets(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "0|1")) == ["0"]


@pytest.mark.parametrize("config", [Qwen3MoeConfig(**SIZES), MixtralConfig(**SIZES)], ids=lambda c: c.model_type)
def test_fused_experts_are_refused_and_their_attention_works(config: PreTrainedConfig) -> None:
    model = build(config)
    for targets in ("mlp", "mlp+attention", TARGETS["mlp"], r".*mlp.*"):
        with pytest.raises(SVFError, match=r"experts.*use targets attention"):
            find_targets(model, targets)
    assert len(find_targets(model, "attention")) == 4


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_is_refused(tied: bool) -> None:
    model = build(LlamaConfig(**SIZES, tie_word_embeddings=tied))
    for targets in ("lm_head", ".*"):
        with pytest.raises(SVFError, match="output layer lm_head"):
            find_targets(model, targets)


class _Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_out = nn.Linear(2, 4)

    def get_output_embeddings(self) -> nn.Module:
        return self.embed_out


def test_an_output_layer_of_another_name_is_refused() -> None:
    with pytest.raises(SVFError, match="output layer embed_out"):
        find_targets(_Renamed(), ".*embed_out")


def test_a_misspelt_target_names_the_nearest_layers() -> None:
    with pytest.raises(SVFError, match=r"model\.layers\.0\.mlp\.up_proj") as caught:
        find_targets(build(LlamaConfig(**SIZES)), r".*\.upproj")
    assert "\n" not in str(caught.value)


def test_targets_that_are_only_norms_or_embeddings_are_refused() -> None:
    for targets in (".*norm", ".*embed_tokens"):
        with pytest.raises(SVFError, match="no linear layer"):
            find_targets(build(LlamaConfig(**SIZES)), targets)


def test_a_broken_expression_is_refused() -> None:
    with pytest.raises(SVFError, match="neither a preset"):
        target_regex("mlp(")
