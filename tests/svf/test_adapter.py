"""The life of an adapter in a model: which layers it takes, several beside each other, and what training needs."""

import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from fakes import SIZES
from peft import get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
    PreTrainedModel,
)

from svf_rl.errors import SVFError
from svf_rl.svf import SVFConfig, SVFLinear, svf_layers


def names(model: nn.Module) -> list[str]:
    """Adapted layers as `0.up_proj`."""
    parts = [path.split(".") for path in svf_layers(model)]
    return sorted(f"{p[p.index('layers') + 1]}.{p[-1]}" for p in parts)


def z_of(model: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    return {name: layer.svf_z[adapter].weight for name, layer in svf_layers(model).items() if adapter in layer.svf_z}


# Which layers


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, ["down_proj", "gate_proj", "up_proj"]),
        ({"target_modules": "attention"}, ["q_proj", "v_proj"]),
        ({"target_modules": "mlp+attention"}, ["down_proj", "gate_proj", "q_proj", "up_proj", "v_proj"]),
        ({"target_modules": None}, ["down_proj", "gate_proj", "up_proj"]),
        ({"target_modules": ["o_proj"]}, ["o_proj"]),
        ({"target_modules": ["mlp.up_proj", "k_proj"]}, ["k_proj", "up_proj"]),
        ({"target_modules": r".*_attn\.[kq]_proj"}, ["k_proj", "q_proj"]),
        ({"target_modules": r".*\.mlp.*"}, ["down_proj", "gate_proj", "up_proj"]),  # the container matches as well
        ({"exclude_modules": ["down_proj"]}, ["gate_proj", "up_proj"]),
        ({"exclude_modules": r".*\.(up|gate)_proj"}, ["down_proj"]),
        ({"target_modules": "mlp+attention", "exclude_modules": "mlp"}, ["q_proj", "v_proj"]),
        ({"target_modules": r".*(up_proj|lm_head)", "exclude_modules": ["lm_head"]}, ["up_proj"]),
        (
            {"target_modules": "all-linear"},
            ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
        ),
    ],
    ids=str,
)
def test_targets(llama: PreTrainedModel, config: dict, expected: list[str]) -> None:
    assert names(get_peft_model(llama, SVFConfig(**config))) == [f"{i}.{name}" for i in (0, 1) for name in expected]


@pytest.mark.parametrize("layers", [1, [1]])
@pytest.mark.parametrize("pattern", [None, [], "layers", ["layers", "h"]])
@pytest.mark.parametrize("targets", ["mlp", ["down_proj", "gate_proj", "up_proj"]], ids=["preset", "list"])
def test_layers_to_transform(
    llama: PreTrainedModel, layers: int | list[int], pattern: str | list[str] | None, targets: str | list[str]
) -> None:
    config = SVFConfig(target_modules=targets, layers_to_transform=layers, layers_pattern=pattern)
    assert names(get_peft_model(llama, config)) == ["1.down_proj", "1.gate_proj", "1.up_proj"]


def test_layers_to_transform_with_all_linear(llama: PreTrainedModel) -> None:
    model = get_peft_model(llama, SVFConfig(target_modules="all-linear", layers_to_transform=[1]))
    assert {name[0] for name in names(model)} == {"1"}
    assert len(names(model)) == 7


def test_a_name_in_the_list_that_matches_nothing_is_warned_of(llama: PreTrainedModel) -> None:
    with pytest.warns(UserWarning, match="no module is called 'gate_porj', the others are adapted"):
        get_peft_model(llama, SVFConfig(target_modules=["up_proj", "gate_porj"]))
    assert {name.rpartition(".")[2] for name in svf_layers(llama)} == {"up_proj"}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"target_modules": ["upp_proj"]}, "model.layers.0.mlp.up_proj"),  # the nearest name
        ({"target_modules": []}, "empty"),
        ({"target_modules": ["embed_tokens"]}, "no linear layer"),
        ({"target_modules": ["norm"]}, "no linear layer"),
        ({"exclude_modules": r".*_proj"}, "match no linear layer|match no module"),
        ({"layers_to_transform": [7]}, r"layers_to_transform.*\[7\]"),
        ({"layers_to_transform": [1], "layers_pattern": "h"}, "layers_pattern"),
    ],
    ids=str,
)
def test_targets_that_match_nothing(llama: PreTrainedModel, config: dict, says: str) -> None:
    with pytest.raises(SVFError, match=says) as caught:
        get_peft_model(llama, SVFConfig(**config))
    assert "\n" not in str(caught.value)
    assert not svf_layers(llama)


def test_a_model_without_weights_is_refused(make_llama: Callable) -> None:
    with torch.device("meta"):
        model = make_llama()
    with pytest.raises(SVFError, match="meta device"):
        get_peft_model(model, SVFConfig())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn], ids=str)
def test_a_quantized_model_is_refused(llama: PreTrainedModel, dtype: torch.dtype) -> None:
    for layer in llama.model.layers:
        weight = layer.mlp.gate_proj.weight
        layer.mlp.gate_proj.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(SVFError, match="quantized"):
        get_peft_model(llama, SVFConfig())


def test_a_weight_with_nan_is_refused(llama: PreTrainedModel) -> None:
    llama.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(SVFError, match=r"model\.layers\.1\.mlp\.up_proj: .*NaN"):
        get_peft_model(llama, SVFConfig())


# One adapter


def test_z_alone_is_trained_and_it_starts_at_one(llama: PreTrainedModel) -> None:
    model = get_peft_model(llama, SVFConfig())
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 6
    assert all(name.endswith("svf_z.default.weight") for name in trainable)
    assert all(torch.equal(p, torch.ones(32)) for p in trainable.values())
    assert model.get_nb_trainable_parameters()[0] == 6 * 32


def test_a_training_step_moves_z_and_nothing_else(llama: PreTrainedModel, ids: Tensor) -> None:
    model = get_peft_model(llama, SVFConfig(target_modules="mlp+attention"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"{name}.svf_z.default.weight" for name in svf_layers(model)}


def test_random_starts_follow_the_seed(make_llama: Callable) -> None:
    def start(seed: int) -> list[Tensor]:
        model = make_llama()
        torch.manual_seed(seed)
        return list(z_of(get_peft_model(model, SVFConfig(init="random"))).values())

    assert all(torch.equal(a, b) for a, b in zip(start(3), start(3), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(start(3), start(4), strict=True))


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16()])
def test_z_and_s_stay_fp32_to_the_bit_when_the_model_is_cast(
    llama: PreTrainedModel, ids: Tensor, perturb: Callable, cast: Callable
) -> None:
    model = perturb(get_peft_model(llama, SVFConfig()))
    before = {name: (layer.svf_z["default"].weight.clone(), layer.svf_factors.s.clone()) for name, layer in
              svf_layers(model).items()}  # fmt: skip
    parameters = [id(z) for z in z_of(model).values()]
    cast(model)
    for name, layer in svf_layers(model).items():
        z, s = layer.svf_z["default"].weight, layer.svf_factors.s
        assert (z.dtype, s.dtype) == (torch.float32, torch.float32)
        assert torch.equal(z, before[name][0])
        assert torch.equal(s, before[name][1])
        assert layer.svf_factors.U.dtype == layer.get_base_layer().weight.dtype != torch.float32
    assert [id(z) for z in z_of(model).values()] == parameters  # an optimizer made before still holds them
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(z.grad.dtype == torch.float32 and z.grad.abs().sum() > 0 for z in z_of(model).values())


def test_a_gradient_survives_a_cast(llama: PreTrainedModel, ids: Tensor) -> None:
    model = get_peft_model(llama, SVFConfig())
    model(input_ids=ids, labels=ids).loss.backward()
    before = [z.grad.clone() for z in z_of(model).values()]
    model.to(torch.bfloat16)
    for z, grad in zip(z_of(model).values(), before, strict=True):
        assert z.grad.dtype == torch.float32
        assert torch.equal(z.grad, grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradient(make_llama: Callable, ids: Tensor, reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = get_peft_model(make_llama(), SVFConfig(target_modules="mlp+attention")).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([z.grad for z in z_of(model).values()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-8)


def test_under_autocast_z_gets_an_fp32_gradient(llama: PreTrainedModel, ids: Tensor) -> None:
    model = get_peft_model(llama, SVFConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert all(z.grad.dtype == torch.float32 and z.grad.abs().sum() > 0 for z in z_of(model).values())


def test_generate_uses_the_adapter(make_llama: Callable, ids: Tensor, perturb: Callable) -> None:
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    base = make_llama().generate(ids, **options)
    model = get_peft_model(make_llama(), SVFConfig(target_modules="mlp+attention"))
    assert torch.equal(model.generate(ids, **options), base)
    for z in z_of(model).values():
        z.data.mul_(-3)
    adapted = model.generate(ids, **options)
    assert not torch.equal(adapted, base)
    assert torch.equal(model.merge_and_unload().generate(ids, **options), adapted)


# Several adapters


def test_set_adapter_and_delete_adapter(make_llama: Callable, logits: Callable, perturb: Callable) -> None:
    model = perturb(get_peft_model(make_llama(), SVFConfig()))
    first = logits(model)
    model.add_adapter("second", SVFConfig(target_modules="mlp+attention"))
    perturb(model, "second", seed=1)
    assert torch.equal(logits(model), first)

    model.set_adapter("second")
    second = logits(model)
    assert not torch.equal(second, first)
    assert {n.rpartition("svf_z.")[2] for n, p in model.named_parameters() if p.requires_grad} == {"second.weight"}
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    assert {n.rpartition("svf_z.")[2] for n, p in model.named_parameters() if p.requires_grad} == {"default.weight"}

    model.delete_adapter("default")
    assert torch.equal(logits(model), second)
    assert not any(".default." in name for name, _ in model.named_parameters())
    assert all(list(layer.svf_mask) == ["second"] for layer in svf_layers(model).values())


def test_layers_of_other_adapters_only_run_the_base_layer(
    make_llama: Callable, logits: Callable, perturb: Callable
) -> None:
    both = perturb(get_peft_model(make_llama(), SVFConfig(target_modules="mlp")))
    both.add_adapter("attention", SVFConfig(target_modules="attention"))
    perturb(both, "attention")
    for adapter, targets in (("default", "mlp"), ("attention", "attention")):
        alone = perturb(get_peft_model(make_llama(), SVFConfig(target_modules=targets)))
        both.set_adapter(adapter)
        assert torch.equal(logits(both), logits(alone))


def test_a_second_adapter_uses_the_factors_of_the_first(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = get_peft_model(llama, SVFConfig())

    def again(*_: object) -> None:
        raise AssertionError("decomposed again")

    monkeypatch.setattr("svf_rl.svf.model.thin_svd", again)
    model.add_adapter("second", SVFConfig())
    assert len(z_of(model, "second")) == 6


def test_adding_an_adapter_changes_no_flag_of_another(llama: PreTrainedModel) -> None:
    model = get_peft_model(llama, SVFConfig())
    for frozen in (False, True):
        for z in z_of(model).values():
            z.requires_grad_(not frozen)
        model.add_adapter(f"another {frozen}", SVFConfig())
        assert all(z.requires_grad is not frozen for z in z_of(model).values())


def test_the_model_status_is_regular(llama: PreTrainedModel) -> None:
    model = get_peft_model(llama, SVFConfig())
    model.add_adapter("second", SVFConfig())
    status = peft.get_model_status(model)
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])
    assert status.requires_grad == {"default": True, "second": False}
    assert status.num_adapter_layers == 6
    assert status.trainable_params == 6 * 32


def test_unload_gives_the_base_back(make_llama: Callable, logits: Callable, perturb: Callable) -> None:
    base = make_llama()
    plain = perturb(get_peft_model(make_llama(), SVFConfig())).unload()
    assert not svf_layers(plain)
    assert torch.equal(logits(plain), logits(base))


def test_disabling_is_undone_with_its_context(llama: PreTrainedModel, logits: Callable, perturb: Callable) -> None:
    base = logits(llama)
    model = perturb(get_peft_model(llama, SVFConfig(target_modules="mlp+attention")))
    trained = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), trained)


def test_conversion_to_lora_of_full_rank_is_the_same_model(
    make_llama: Callable, logits: Callable, perturb: Callable
) -> None:
    model = perturb(get_peft_model(make_llama(), SVFConfig()))
    trained = logits(model)
    config, weights = peft.convert_to_lora(model, rank=32)
    lora = get_peft_model(make_llama(), config)
    peft.set_peft_model_state_dict(lora, weights)
    torch.testing.assert_close(logits(lora), trained, rtol=0, atol=1e-5 * float(trained.abs().max()))


# Beside PEFT's other methods


@pytest.mark.parametrize("task", ["TOKEN_CLS", "QUESTION_ANS", "SEQ_CLS", "CAUSAL_LM"])
def test_the_callers_configuration_is_the_models(task: str) -> None:
    classes = {
        "TOKEN_CLS": AutoModelForTokenClassification,
        "QUESTION_ANS": AutoModelForQuestionAnswering,
        "SEQ_CLS": AutoModelForSequenceClassification,
        "CAUSAL_LM": AutoModelForCausalLM,
    }
    config = SVFConfig(task_type=task)
    model = get_peft_model(classes[task].from_config(LlamaConfig(**SIZES)), config)
    assert model.peft_config["default"] is config
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "svf_z" not in name}
    assert bool(trained) == (task != "CAUSAL_LM")  # the head of the task


def test_z_alone_is_a_parameter(llama: PreTrainedModel) -> None:
    before = sum(p.numel() for p in llama.parameters())
    model = get_peft_model(llama, SVFConfig())
    added = {name: p for name, p in model.named_parameters() if "svf_" in name}
    assert all(".svf_z.default.weight" in name for name in added)
    assert model.get_nb_trainable_parameters() == (6 * 32, before + 6 * 32)
    assert not [name for name, _ in model.named_buffers() if "svf_" in name]
    assert not [name for name in model.state_dict() if "svf_factors" in name]


def test_the_model_status_names_the_method(llama: PreTrainedModel) -> None:
    model = get_peft_model(llama, SVFConfig())
    assert model.get_model_status().peft_types == {"default": "SVF"}
    assert f"{model.peft_config['default'].peft_type.value} {model.peft_type}" == "SVF SVF"


def test_the_input_is_not_cast_where_peft_says_so(llama: PreTrainedModel) -> None:
    layer = next(iter(svf_layers(get_peft_model(llama, SVFConfig())).values()))
    x = torch.ones(1, layer.in_features, dtype=torch.float64)
    assert layer(x).dtype == torch.float64
    with disable_input_dtype_casting(layer), pytest.raises(RuntimeError, match="dtype"):
        layer(x)


# A weight that is changed after the adapter was put on it


def _write(layer: SVFLinear, how: str) -> None:
    weight = layer.get_base_layer().weight
    other = torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)) * 0.1
    if how == "copy":
        with torch.no_grad():
            weight.copy_(other)
    elif how == "data":
        weight.data = other
    elif how == "load_state_dict":
        layer.get_base_layer().load_state_dict({"weight": other})
    else:
        weight.data.copy_(other)


@pytest.mark.parametrize("how", ["copy", "data", "load_state_dict"])
def test_at_the_start_a_changed_weight_is_decomposed_again(
    llama: PreTrainedModel, ids: Tensor, logits: Callable, how: str
) -> None:
    model = get_peft_model(llama, SVFConfig())
    for layer in svf_layers(model).values():
        _write(layer, how)
    with model.disable_adapter():
        expected = logits(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["copy", "data", "load_state_dict"])
def test_a_trained_adapter_refuses_a_changed_weight(
    llama: PreTrainedModel, logits: Callable, perturb: Callable, how: str
) -> None:
    model = perturb(get_peft_model(llama, SVFConfig()))
    _write(svf_layers(model)["base_model.model.model.layers.1.mlp.up_proj"], how)
    with pytest.raises(SVFError, match=r"weight of model\.layers\.1\.mlp\.up_proj was changed"):
        logits(model)


@pytest.mark.parametrize("step", ["merge", "save"])
def test_a_write_past_autograd_is_seen_when_merging_and_saving(
    llama: PreTrainedModel, perturb: Callable, tmp_path: Path, step: str
) -> None:
    model = perturb(get_peft_model(llama, SVFConfig()))
    _write(svf_layers(model)["base_model.model.model.layers.1.mlp.up_proj"], "past autograd")
    with pytest.raises(SVFError, match="was changed"):
        model.merge_adapter() if step == "merge" else model.save_pretrained(tmp_path)


def test_the_same_values_written_again_are_no_change(
    llama: PreTrainedModel, logits: Callable, perturb: Callable, tmp_path: Path
) -> None:
    model = perturb(get_peft_model(llama, SVFConfig()))
    before = logits(model)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(logits(model), before)
    model.to(torch.bfloat16)
    logits(model)
    model.save_pretrained(tmp_path)


# Weight decay


@pytest.mark.parametrize("config", [{}, {"parameterization": "sigmoid", "max_multiplier": 3.0}], ids=str)
def test_a_decay_of_z_to_zero_is_warned_of_once(llama: PreTrainedModel, config: dict) -> None:
    model = get_peft_model(llama, SVFConfig(**config))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    with pytest.warns(UserWarning, match="weight_decay 0.1 pulls z of SVF to 0.*weight_decay 0"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_no_warning_where_nothing_is_pulled_off(llama: PreTrainedModel) -> None:
    model = get_peft_model(llama, SVFConfig())
    z = [p for name, p in model.named_parameters() if "svf_z" in name]
    others = torch.nn.Linear(2, 2)
    sigmoid = get_peft_model(
        nn.Sequential(nn.Linear(4, 4)), SVFConfig(target_modules=["0"], parameterization="sigmoid")
    )
    groups = [{"params": z, "weight_decay": 0.0}, {"params": others.parameters()}, {"params": sigmoid.parameters()}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.optim.AdamW(groups, weight_decay=0.1).step()
