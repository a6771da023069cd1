"""Adapter kinds: each is found by name, and what it says of itself is what PEFT, the trainer and the plan do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import save_adapter
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from svf_rl.errors import SVFError
from svf_rl.generation.weights import adapted_weights
from svf_rl.memory.model import PlannedModel
from svf_rl.models.arguments import AdapterArguments, ModelArguments
from svf_rl.models.kinds import find_kind, kind_of, kind_of_model, load_saved
from svf_rl.models.kinds.kind import all_kinds
from svf_rl.models.loading import load_adapted, load_base
from svf_rl.settings.dry_run_model import find_adapted_matrices
from svf_rl.settings.recipe import load_recipe
from svf_rl.svf import SVFConfig, svf_layers
from svf_rl.svf.layer import held_factors
from svf_rl.training.policy import reference

# what a recipe says of the adapter, and what a table calls it when it is saved
ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "svf": ({}, "SVF"),
    "top": ({"core": "top:5"}, "SVF top:5"),
    "projected": ({"core": "projected:13"}, "SVF projected:13"),
    "band": ({"core": "band:2"}, "SVF band:2"),
    "block": ({"core": "block:6:random", "core_seed": 3}, "SVF block:6:random"),
    "biases": ({"biases": True}, "SVF + biases"),
    "lora": ({"adapter": "lora"}, "LORA r=16"),
    "dora": ({"adapter": "lora", "lora_use_dora": True, "lora_r": 1}, "DoRA r=1"),
    "full": ({"adapter": "full"}, "full"),
    "combination": ({"adapter": "combination"}, "SVF combination"),
}
KINDS = sorted(ADAPTERS)
MODEL = ModelArguments(dtype="float32")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("experts")
    config = SVFConfig(init="random", init_std=0.05)
    return [save_adapter(root / name, config, seed) for seed, name in enumerate(["one", "two"])]


@pytest.fixture
def values(experts: list[str], request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a recipe says of the adapter of each kind."""
    adapter = request.node.callspec.params["adapter"]
    return {**ADAPTERS[adapter][0], **({"experts": experts} if adapter == "combination" else {})}


def test_every_kind_is_looked_at() -> None:
    assert {values.get("adapter", "svf") for values, _ in ADAPTERS.values()} == all_kinds().keys()


def trained(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def moved(model: PeftModel) -> PeftModel:
    """The model a step away from where its training starts."""
    with torch.no_grad():
        for index, parameter in enumerate(trained(model).values()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter += 0.1 * noise
    return model.eval()


def logits(model: PeftModel) -> torch.Tensor:
    return model(input_ids=torch.arange(3, 20)[None]).logits.detach()


@pytest.mark.parametrize("adapter", KINDS)
def test_the_reference_is_the_base_model(adapter: str, values: dict[str, Any]) -> None:
    base = logits(load_base(MODEL).eval())
    model = moved(load_adapted(MODEL, AdapterArguments(**values)))
    assert (logits(model) - base).abs().max() > 1e-3
    with reference(model):
        torch.testing.assert_close(logits(model), base, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapter", KINDS)
def test_a_rebuilt_weight_does_what_the_layer_does(adapter: str, values: dict[str, Any]) -> None:
    model = moved(load_adapted(MODEL, AdapterArguments(**values)))
    kind = kind_of_model(model)
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    assert layers
    for layer in layers:
        weight = kind.rebuilt_weight(layer)
        if weight is not None:
            x = torch.randn(3, weight.shape[1], dtype=weight.dtype)
            bias = layer.bias_change() if adapter == "biases" else None
            torch.testing.assert_close(torch.nn.functional.linear(x, weight, bias), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapter", KINDS)
def test_what_is_saved_is_loaded_again(adapter: str, values: dict[str, Any], tmp_path: Path) -> None:
    model = moved(load_adapted(MODEL, AdapterArguments(**values)))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    kind = kind_of(config)
    assert kind.peft_type == config["peft_type"]
    assert kind.label(config) == ADAPTERS[adapter][1]
    assert kind.describe_saved(config)
    assert kind.count_values(tmp_path, config) == sum(p.numel() for p in set(trained(model).values()))
    again = load_saved(load_base(MODEL), MODEL, tmp_path).eval()
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)
    assert trained(again)


@pytest.mark.parametrize("adapter", KINDS)
def test_the_dry_run_and_the_plan_count_what_is_trained(
    adapter: str, values: dict[str, Any], repository: Path, tmp_path: Path
) -> None:
    without_vllm = {"use_vllm": False} if adapter == "biases" else {}  # which has no place for them in this model
    recipe = load_recipe(
        repository / "recipes/quickstart.yaml",
        [word for key, value in {**values, **without_vllm}.items() for word in (f"--{key}", json.dumps(value))],
    )
    model = load_adapted(recipe.model, recipe.adapter)
    count = sum(parameter.numel() for parameter in set(trained(model).values()))
    adapted = find_adapted_matrices(recipe, [])
    assert adapted is not None
    assert adapted.trained_values == count
    assert set(adapted.matrices) == {
        name.removeprefix("base_model.model.") for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)
    }
    planned = PlannedModel(recipe)
    assert planned.trained_values == count
    assert planned.tensors.trained == 4 * count
    held = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    factors = sum(part.nbytes for part in held_factors(model))  # `s` is counted apart
    if adapter == "projected":
        factors += sum(4 * 13 * layer.svf_factors.s.numel() for layer in svf_layers(model).values())
    assert planned.tensors.base == held
    assert planned.tensors.factors + planned.tensors.singular_values == factors
    assert recipe.adapter.kind.describe(recipe.adapter)


@pytest.mark.parametrize("adapter", ["svf", "lora", "full"])
@pytest.mark.parametrize(
    "targets",
    [
        {"target_modules": ".*mlp.*"},  # what holds the matrices, and an activation
        {"target_modules": ".*", "exclude_modules": r"lm_head|.*embed_tokens|.*\.1\..*"},
    ],
    ids=lambda targets: targets["target_modules"],
)
def test_an_expression_adapts_the_matrices_that_are_counted_and_nothing_else(
    adapter: str, targets: dict[str, Any], tmp_path: Path
) -> None:
    arguments = AdapterArguments(adapter=adapter, **targets)
    base = load_base(MODEL)
    matrices, values = arguments.kind.find_matrices(arguments, arguments.kind.config(arguments), base)
    assert all(name.endswith("_proj") for name in matrices)
    model = moved(load_adapted(MODEL, arguments))
    assert sum(parameter.numel() for parameter in trained(model).values()) == values
    assert {
        name.removeprefix("base_model.model.") for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)
    } == set(matrices)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert len(json.dumps(config["target_modules"])) < 600  # PEFT shortens lists of names
    assert not any("embed" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, str(tmp_path)).eval()), logits(model))


@pytest.mark.parametrize("adapter", ["svf", "lora", "full"])
def test_a_module_that_is_listed_is_meant(adapter: str) -> None:
    arguments = AdapterArguments(adapter=adapter, target_modules=["gate_proj", "act_fn"])
    for look in (lambda base: arguments.kind.find_matrices(arguments, arguments.kind.config(arguments), base),
                 lambda base: arguments.kind.put_on(base, MODEL, arguments)):  # fmt: skip
        with pytest.raises(SVFError, match="act_fn, a SiLUActivation"):
            look(load_base(MODEL))


@pytest.mark.parametrize("adapter", ["projected", "band", "block", "dora", "full"])
def test_activations_are_planned(adapter: str, values: dict[str, Any], repository: Path) -> None:
    words = [word for key, value in values.items() for word in (f"--{key}", json.dumps(value))]
    planned = PlannedModel(load_recipe(repository / "recipes/quickstart.yaml", words))
    assert planned.activations(2, 16, False) is not None


def test_biases_that_the_base_model_has_no_place_for_are_said() -> None:
    model = load_adapted(MODEL, AdapterArguments(biases=True))
    with pytest.raises(SVFError, match="has no bias in the base model") as caught:
        next(adapted_weights(model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{"core": "projected:13"}, {"adapter": "full"}], ids=str)
def test_what_zero_3_cannot_share_out(values: dict[str, Any]) -> None:
    kind = find_kind(values.get("adapter", "svf"))
    kind.check_training(values, 2)
    with pytest.raises(SVFError, match=r"ZeRO-3 .*zero2\.yaml") as caught:
        kind.check_training(values, 3)
    assert "\n" not in str(caught.value)


def test_layers_of_lora_go_with_a_list_of_names() -> None:
    with pytest.raises(SVFError, match="layers_to_transform: LoRA takes it beside a list of names alone: set lora_t"):
        find_kind("lora").config(AdapterArguments(adapter="lora", layers_to_transform=[0]))
    listed = AdapterArguments(adapter="lora", layers_to_transform=[0], lora_target_modules=["up_proj"])
    assert find_kind("lora").config(listed).layers_to_transform == [0]
    assert (
        find_kind("lora").config(AdapterArguments(adapter="lora", layers_to_transform=[])).layers_to_transform is None
    )


def test_a_kind_that_is_not_there() -> None:
    with pytest.raises(SVFError, match="unknown adapter 'dora': use one of combination, "):
        find_kind("dora")


def test_methods_of_peft_without_a_file_are_listed_all_the_same() -> None:
    config = {"peft_type": "LOHA", "r": 4, "target_modules": ["up_proj", "down_proj"]}
    kind = kind_of(config)
    assert (kind.name, kind.title, kind.label(config)) == ("loha", "LOHA", "LOHA r=4")
    assert "`down_proj`, `up_proj`" in kind.describe_saved(config)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("lora_r", 8, r"other settings \(r: 16 there, 8 here\)"),
        ("lora_alpha", 64, "lora_alpha: 32 there, 64 here"),
        ("lora_dropout", 0.3, "lora_dropout: 0.0 there, 0.3 here"),
        ("lora_target_modules", ["up_proj"], "target_modules"),
        ("layers_to_transform", [0], r"layers_to_transform: null there, \[0\] here"),
        ("exclude_modules", r".*\.2\..*", "exclude_modules: null there"),
        ("modules_to_save", ["norm"], "modules_to_save"),
    ],
)
def test_a_saved_adapter_with_other_settings_than_the_recipe(
    setting: str, value: Any, message: str, tmp_path: Path
) -> None:
    saved = AdapterArguments(adapter="lora", lora_target_modules=["up_proj", "down_proj"])
    load_adapted(MODEL, saved).save_pretrained(tmp_path)
    same = AdapterArguments(adapter="lora", lora_target_modules=["down_proj", "up_proj"], adapter_path=str(tmp_path))
    assert trained(load_adapted(MODEL, same))
    setattr(same, setting, value)
    with pytest.raises(SVFError, match=message):
        load_adapted(MODEL, same)
    with pytest.raises(SVFError, match="holds a LORA adapter, the recipe says adapter: svf"):
        load_adapted(MODEL, AdapterArguments(adapter_path=str(tmp_path)))


def test_a_saved_adapter_of_the_same_matrices_goes_on_whatever_words_name_them(tmp_path: Path) -> None:
    load_adapted(MODEL, AdapterArguments(layers_to_transform=[0, 2])).save_pretrained(tmp_path)
    saved = {"adapter_path": str(tmp_path)}
    assert len(svf_layers(load_adapted(MODEL, AdapterArguments(exclude_modules=r".*\.1\..*", **saved)))) == 6
    with pytest.raises(SVFError, match=r"layers_to_transform: \[0, 2\] there, \[1\] here"):
        load_adapted(MODEL, AdapterArguments(layers_to_transform=[1], **saved))
