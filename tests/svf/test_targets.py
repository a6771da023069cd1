"""Presets find the same layers in every family of models; what SVF cannot adapt is refused with one clear line."""

import re

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
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
from svf_rl.svf import SVFConfig
from svf_rl.svf.targets import PRESETS, TARGETS, find_targets, is_linear, logical_weight, target_regex

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


NAMES = {
    "n_embd": 32, "n_layer": 2, "n_head": 2, "d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 48,
    "ffn_dim": 48, "word_embed_proj_dim": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "dim": 32, "hidden_dim": 48, "n_heads": 2, "n_layers": 2,
}  # fmt: skip
DENSE = {"intermediate.dense", "output.dense"}
SELF = {"self.query", "self.value"}
# by model type: ends of the paths that `mlp` and `attention` find, and of one that is neither
OTHERS: dict[str, tuple[set[str], set[str], str]] = {
    "opt": ({"fc1", "fc2"}, {"self_attn.q_proj", "self_attn.v_proj"}, "out_proj"),
    "gptj": ({"mlp.fc_in", "mlp.fc_out"}, {"attn.q_proj", "attn.v_proj"}, "out_proj"),
    "falcon": ({"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"}, {"self_attention.query_key_value"}, "self_attention.dense"),
    "bloom": ({"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"}, {"self_attention.query_key_value"}, "self_attention.dense"),
    "mpt": ({"ffn.up_proj", "ffn.down_proj"}, {"attn.Wqkv"}, "out_proj"),
    "t5": ({"DenseReluDense.wi", "DenseReluDense.wo"}, {"Attention.q", "Attention.v"}, "SelfAttention.o"),
    "mt5": ({"wi_0", "wi_1", "wo"}, {"Attention.q", "Attention.v"}, "SelfAttention.o"),
    "bart": ({"fc1", "fc2"}, {"attn.q_proj", "attn.v_proj"}, "k_proj"),
    "bert": (DENSE, SELF, "attention.output.dense"),
    "roberta": (DENSE, SELF, "attention.output.dense"),
    "electra": (DENSE, SELF, "attention.output.dense"),
    "deberta-v2": (DENSE, {"self.query_proj", "self.value_proj"}, "attention.output.dense"),
    "distilbert": ({"ffn.lin1", "ffn.lin2"}, {"q_lin", "v_lin"}, "out_lin"),
    "modernbert": ({"mlp.Wi", "mlp.Wo"}, {"attn.Wqkv"}, "attn.Wo"),
    "bamba": ({"feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj"}, set(), "mamba.in_proj"),
    "falcon_h1": (
        {"feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj"},
        {"self_attn.q_proj", "self_attn.v_proj"},
        "mamba.in_proj",
    ),
    "lfm2": ({"feed_forward.w1", "feed_forward.w2", "feed_forward.w3"}, {"q_proj", "v_proj"}, "self_attn.out_proj"),
    "deepseek_v3": (set(), {"self_attn.q_b_proj", "self_attn.kv_b_proj"}, "o_proj"),
}  # fmt: skip


@pytest.mark.parametrize("model_type", OTHERS)
def test_presets_know_the_names_of_other_architectures(model_type: str) -> None:
    mlp, attention, neither = OTHERS[model_type]
    config = AutoConfig.for_model(model_type)
    small = {**SIZES, **NAMES}
    config.update({key: small[key] for key in small if key in config.to_dict() and key != "head_dim"})
    if model_type in ("lfm2", "bamba", "falcon_h1"):  # their kinds of layers are fixed by lists
        config = AutoConfig.for_model(model_type)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    linear = {name for name, module in model.named_modules() if is_linear(module)}
    layers = {name for name in linear if re.search(r"\.\d+\.", name)}
    for preset, ends in (("mlp", mlp), ("attention", attention)):
        if not ends:
            continue
        found = set(find_targets(model, preset))
        assert found == {name for name in layers if name.endswith(tuple(ends)) and not name.endswith(neither)}
        assert not any(name.endswith(neither) for name in found)
    assert any(name.endswith(neither) for name in linear)


@pytest.mark.parametrize("preset", TARGETS)
def test_the_expressions_of_former_presets_are_known_by_name(preset: str) -> None:
    former = next(regex for regex, name in PRESETS.items() if name == preset and regex != TARGETS[preset])
    model = build(LlamaConfig(**SIZES))
    assert find_targets(model, former).keys() == find_targets(model, preset).keys()


def test_towers_for_pictures_and_sound_are_not_adapted() -> None:
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_tower = nn.ModuleDict({"mlp": nn.ModuleDict({"fc1": nn.Linear(2, 2)})})
            self.layers = nn.ModuleList([nn.ModuleDict({"mlp": nn.ModuleDict({"fc1": nn.Linear(2, 2)})})])

    assert list(find_targets(Tower(), "mlp")) == ["layers.0.mlp.fc1"]


class _Beside(nn.Module):
    """A layer that can be adapted, and others that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.embedding = nn.Embedding(4, 4)
        self.convolution = nn.Conv2d(1, 1, 1)
        self.attention = nn.MultiheadAttention(4, 1)
        self.quantized = nn.Module()
        self.quantized.register_buffer("qweight", torch.zeros(4, 1, dtype=torch.int32))


@pytest.mark.parametrize("other", ["embedding", "convolution", "attention", "attention.out_proj", "quantized"])
@pytest.mark.parametrize("as_list", [False, True], ids=["expression", "list"])
def test_a_target_that_cannot_be_adapted_is_refused_beside_one_that_can(other: str, as_list: bool) -> None:
    model = _Beside()
    targets = ["linear", other] if as_list else f"linear|{re.escape(other)}"
    with pytest.raises(SVFError, match=re.escape(other)) as caught:
        get_peft_model(model, SVFConfig(target_modules=targets))
    assert "\n" not in str(caught.value)
    assert isinstance(model.linear, nn.Linear)


def test_what_a_list_names_is_meant_also_where_it_is_a_container() -> None:
    with pytest.raises(SVFError, match=r"layers\.0\.mlp, a LlamaMLP"):
        get_peft_model(
            AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)), SVFConfig(target_modules=["mlp", "q_proj"])
        )


def test_a_projection_that_only_a_fused_kernel_reads_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(
        MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=8, state_size=2)
    )
    with pytest.raises(SVFError, match=r"out_proj, whose weight MambaMixer reads"):
        get_peft_model(model, SVFConfig(target_modules=["in_proj", "out_proj"]))
    assert get_peft_model(model, SVFConfig(target_modules=["in_proj"])).get_nb_trainable_parameters()[0] == 8


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
