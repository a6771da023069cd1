"""The behaviours of `peft_table.py`, on a network of `Linear` layers, one with GPT-2's `Conv1D`, and a small Llama."""

import ast
import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SIZES
from peft import (
    PeftModel,
    convert_to_lora,
    get_base_model_state_dict,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_base_model_state_dict,
    set_peft_model_state_dict,
)
from peft.helpers import check_if_peft_model
from peft_table import DOES_NOT_HOLD, HOLDS, NO_MEANING
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
)
from transformers.pytorch_utils import Conv1D

from svf_rl.errors import SVFError
from svf_rl.svf import SVFConfig, svf_layers


class Network(nn.Module):
    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


def linear() -> nn.Module:
    torch.manual_seed(0)
    return Network(nn.Linear(5, 6)).eval()


def conv1d() -> nn.Module:
    torch.manual_seed(0)
    return Network(Conv1D(6, 5)).eval()


def llama(auto: Any = AutoModelForCausalLM, **values: Any) -> nn.Module:
    torch.manual_seed(0)
    return auto.from_config(LlamaConfig(**{**SIZES, "num_hidden_layers": 1, **values})).eval()


X = torch.linspace(-1, 1, 20).reshape(4, 5)
IDS = torch.tensor([[1, 5, 9, 3], [2, 7, 7, 1]])

# name → how the model is made, its targets, other settings
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "linear, an expression": (linear, {"target_modules": "first"}),
    "linear, a list": (linear, {"target_modules": ["first", "last"]}),
    "linear, modules to save": (linear, {"target_modules": ["first"], "modules_to_save": ["last"]}),
    "linear, sigmoid": (linear, {"target_modules": ["first", "last"], "parameterization": "sigmoid"}),
    "linear, top": (linear, {"target_modules": ["first", "last"], "core": "top:2"}),
    "linear, bottom": (linear, {"target_modules": ["first", "last"], "core": "bottom:2"}),
    "linear, projected": (linear, {"target_modules": ["first", "last"], "core": "projected:3"}),
    "linear, band": (linear, {"target_modules": ["first", "last"], "core": "band:1"}),
    "linear, block": (linear, {"target_modules": ["first", "last"], "core": "block:2"}),
    "linear, block at the bottom": (linear, {"target_modules": ["first", "last"], "core": "block:2:bottom"}),
    "linear, block and biases": (linear, {"target_modules": ["first"], "core": "block:2:random", "biases": True}),
    "conv1d": (conv1d, {"target_modules": ["first"]}),
    "conv1d, band and biases": (conv1d, {"target_modules": ["first"], "core": "band:2", "biases": True}),
    "llama, projected": (llama, {"task_type": "CAUSAL_LM", "core": "projected:13"}),
    "llama": (llama, {"task_type": "CAUSAL_LM"}),
}
every_case = pytest.mark.parametrize(("make", "values"), CASES.values(), ids=CASES)
networks = pytest.mark.parametrize(("make", "values"), list(CASES.values())[:-2], ids=list(CASES)[:-2])


def config(values: dict[str, Any], start: str = "random") -> SVFConfig:
    return SVFConfig(**{"init": start, "init_std": 0.3, **values})


def adapted(make: Callable[[], nn.Module], values: dict[str, Any], name: str = "default", seed: int = 1) -> PeftModel:
    base = make()
    torch.manual_seed(seed)
    return get_peft_model(base, config(values), adapter_name=name).eval()


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        if hasattr(model, "config") and hasattr(model, "generate"):
            return model(input_ids=IDS).logits
        return model(X.to(next(model.parameters()).dtype))


same = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


def differ(a: Tensor, b: Tensor) -> bool:
    return not torch.allclose(a, b, rtol=1e-3, atol=1e-4)


# What holds


@every_case
def test_it_is_a_peft_model(make: Callable, values: dict, tmp_path: Path) -> None:
    model = adapted(make, values, "own")
    assert all(hasattr(model, name) for name in ("save_pretrained", "from_pretrained", "push_to_hub"))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".own." in name for name in trained)
    model.save_pretrained(tmp_path)
    assert check_if_peft_model(str(tmp_path / "own"))


@every_case
def test_the_configuration_is_the_callers(make: Callable, values: dict, tmp_path: Path) -> None:
    own = config(values)
    model = get_peft_model(make(), own)
    assert model.peft_config["default"] is own
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make(), tmp_path, config=own)
    assert loaded.peft_config["default"] is own
    assert own.inference_mode


@every_case
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
def test_saved_and_loaded(make: Callable, values: dict, tmp_path: Path, safe: bool) -> None:
    model = adapted(make, values)
    assert differ(run(model), run(make())) or "modules_to_save" in values
    model.save_pretrained(tmp_path, safe_serialization=safe)
    loaded = PeftModel.from_pretrained(make(), tmp_path)
    assert torch.equal(run(loaded), run(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert any(p.requires_grad for p in PeftModel.from_pretrained(make(), tmp_path, is_trainable=True).parameters())


@every_case
def test_several_are_saved(make: Callable, values: dict, tmp_path: Path) -> None:
    model = adapted(make, values)
    for name in ("adapter", "my_adapter", "adapter_mine"):
        model.add_adapter(name, config(values))
    model.save_pretrained(tmp_path / "all")
    model.save_pretrained(tmp_path / "one", selected_adapters=["my_adapter"])
    assert [path.name for path in (tmp_path / "one").iterdir() if path.is_dir()] == ["my_adapter"]
    loaded = PeftModel.from_pretrained(make(), tmp_path / "all" / "my_adapter", adapter_name="my_adapter")
    loaded.load_adapter(tmp_path / "all" / "adapter", "adapter")
    for name in ("adapter", "my_adapter"):
        model.set_adapter(name)
        loaded.set_adapter(name)
        assert torch.equal(run(loaded), run(model))


@every_case
def test_low_memory_loading(make: Callable, values: dict, tmp_path: Path) -> None:
    model = adapted(make, values)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make(), tmp_path, low_cpu_mem_usage=True)
    loaded.load_adapter(tmp_path, "other", low_cpu_mem_usage=True)
    assert not any(p.is_meta for p in loaded.parameters())
    assert torch.equal(run(loaded), run(model))
    bare = inject_adapter_in_model(config(values), make(), low_cpu_mem_usage=True)
    assert any(p.is_meta for p in bare.parameters())
    assert get_peft_model_state_dict(bare)


@networks
def test_injected_into_a_bare_model(make: Callable, values: dict) -> None:
    torch.manual_seed(1)
    one = inject_adapter_in_model(config(values), make()).eval()
    other = inject_adapter_in_model(config(values, "identity"), make(), low_cpu_mem_usage=True).eval()
    result = set_peft_model_state_dict(other, get_peft_model_state_dict(one), low_cpu_mem_usage=True)
    assert not result.unexpected_keys
    assert torch.equal(run(other), run(one))


@every_case
def test_merging(make: Callable, values: dict) -> None:
    model = adapted(make, values)
    expected = run(model)
    model.merge_adapter()
    same(run(model), expected)
    model.merge_adapter()  # nothing more to merge
    same(run(model), expected)
    for safe in (False, True):
        plain = adapted(make, values).train().merge_and_unload(safe_merge=safe).eval()
        same(run(plain), expected)
        assert not svf_layers(plain)
    same(run(adapted(make, {**values, "modules_to_save": None}).unload()), run(make()))


@every_case
def test_unmerging(make: Callable, values: dict) -> None:
    model = adapted(make, values)
    expected, weights = run(model), {name: p.clone() for name, p in model.named_parameters()}
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(run(model), expected)
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())


@networks
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_merging_in_half_precision_and_with_nan(make: Callable, values: dict, dtype: torch.dtype) -> None:
    model = adapted(lambda: make().to(dtype), values)
    expected = run(model)
    torch.testing.assert_close(run(model.merge_and_unload()), expected, rtol=0.05, atol=0.05)
    broken = adapted(make, values)
    next(iter(svf_layers(broken).values())).svf_z["default"].weight.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"NaNs detected in the merged weights\. The adapter default seems to"):
        broken.merge_and_unload(safe_merge=True)


@networks
def test_several_active_adapters(make: Callable, values: dict) -> None:
    values = {**values, "modules_to_save": None}
    model = adapted(make, values)
    model.add_adapter("other", config(values))
    alone = run(model)
    model.base_model.set_adapter(["default", "other"])
    both = run(model)
    assert differ(alone, both)
    model.merge_adapter()
    same(run(model), both)
    model.unmerge_adapter()
    model.merge_adapter(adapter_names=["default"])
    with pytest.warns(UserWarning, match="additionally merging other"):
        model.merge_adapter(adapter_names=["other"])
    same(run(model), both)
    model.unmerge_adapter()
    assert torch.equal(run(model), both)


@every_case
def test_deleting(make: Callable, values: dict) -> None:
    model = adapted(make, values)
    expected = run(model)
    model.add_adapter("other", config(values))
    model.delete_adapter("other")
    assert torch.equal(run(model), expected)
    assert not any("other" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="nobody"):
        model.delete_adapter("nobody")
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged"):
        model.delete_adapter("default")
    same(run(model), expected)


@every_case
def test_training_changes_the_adapter_alone(make: Callable, values: dict) -> None:
    model = adapted(make, values).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    output = model(input_ids=IDS).logits if "task_type" in values else model(X)
    output.square().sum().backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".default." in name for name in changed)


@every_case
@pytest.mark.parametrize("merged", [False, True])
def test_disabling(make: Callable, values: dict, merged: bool) -> None:
    model, base = adapted(make, values), run(make())
    expected = run(model)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    if merged:
        model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(run(model), base)
        with model.disable_adapter():
            assert torch.equal(run(model), base)
        assert torch.equal(run(model), base)
    same(run(model), expected)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


@networks
def test_what_is_trained(make: Callable, values: dict) -> None:
    model = adapted(make, values)
    model.add_adapter("other", config(values))

    def trained() -> set[str]:
        return {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad and "svf_z" in name}

    assert trained() == {"default"}
    model.set_adapter("other")
    assert trained() == {"other"}
    model.set_requires_grad("default")
    assert trained() == {"default", "other"}
    model.set_requires_grad(["default", "other"], requires_grad=False)
    assert trained() == set()
    model.set_adapter("default", inference_mode=True)
    assert trained() == set()


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(make: Callable, values: dict, dtype: torch.dtype) -> None:
    model = adapted(lambda: make().to(dtype), values)
    output = run(model)
    assert output.dtype == dtype
    assert torch.isfinite(output).all()
    torch.testing.assert_close(output.float(), run(adapted(make, values)), rtol=0.1, atol=0.1)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.isfinite(run(adapted(make, values))).all()


@networks
def test_attributes_of_layers(make: Callable, values: dict) -> None:
    layer = svf_layers(adapted(make, values))["base_model.model.first"]
    assert (layer.in_features, layer.out_features) == (5, 6)
    assert layer.weight is layer.base_layer.weight
    assert layer.bias is layer.base_layer.bias


@every_case
def test_state_of_the_base_model(make: Callable, values: dict) -> None:
    model, plain = adapted(make, values), make().state_dict()
    state = get_base_model_state_dict(model)
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[name], plain[name]) for name in plain)
    expected = run(model)
    set_base_model_state_dict(model, {name: value.clone() for name, value in state.items()})
    assert torch.equal(run(model), expected)


@every_case
def test_status(make: Callable, values: dict) -> None:
    model = adapted(make, values)
    status = model.get_model_status()
    assert status.peft_types == {"default": "SVF"}
    assert status.adapter_model_type == "SVFModel"
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])
    assert status.requires_grad == {"default": True}
    assert status.total_params == sum(p.numel() for p in model.parameters())
    kinds = {"SVFLinear"} | ({"ModulesToSaveWrapper"} if values.get("modules_to_save") else set())
    assert {layer.module_type for layer in model.get_layer_status()} == kinds
    model.merge_adapter()
    if not values.get("modules_to_save"):  # which PEFT cannot merge, whatever the method, and calls irregular
        assert model.get_model_status().merged_adapters == ["default"]


@every_case
def test_copies(make: Callable, values: dict, tmp_path: Path) -> None:
    model = adapted(make, values)
    torch.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(run(other), run(model))


def test_the_card(tmp_path: Path) -> None:
    base = llama()
    base.name_or_path = base.config._name_or_path = "some/base"
    model = get_peft_model(base, SVFConfig(task_type="CAUSAL_LM"))
    for _ in range(2):  # saved again, it is not written twice
        model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "library_name: peft" in card
    assert "base_model: some/base" in card
    assert card.count("import svf_rl.svf") == 1
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/base"


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = adapted(*CASES["llama"]).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model(input_ids=IDS).logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_generation() -> None:
    model = adapted(*CASES["llama"])
    settings = {"max_new_tokens": 4, "do_sample": False}
    named = model.generate(input_ids=IDS, **settings)
    assert torch.equal(model.generate(IDS, **settings), named)
    merged = adapted(*CASES["llama"]).merge_and_unload()
    assert torch.equal(merged.generate(IDS, **settings), named)


@pytest.mark.parametrize(
    ("task", "auto"),
    [
        ("TOKEN_CLS", AutoModelForTokenClassification),
        ("SEQ_CLS", AutoModelForSequenceClassification),
        ("QUESTION_ANS", AutoModelForQuestionAnswering),
    ],
)
def test_heads(task: str, auto: Any, tmp_path: Path) -> None:
    own = SVFConfig(task_type=task)
    model = get_peft_model(llama(auto), own)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("modules_to_save" in name for name in trained)
    model.save_pretrained(tmp_path)
    PeftModel.from_pretrained(llama(auto), tmp_path)


@networks
def test_weighted_adapters(make: Callable, values: dict) -> None:
    values = {**values, "modules_to_save": None}
    model = adapted(make, values)
    model.add_adapter("other", config(values))
    if not config(values).is_multiplier:
        with pytest.raises(SVFError, match="more than multipliers of singular values"):
            model.add_weighted_adapter(["default", "other"], [1.0, 0.0], "mixed", "linear")
        return
    model.add_weighted_adapter(["default", "other"], [1.0, 0.0], "mixed", "linear")
    expected = run(model)
    model.set_adapter("mixed")
    same(run(model), expected)


@networks
def test_conversion_to_lora(make: Callable, values: dict) -> None:
    values = {**values, "modules_to_save": None, "target_modules": ["first"]}
    model = adapted(make, values)
    assert model.supports_lora_conversion() is not values.get("biases", False)
    if values.get("biases"):  # which a LoRA has not
        return
    converted, state = convert_to_lora(model, 5)
    lora = inject_adapter_in_model(converted, make()).eval()
    set_peft_model_state_dict(lora, state)
    same(run(lora), run(model))


@pytest.mark.parametrize("name", ["linear, a list", "linear, projected", "conv1d, band and biases", "conv1d"])
def test_compiled(name: str) -> None:
    model = adapted(*CASES[name])
    same(run(torch.compile(model, backend="eager", fullgraph=True)), run(model))


# What does not


@networks
def test_z_is_fp32_in_any_case(make: Callable, values: dict) -> None:
    model = get_peft_model(make().to(torch.bfloat16), config(values), autocast_adapter_dtype=False)
    assert {p.dtype for name, p in model.named_parameters() if "svf_z" in name} == {torch.float32}


@pytest.mark.parametrize(
    "layer",
    [nn.Embedding(5, 6), nn.Conv1d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Conv3d(1, 1, 1), nn.MultiheadAttention(6, 2)],
)
@pytest.mark.parametrize("targets", [["first"], ["first", "last"]], ids=["alone", "beside a linear layer"])
def test_other_layers_are_refused(layer: nn.Module, targets: list[str]) -> None:
    with pytest.raises(SVFError, match="first"):
        get_peft_model(Network(layer), SVFConfig(target_modules=targets))


def test_each_row_has_its_own_adapter() -> None:
    model = adapted(*CASES["llama"])
    model.add_adapter("other", config(CASES["llama"][1], start="random"))
    model.eval()
    alone = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        alone[name] = run(model)
    with model.disable_adapter():
        alone["__base__"] = run(model)
    for names in (["other", "__base__"], ["default", "other"], ["__base__", "__base__"]):
        with torch.no_grad():
            mixed = model(input_ids=IDS, adapter_names=names).logits
        for row, name in enumerate(names):
            same(mixed[row], alone[name][row])


@networks
def test_other_weights_are_refused(make: Callable, values: dict, tmp_path: Path) -> None:
    adapted(make, values).save_pretrained(tmp_path)
    other = make()
    torch.manual_seed(9)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    with pytest.raises(SVFError, match="other base weights"):
        PeftModel.from_pretrained(other, tmp_path)


def test_quantised_base(tmp_path: Path) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    llama().save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    quanto.quantize(base, weights=quanto.qint8)
    quanto.freeze(base)
    expected = run(base)
    model = get_peft_model(base, config({}, "identity"))
    assert torch.equal(run(model), expected)
    with pytest.raises(SVFError, match="svf-rl merge"):
        model.merge_and_unload()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn], ids=str)
def test_quantised_layers_are_refused(dtype: torch.dtype) -> None:
    model = linear()
    model.first.weight = nn.Parameter(model.first.weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(SVFError, match=f"first is quantized .*{dtype}"):
        get_peft_model(model, SVFConfig(target_modules=["first", "last"]))


# The table


def test_every_behaviour_has_its_test_and_its_line_in_the_documentation(repository: Path) -> None:
    code = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    tests = {node.name for node in code.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    named = {*HOLDS.values(), *(test for _, test in DOES_NOT_HOLD.values())}
    assert tests - {"test_every_behaviour_has_its_test_and_its_line_in_the_documentation"} == named
    page = (repository / "docs" / "reference" / "peft.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| behaviour")]
    assert rows == [
        *(f"| {behaviour} |" for behaviour in HOLDS),
        *(f"| {behaviour} | {why} |" for behaviour, (why, _) in DOES_NOT_HOLD.items()),
        *(f"| {behaviour} | {why} |" for behaviour, why in NO_MEANING.items()),
    ]
    assert f"**{len(HOLDS)} of {len(HOLDS) + len(DOES_NOT_HOLD)}**" in page
