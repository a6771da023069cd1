"""After a sync vLLM holds the adapted model's weights, all of them, and the model itself is as it was."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from fakes import move
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig
from weight_check import expected_weights, fused, wrong_weights

from svf_rl.errors import SVFError
from svf_rl.generation.vllm import colocated as colocated_vllm
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.generation.weights import adapted_weights
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig, svf_layers

pytestmark = pytest.mark.vllm
MLP = ["gate_proj", "up_proj", "down_proj"]
Adapted = Callable[..., PeftModel]


def test_weights_equal_an_independent_fp64_merge(
    engine_of_both_types: tuple[ColocatedVLLMGenerator, torch.dtype], adapted: Adapted
) -> None:
    engine, dtype = engine_of_both_types
    model = adapted(dtype=dtype)
    report = engine.sync(model, everything=True)
    assert wrong_weights(engine, expected_weights(model)) == []
    weights = [p for n, p in model.get_base_model().named_parameters() if "svf_" not in n]
    assert report.tensors == len(weights)
    assert report.bytes == sum(p.numel() * p.element_size() for p in weights)


def test_the_sync_of_adapted_weights_alone_follows_training(
    vllm_engine: ColocatedVLLMGenerator, adapted: Adapted
) -> None:
    model = adapted()
    vllm_engine.sync(model, everything=True)
    move(model, seed=1, by=0.05)
    report = vllm_engine.sync(model)
    assert wrong_weights(vllm_engine, expected_weights(model)) == []
    layers = svf_layers(model).values()
    assert report.tensors == len(layers) == 15
    assert report.bytes == sum(layer.base_weight().numel() * 4 for layer in layers)


def test_stale_weights_are_seen(vllm_engine: ColocatedVLLMGenerator, adapted: Adapted) -> None:
    """The control of the two tests above: without the sync their check reports every adapted weight and no other."""
    model = adapted()
    vllm_engine.sync(model, everything=True)
    move(model, seed=1, by=0.01)
    wrong = {line.split(":")[0] for line in wrong_weights(vllm_engine, expected_weights(model))}
    kinds = ("self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj")
    assert wrong == {f"model.layers.{i}.{kind}.weight" for i in range(3) for kind in kinds}


def test_frozen_weights_that_were_lost_come_back_by_a_full_sync(
    vllm_engine: ColocatedVLLMGenerator, adapted: Adapted
) -> None:
    model = adapted(SVFConfig(task_type="CAUSAL_LM"))
    with torch.no_grad():
        for parameter in vllm_engine.model.parameters():
            parameter.fill_(torch.nan)
    vllm_engine.sync(model)
    assert any("embed_tokens" in line for line in wrong_weights(vllm_engine, expected_weights(model)))
    vllm_engine.sync(model, everything=True)
    assert wrong_weights(vllm_engine, expected_weights(model)) == []


@pytest.mark.parametrize("syncs", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_trained_model_is_never_touched(
    engine_of_both_types: tuple[ColocatedVLLMGenerator, torch.dtype], adapted: Adapted, syncs: int
) -> None:
    engine, dtype = engine_of_both_types
    model = adapted(dtype=dtype)
    base = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    for seed in range(syncs):
        move(model, seed, by=1e-3)
        engine.sync(model, everything=seed % 10 == 0)
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if not p.requires_grad)
    assert wrong_weights(engine, expected_weights(model)) == []


def test_at_the_identity_vllm_holds_the_base_weights_to_the_bit(
    engine_of_both_types: tuple[ColocatedVLLMGenerator, torch.dtype], adapted: Adapted
) -> None:
    engine, dtype = engine_of_both_types
    model = adapted(dtype=dtype)
    engine.sync(model, everything=True)
    with torch.no_grad():
        for layer in svf_layers(model).values():
            layer.svf_z["default"].weight.fill_(1.0)
    engine.sync(model)
    base = {n.replace(".base_layer", ""): p.data for n, p in model.get_base_model().named_parameters()}
    expected = fused({n: p for n, p in base.items() if "svf_" not in n})
    actual = dict(engine.model.named_parameters())
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_lora_is_synced(vllm_engine: ColocatedVLLMGenerator, adapted: Adapted) -> None:
    model = adapted(LoraConfig(r=4, lora_alpha=8, target_modules=[*MLP, "q_proj"], task_type="CAUSAL_LM"))
    vllm_engine.sync(model, everything=True)
    weights = {n: p.data for n, p in adapted(seed=0).get_base_model().named_parameters() if "svf_" not in n}
    weights = {n.replace(".base_layer", ""): p for n, p in weights.items()}
    for name, layer in model.get_base_model().named_modules():
        if hasattr(layer, "lora_A"):
            a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
            weights[f"{name}.weight"] = (layer.base_layer.weight.double() + 2.0 * b @ a).float()
    actual, expected = dict(vllm_engine.model.named_parameters()), fused(weights)
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name].data, weight, rtol=1e-6, atol=1e-6)


def test_modules_to_save_are_synced_without_a_full_sync(vllm_engine: ColocatedVLLMGenerator, adapted: Adapted) -> None:
    vllm_engine.sync(adapted(SVFConfig(task_type="CAUSAL_LM")), everything=True)
    model = adapted(SVFConfig(modules_to_save=["post_attention_layernorm"], task_type="CAUSAL_LM"))
    vllm_engine.sync(model)
    actual = dict(vllm_engine.model.named_parameters())
    for i, layer in enumerate(model.get_base_model().model.layers):
        trained = layer.post_attention_layernorm.modules_to_save["default"].weight
        assert not torch.equal(trained, layer.post_attention_layernorm.original_module.weight)
        assert torch.equal(actual[f"model.layers.{i}.post_attention_layernorm.weight"], trained)


def test_every_weight_comes_once_under_its_checkpoint_name(adapted: Adapted) -> None:
    config = SVFConfig(modules_to_save=["post_attention_layernorm"], task_type="CAUSAL_LM")
    model = adapted(config)
    names = [name for name, _ in adapted_weights(model, everything=True)]
    checkpoint = {n for n, _ in type(model.get_base_model()).from_pretrained(model_path()).named_parameters()}
    assert sorted(names) == sorted(checkpoint)


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(target_modules=MLP, feedforward_modules=MLP, task_type="CAUSAL_LM"),
        PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        LoraConfig(target_modules=["embed_tokens"], use_dora=True, task_type="CAUSAL_LM"),
        LoraConfig(target_modules=MLP, bias="all", lora_bias=True, task_type="CAUSAL_LM"),
        LoraConfig(target_modules=MLP, trainable_token_indices=[5], task_type="CAUSAL_LM"),
    ],
    ids=["ia3", "prompt-tuning", "dora-embedding", "lora-bias", "token-indices"],
)
def test_an_adapter_that_cannot_be_rebuilt_is_refused(config: object, adapted: Adapted) -> None:
    """Never generated from without it: the training would go on with rollouts of another model."""
    with pytest.raises(SVFError, match="use an SVF or LoRA adapter") as error:
        list(adapted_weights(adapted(config)))
    assert "\n" not in str(error.value)


def test_lora_on_the_embedding_is_not_forgotten(adapted: Adapted) -> None:
    model = adapted(LoraConfig(r=4, target_modules=["embed_tokens"], task_type="CAUSAL_LM"))
    ((name, weight),) = adapted_weights(model)
    layer = model.get_base_model().model.embed_tokens
    assert name == "model.embed_tokens.weight"
    torch.testing.assert_close(weight, layer.base_layer.weight + layer.get_delta_weight("default"))
    assert not torch.equal(weight, layer.base_layer.weight)


# ---- prepacking ------------------------------------------------------------------------------------------------------


def test_no_weight_of_the_engine_is_repacked(engine_of_both_types: tuple[ColocatedVLLMGenerator, torch.dtype]) -> None:
    engine, dtype = engine_of_both_types
    assert all(p.numel() and p.dtype == dtype for p in engine.model.parameters())


def test_an_engine_that_repacks_its_weights_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what vLLM does by itself, and why it is turned off."""
    from vllm import _custom_ops

    if not getattr(_custom_ops, "_supports_onednn", False):
        pytest.skip("this build of vLLM repacks nothing: it has no oneDNN")
    monkeypatch.setattr(colocated_vllm, "plain_cpu_weights", nullcontext)
    with pytest.raises(SVFError, match="repacked"):
        ColocatedVLLMGenerator(
            str(model_path()), dtype=torch.float32, seed=0, device="cpu", max_model_len=64, max_num_seqs=2,
            enforce_eager=True,
        )  # fmt: skip


def test_sleep_mode_without_cuda_is_refused() -> None:
    with pytest.raises(SVFError, match="vllm_enable_sleep_mode"):
        ColocatedVLLMGenerator(str(model_path()), dtype=torch.float32, seed=0, device="cpu", enable_sleep_mode=True)
