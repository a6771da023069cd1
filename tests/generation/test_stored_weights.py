"""What is pushed to an engine bears the names and has the layout of the model's files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SIZES, move, refusal
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from svf_rl.generation.server.z_update import describe_layout
from svf_rl.generation.weights import stored_name, stored_weights
from svf_rl.svf import SVFConfig, svf_layers
from svf_rl.svf.checkpoint import decompose_checkpoint
from svf_rl.svf.targets import fused_experts

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen3_moe": {**SIZES, **EXPERTS, "num_experts": 4, "head_dim": 8},
    "mixtral": {**SIZES, "num_local_experts": 4},
    "granitemoe": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "gpt_neox": {key: value for key, value in SIZES.items() if key != "num_key_value_heads"},
    "gemma3": {"text_config": {**SIZES, "head_dim": 8}, "vision_config": VISION, "mm_tokens_per_image": 4},
}


@pytest.fixture(params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **CONFIGS[request.param])).save_pretrained(
        tmp_path
    )
    return tmp_path


def adapted(folder: Path, **more: Any) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(folder)
    return get_peft_model(base, SVFConfig(target_modules="attention", task_type="CAUSAL_LM", **more))


def test_frozen_weights_are_those_of_the_files_and_experts_are_left_out(folder: Path) -> None:
    model, files = adapted(folder), load_file(folder / "model.safetensors")
    pushed = dict(stored_weights(model, everything=True))
    assert all(torch.equal(files[name], weight) for name, weight in pushed.items())
    left = sum(files[name].numel() for name in files.keys() - pushed.keys())
    experts = [dict(model.named_modules())[name] for name in fused_experts(model)]
    assert left == sum(parameter.numel() for module in experts for parameter in module.parameters())


def test_an_adapted_weight_has_one_name_in_files_updates_and_layouts(folder: Path) -> None:
    model, files = adapted(folder), load_file(folder / "model.safetensors")
    move(model, seed=0, by=0.1)
    pushed = dict(stored_weights(model))
    assert len(pushed) == len(svf_layers(model)) > 0
    assert not any(torch.equal(files[name], weight) for name, weight in pushed.items())
    assert all(files[name].shape == weight.shape for name, weight in pushed.items())
    assert [matrix.name for matrix in describe_layout(model).matrices] == list(pushed)


def test_a_checkpoint_is_decomposed_under_the_names_of_its_files(folder: Path) -> None:
    index = decompose_checkpoint(str(folder), "attention", progress=False)
    model = adapted(folder)
    layers = svf_layers(model.get_base_model())
    assert {name: entry.fingerprint for name, entry in index.modules.items()} == {
        name: layer.weight_id for name, layer in layers.items()
    }
    assert index.stored == {name: stored_name(model, f"{name}.weight").removesuffix(".weight") for name in layers}


@pytest.mark.parametrize("folder", ["qwen3_moe"], indirect=True)
def test_trained_experts_are_refused(folder: Path) -> None:
    """Today's PEFT trains a whole block of them where it is named in modules_to_save."""
    line = refusal(list, stored_weights(adapted(folder, modules_to_save=["mlp"])))
    assert "vLLM cannot take experts again" in line


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_one_of_two_tied_embeddings_is_refused(module: str, tmp_path: Path) -> None:
    """vLLM holds one weight for the two: the other would be trained, or lost, without a word."""
    for tied in (True, False):
        config = AutoConfig.for_model("llama", **SIZES, tie_word_embeddings=tied)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / str(tied))
    line = refusal(list, stored_weights(adapted(tmp_path / "True", modules_to_save=[module])))
    assert module in line
    assert "use_vllm: false" in line
    assert any(module in name for name, _ in stored_weights(adapted(tmp_path / "False", modules_to_save=[module])))
