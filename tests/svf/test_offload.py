"""The weights of adapted layers leave their device, and are read from the model's files where they are needed."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from svf_rl.errors import SVFError
from svf_rl.svf import SVFConfig, svf_layers
from svf_rl.svf.offload import offload_weights, onload_weights
from svf_rl.svf.offload_hook import OffloadedWeight
from svf_rl.svf.stored_weights import StoredWeights


@pytest.fixture
def folder(make_llama: Callable[..., PreTrainedModel], tmp_path: Path) -> Path:
    make_llama(mlp_bias=True).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapted(folder: Path, perturb: Callable[..., PeftModel]) -> PeftModel:
    return perturb(_adapted(folder))


def _adapted(folder: Path, dtype: torch.dtype = torch.float32) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return get_peft_model(model, SVFConfig(task_type="CAUSAL_LM"))


def _weights(model: nn.Module) -> list[Tensor]:
    return [layer.get_base_layer().weight for layer in svf_layers(model).values()]


def test_all_is_computed_as_before(adapted: PeftModel, logits: Callable[[nn.Module], Tensor], tmp_path: Path) -> None:
    def outcomes() -> list[Tensor]:
        layers = svf_layers(adapted).values()
        with adapted.disable_adapter():
            plain = logits(adapted)
        return [logits(adapted), plain, *(layer.merged_weight() for layer in layers)]

    expected = outcomes()
    offload_weights(adapted)
    assert all(weight.is_meta and not isinstance(weight, nn.Parameter) for weight in _weights(adapted))
    assert all(torch.equal(found, value) for found, value in zip(outcomes(), expected, strict=True))
    assert all(weight.is_meta for weight in _weights(adapted))

    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(adapted.unload(), tmp_path / "adapter")
    assert torch.equal(logits(loaded), expected[0])


def test_what_moves_casts_and_shares_out_models_passes_them_by(
    adapted: PeftModel, logits: Callable[[nn.Module], Tensor]
) -> None:
    offload_weights(adapted)
    own = {name for name, _ in adapted.named_parameters()} | adapted.state_dict().keys()
    assert not any(name.endswith("base_layer.weight") for name in own)
    half = adapted.to("cpu").to(torch.bfloat16)
    with half.disable_adapter():
        assert logits(half).dtype == torch.bfloat16


@pytest.mark.parametrize("act", [lambda model: model.merge_and_unload(), lambda model: model.unload(), onload_weights])
def test_they_come_back_in_the_type_that_the_model_was_cast_to(
    folder: Path, perturb: Callable[..., PeftModel], logits: Callable[[nn.Module], Tensor], act: Callable[..., Any]
) -> None:
    stayed, away = perturb(_adapted(folder)), perturb(_adapted(folder))
    offload_weights(away)
    models = [model.to(torch.bfloat16) for model in (stayed, away)]
    assert all(weight.dtype == torch.bfloat16 for model in models for weight in _weights(model))
    expected, found = (logits(act(model) or model) for model in models)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_adapters_are_loaded_beside_the_one_in_training(
    adapted: PeftModel, logits: Callable[[nn.Module], Tensor], tmp_path: Path, low_cpu_mem_usage: bool
) -> None:
    expected = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    offload_weights(adapted)
    adapted.load_adapter(tmp_path / "adapter", "second", low_cpu_mem_usage=low_cpu_mem_usage)
    adapted.set_adapter("second")
    assert torch.equal(logits(adapted), expected)


def test_layers_that_the_active_adapter_leaves_alone_read_nothing(
    adapted: PeftModel, logits: Callable[[nn.Module], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted.add_adapter("narrow", SVFConfig(target_modules=["up_proj"], init="random", init_std=0.2))
    adapted.set_adapter("narrow")
    expected = logits(adapted)
    offload_weights(adapted)
    monkeypatch.setattr(OffloadedWeight, "pre_forward", lambda *_, **__: pytest.fail("a weight was read"))
    torch.testing.assert_close(logits(adapted), expected)


@pytest.mark.parametrize("how", ["copied", "pickled"])
def test_copies_and_pickles_read_them_too(
    adapted: PeftModel, logits: Callable[[nn.Module], Tensor], how: str, tmp_path: Path
) -> None:
    offload_weights(adapted)
    expected = logits(adapted)
    if how == "copied":
        other = copy.deepcopy(adapted)
    else:
        torch.save(adapted, tmp_path / "model.pt")
        other = torch.load(tmp_path / "model.pt", weights_only=False)
    assert all(weight.is_meta for weight in _weights(other))
    assert torch.equal(logits(other), expected)
    torch.testing.assert_close(logits(other.merge_and_unload()), expected, rtol=1e-4, atol=1e-6)
    assert all(weight.is_meta for weight in _weights(adapted))
    assert torch.equal(logits(adapted), expected)


@pytest.mark.parametrize("merge", [True, False])
def test_they_are_back_in_a_model_without_adapter(
    adapted: PeftModel, folder: Path, logits: Callable[[nn.Module], Tensor], merge: bool, tmp_path: Path
) -> None:
    expected = logits(adapted)
    offload_weights(adapted)
    base = adapted.merge_and_unload() if merge else adapted.unload()
    base.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    if merge:
        torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-6)
    else:
        assert torch.equal(logits(again), logits(AutoModelForCausalLM.from_pretrained(folder).eval()))


def test_merging_takes_them_back_and_unmerging_is_exact(
    adapted: PeftModel, logits: Callable[[nn.Module], Tensor]
) -> None:
    weights, expected = [weight.clone() for weight in _weights(adapted)], logits(adapted)
    offload_weights(adapted)
    adapted.merge_adapter()
    torch.testing.assert_close(logits(adapted), expected, rtol=1e-4, atol=1e-6)
    adapted.unmerge_adapter()
    assert all(torch.equal(found, weight) for found, weight in zip(_weights(adapted), weights, strict=True))
    offload_weights(adapted)
    onload_weights(adapted)
    assert all(isinstance(weight, nn.Parameter) for weight in _weights(adapted))
    assert torch.equal(logits(adapted), expected)


def test_files_of_another_type_are_cast_as_the_model_was(folder: Path, logits: Callable[[nn.Module], Tensor]) -> None:
    model = _adapted(folder, torch.bfloat16)
    weights = [weight.clone() for weight in _weights(model)]
    offload_weights(model)
    assert all(weight.is_meta for weight in _weights(model))
    onload_weights(model)
    assert all(torch.equal(found, weight) for found, weight in zip(_weights(model), weights, strict=True))


def test_transposed_layers(tmp_path: Path, logits: Callable[[nn.Module], Tensor]) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = _adapted(tmp_path)
    with model.disable_adapter():
        expected = logits(model)
    offload_weights(model)
    assert all(weight.is_meta for weight in _weights(model))
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)


def test_while_adapters_are_disabled_they_are_read_once(
    adapted: PeftModel, logits: Callable[[nn.Module], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    offload_weights(adapted)
    reads, read = [], StoredWeights.read
    monkeypatch.setattr(StoredWeights, "read", lambda stored, name: reads.append(name) or read(stored, name))
    with adapted.disable_adapter():
        for _ in range(3):
            logits(adapted)
    assert len(reads) == len(set(reads)) == len(_weights(adapted))
    assert all(weight.is_meta for weight in _weights(adapted))


def test_weights_of_no_file_stay(make_llama: Callable[..., PreTrainedModel], adapted: PeftModel) -> None:
    in_memory = get_peft_model(make_llama(), SVFConfig(task_type="CAUSAL_LM"))
    offload_weights(in_memory)
    assert not any(weight.is_meta for weight in _weights(in_memory))


def test_layers_that_were_added_in_memory_stay(folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder)
    base.model.layers.append(copy.deepcopy(base.model.layers[-1]))
    model = get_peft_model(base, SVFConfig(task_type="CAUSAL_LM"))
    offload_weights(model)
    assert [weight.is_meta for weight in _weights(model)] == [True] * 6 + [False] * 3


def test_the_files_are_found_from_another_working_directory(
    folder: Path, logits: Callable[[nn.Module], Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    model = _adapted(Path(folder.name))
    expected = logits(model)
    offload_weights(model)
    monkeypatch.chdir(tmp_path.parent)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected)


def test_weights_that_were_changed_in_memory_stay(folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        base.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    model = get_peft_model(base, SVFConfig(task_type="CAUSAL_LM"))
    offload_weights(model)
    kept = {name: not layer.get_base_layer().weight.is_meta for name, layer in svf_layers(model).items()}
    assert [name for name, there in kept.items() if there] == ["base_model.model.model.layers.0.mlp.up_proj"]


def test_a_file_that_has_changed_since_is_named(adapted: PeftModel, folder: Path) -> None:
    offload_weights(adapted)
    file = folder / "model.safetensors"
    save_file({name: weight * 2 for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(SVFError, match=r"model\.safetensors was changed since .*gate_proj was decomposed"):
        adapted.merge_adapter()
