"""What an adapter folder holds, how it comes back, and what is refused."""

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    PeftConfig,
    PeftModel,
    cast_mixed_precision_params,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from svf_rl.errors import SVFError
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig, svf_layers
from svf_rl.svf.decompose import Factors, fingerprint, thin_svd
from svf_rl.svf.expert import read_expert
from svf_rl.svf.targets import TARGETS

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def saved(make_llama: Callable, perturb: Callable, tmp_path: Path) -> Path:
    """An adapter folder, trained on `make_llama()`."""
    folder = tmp_path / "adapter"
    perturb(get_peft_model(make_llama(), SVFConfig())).save_pretrained(folder)
    return folder


@pytest.fixture
def trained(make_llama: Callable, perturb: Callable, logits: Callable) -> Tensor:
    """The logits of the model that was saved."""
    return logits(perturb(get_peft_model(make_llama(), SVFConfig())))


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def first(tensors: dict[str, Tensor], ending: str) -> str:
    return next(key for key in sorted(tensors) if key.endswith(ending))


def assert_refused(model: PreTrainedModel, folder: Path, says: str, low_cpu_mem_usage: bool = False) -> None:
    with pytest.raises(SVFError, match=says) as caught:
        PeftModel.from_pretrained(model, folder, low_cpu_mem_usage=low_cpu_mem_usage)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


# What is saved


def test_the_file_holds_z_the_fingerprints_and_the_probes_alone(saved: Path, llama: PreTrainedModel) -> None:
    tensors = load_file(saved / WEIGHTS)
    linears = [f"base_model.model.model.layers.{i}.mlp.{n}_proj" for i in (0, 1) for n in ("gate", "up", "down")]
    shapes = {"svf_z.weight": (32,), "svf_fingerprint": (32,), "svf_probe": (16,)}
    assert {key: tuple(value.shape) for key, value in tensors.items()} == {
        f"{linear}.{name}": shape for linear in linears for name, shape in shapes.items()
    }
    assert all(tensors[f"{linear}.svf_z.weight"].dtype == torch.float32 for linear in linears)
    W = llama.model.layers[1].mlp.up_proj.weight
    recorded = tensors["base_model.model.model.layers.1.mlp.up_proj.svf_fingerprint"]
    assert bytes(recorded.tolist()).hex() == fingerprint(W)
    assert (saved / WEIGHTS).stat().st_size < 5_000


def test_the_configuration_comes_back_with_presets_as_expressions(make_llama: Callable, tmp_path: Path) -> None:
    config = SVFConfig(
        target_modules="mlp+attention",
        exclude_modules=["up_proj"],
        layers_to_transform=[1],
        parameterization="sigmoid",
        max_multiplier=3.0,
        renormalize=True,
        init="random",
        init_std=0.02,
    )
    get_peft_model(make_llama(), config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == "SVF"
    assert written["target_modules"] == TARGETS["mlp+attention"]
    assert len(bytes.fromhex(written["base_fingerprint"])) == 32
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, SVFConfig)
    ignored = ("base_fingerprint", "inference_mode", "auto_mapping", "peft_version")
    assert {k: v for k, v in loaded.to_dict().items() if k not in ignored} == {
        k: v for k, v in config.to_dict().items() if k not in ignored
    }


def test_one_configuration_serves_two_models(make_llama: Callable, logits: Callable, tmp_path: Path) -> None:
    config = SVFConfig()
    one, two = get_peft_model(make_llama(seed=0), config), get_peft_model(make_llama(seed=1), config)
    for seed, model in enumerate((one, two)):
        model.save_pretrained(tmp_path / str(seed))
        loaded = PeftModel.from_pretrained(make_llama(seed=seed), tmp_path / str(seed))
        assert torch.equal(logits(loaded), logits(model))


def test_every_adapter_records_its_base(make_llama: Callable, tmp_path: Path) -> None:
    model = get_peft_model(make_llama(), SVFConfig())
    model.add_adapter("second", SVFConfig(target_modules="attention"))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert written["base_fingerprint"]
    config = SVFConfig(target_modules="attention", base_fingerprint=written["base_fingerprint"])
    other = get_peft_model(make_llama(seed=1), SVFConfig(target_modules="mlp+attention"))
    with pytest.raises(SVFError, match="other base weights"):
        other.add_adapter("second", config)
    assert list(other.peft_config) == ["default"]
    assert all(list(layer.svf_z) == ["default"] for layer in svf_layers(other).values())


# How it comes back


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_from_pretrained(
    saved: Path, trained: Tensor, make_llama: Callable, logits: Callable, low_cpu_mem_usage: bool
) -> None:
    model = PeftModel.from_pretrained(make_llama(), saved, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(model), trained)
    assert not any(p.is_meta or p.requires_grad for p in model.parameters())
    model = PeftModel.from_pretrained(make_llama(), saved, is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage)
    assert {name.rpartition(".svf_")[2] for name, p in model.named_parameters() if p.requires_grad} == {
        "z.default.weight"
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_trainable", [False, True])
def test_transformers_load_adapter(
    make_llama: Callable, logits: Callable, perturb: Callable, tmp_path: Path, dtype: torch.dtype, is_trainable: bool
) -> None:
    model = perturb(get_peft_model(make_llama().to(dtype), SVFConfig()))
    model.save_pretrained(tmp_path)
    loaded = make_llama().to(dtype)
    loaded.load_adapter(tmp_path, is_trainable=is_trainable)
    assert torch.equal(logits(loaded), logits(model))
    for ours, theirs in zip(svf_layers(loaded).values(), svf_layers(model).values(), strict=True):
        assert ours.svf_z["default"].weight.dtype == torch.float32
        assert torch.equal(ours.svf_z["default"].weight, theirs.svf_z["default"].weight)
    assert {name.rpartition(".svf_")[2] for name, p in loaded.named_parameters() if p.requires_grad} == (
        {"z.default.weight"} if is_trainable else set()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_auto_classes_find_base_and_adapter(
    make_llama: Callable, perturb: Callable, logits: Callable, tmp_path: Path, dtype: torch.dtype
) -> None:
    make_llama().to(dtype).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype)
    model = perturb(get_peft_model(base, SVFConfig()))
    model.save_pretrained(tmp_path / "adapter")
    for auto in (AutoPeftModelForCausalLM, AutoModelForCausalLM):
        loaded = auto.from_pretrained(tmp_path / "adapter", dtype=dtype)
        assert len(svf_layers(loaded)) == 6
        assert torch.equal(logits(loaded.eval()), logits(model.eval()))


def test_an_adapter_loads_beside_another_one(
    saved: Path, trained: Tensor, make_llama: Callable, logits: Callable
) -> None:
    model = get_peft_model(make_llama(), SVFConfig(target_modules="attention"))
    start = logits(model)
    model.load_adapter(saved, "second")
    assert torch.equal(logits(model), start)
    model.set_adapter("second")
    torch.testing.assert_close(logits(model), trained, rtol=0, atol=1e-5 * float(trained.abs().max()))


def test_sigmoid_and_modules_to_save_come_back(
    make_llama: Callable, perturb: Callable, logits: Callable, tmp_path: Path
) -> None:
    config = SVFConfig(parameterization="sigmoid", renormalize=True, modules_to_save=["lm_head"])
    model = perturb(get_peft_model(make_llama(), config))
    model.base_model.model.lm_head.modules_to_save["default"].weight.data.mul_(1.5)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert {key for key in load_file(tmp_path / WEIGHTS) if "svf" not in key} == {"base_model.model.lm_head.weight"}


def test_an_adapter_saved_while_merged_is_the_same(
    saved: Path, make_llama: Callable, perturb: Callable, tmp_path: Path
) -> None:
    model = perturb(get_peft_model(make_llama(), SVFConfig()))
    model.merge_adapter()
    model.save_pretrained(tmp_path / "merged")
    ours, theirs = load_file(tmp_path / "merged" / WEIGHTS), load_file(saved / WEIGHTS)
    assert all(torch.equal(value, ours[key]) for key, value in theirs.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adapter_saved_after_a_cast_loads_onto_the_uncast_base(
    make_llama: Callable, perturb: Callable, logits: Callable, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = perturb(get_peft_model(make_llama(), SVFConfig())).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path).to(dtype)
    assert torch.equal(logits(loaded), logits(model))


# What is refused


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_other_base_weights(saved: Path, make_llama: Callable, low_cpu_mem_usage: bool) -> None:
    assert_refused(make_llama(seed=1), saved, "trained on other base weights", low_cpu_mem_usage)


def test_weights_that_differ_by_little_are_said_and_taken(
    saved: Path, make_llama: Callable, trained: Tensor, logits: Callable
) -> None:
    model = make_llama()
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] += 1e-6
    with pytest.warns(UserWarning, match="other base weights, such as model.layers.1.mlp.down_proj"):
        loaded = PeftModel.from_pretrained(model, saved)
    torch.testing.assert_close(logits(loaded), trained, rtol=1e-3, atol=1e-4)


def test_an_fp16_copy_of_bf16_weights_is_taken(make_llama: Callable, perturb: Callable, tmp_path: Path) -> None:
    perturb(get_peft_model(make_llama().to(torch.bfloat16), SVFConfig())).save_pretrained(tmp_path)
    copied = make_llama().to(torch.bfloat16).to(torch.float16)
    weight = copied.model.layers[0].mlp.up_proj.weight.data
    weight[weight.abs() < 1e-3] *= 1.001  # what fp16 cannot hold of small values
    with pytest.warns(UserWarning, match="up to rounding"):
        PeftModel.from_pretrained(copied, tmp_path)


def _noise(weight: Tensor, relative: float) -> Tensor:
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.shape[0]))
    return weight + relative * noise * weight.norm() / noise.norm()


OTHERS = {
    "bf16": lambda weight: weight.to(torch.bfloat16),
    "fp16": lambda weight: weight.half(),
    "bf16 and fp16": lambda weight: weight.to(torch.bfloat16).half(),
    "0.1 %": lambda weight: _noise(weight, 1e-3),  # as far off as bf16
    "1 %": lambda weight: _noise(weight, 1e-2),
    "other rows": lambda weight: weight.flip(0),
}


@pytest.mark.parametrize("size", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("other", OTHERS)
def test_rounding_is_told_from_a_fine_tuned_base(tmp_path: Path, other: str, size: float) -> None:
    def load() -> Any:
        model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
        for layer in model.model.layers:  # stored in bf16: now with all the digits of fp32
            weight = layer.mlp.up_proj.weight.data
            weight *= 1 + (torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) - 0.5) * 2**-7
        return model

    config = SVFConfig(target_modules=["up_proj"])
    trained = get_peft_model(load(), config)
    for layer in svf_layers(trained).values():
        z = layer.svf_z["default"].weight.data
        z += size * torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    trained.save_pretrained(tmp_path)
    base = load()
    for layer in base.model.layers:
        layer.mlp.up_proj.weight.data = OTHERS[other](layer.mlp.up_proj.weight.data).float()
    if other in ("1 %", "other rows"):
        assert_refused(base, tmp_path, "trained on other base weights")
    else:
        with pytest.warns(UserWarning, match="up to rounding"):
            PeftModel.from_pretrained(base, tmp_path)


@pytest.mark.parametrize("digest", [True, False])
def test_a_small_change_on_another_base_is_refused_all_the_same(
    make_llama: Callable, tmp_path: Path, digest: bool
) -> None:
    model = get_peft_model(make_llama(), SVFConfig())
    with torch.no_grad():
        for layer in svf_layers(model).values():
            layer.svf_z["default"].weight += 1e-4 * torch.randn(32)
    model.save_pretrained(tmp_path)
    if not digest:
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_fingerprint": None}))
    assert_refused(make_llama(seed=1), tmp_path, r"trained on other base weights \(model.layers.0.* z alone")


def test_z_alone_is_taken(saved: Path, make_llama: Callable, trained: Tensor, logits: Callable) -> None:
    z = {key: value for key, value in load_file(saved / WEIGHTS).items() if key.endswith(".svf_z.weight")}
    model = get_peft_model(make_llama(), SVFConfig())
    set_peft_model_state_dict(model, z)
    assert torch.equal(logits(model), trained)


@pytest.mark.parametrize("name", ["down_proj", "mlp", "svf_fingerprint"])
def test_an_adapter_named_like_a_module_comes_back(
    make_llama: Callable, perturb: Callable, logits: Callable, tmp_path: Path, name: str
) -> None:
    model = perturb(get_peft_model(make_llama(), SVFConfig(), adapter_name=name), name)
    model.add_adapter("other", SVFConfig())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path / name)
    assert torch.equal(logits(loaded), logits(model))
    get_peft_model(make_llama(), SVFConfig()).load_adapter(tmp_path / "other", name)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_names_of_wrappers_stay_out_of_the_file(
    make_llama: Callable, perturb: Callable, saved: Path, wrapper: str
) -> None:
    model = perturb(get_peft_model(make_llama(), SVFConfig()))
    plain = model.state_dict()
    layers = model.base_model.model.model.layers
    for index, layer in enumerate(layers):  # as torch.compile and FSDP1 do it for each block
        holder = nn.Module()
        holder.add_module(wrapper, layer)
        layers[index] = holder
    state = get_peft_model_state_dict(model, state_dict=None if wrapper == "_orig_mod" else plain)
    expected = load_file(saved / WEIGHTS)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)
    set_peft_model_state_dict(model, expected)


def test_the_card_says_what_to_import(saved: Path) -> None:
    assert "import svf_rl.svf" in (saved / "README.md").read_text()
    code = f"from peft import PeftConfig; PeftConfig.from_pretrained({str(saved)!r})"
    assert subprocess.run([sys.executable, "-c", f"import svf_rl.svf; {code}"], check=False).returncode == 0


def test_a_base_in_another_type(saved: Path, make_llama: Callable) -> None:
    with pytest.warns(UserWarning, match="up to rounding"):
        PeftModel.from_pretrained(make_llama().to(torch.bfloat16), saved)
    assert_refused(make_llama().to(torch.float8_e4m3fn).float(), saved, "in the dtype of its training")


@pytest.mark.parametrize("sizes", [{"hidden_size": 64}, {"intermediate_size": 40}, {"num_hidden_layers": 1}], ids=str)
def test_a_base_of_another_shape(saved: Path, make_llama: Callable, sizes: dict[str, int]) -> None:
    assert_refused(make_llama(**sizes), saved, "trained on other base weights")


def test_transformers_load_adapter_refuses_other_weights_too(saved: Path, make_llama: Callable) -> None:
    with pytest.raises(SVFError, match="trained on other base weights"):
        make_llama(seed=1).load_adapter(saved)


@pytest.mark.parametrize("ending", [".svf_z.weight", ".svf_fingerprint", ".svf_probe"])
def test_a_missing_tensor(saved: Path, llama: PreTrainedModel, ending: str) -> None:
    edit(saved, lambda tensors: tensors.pop(first(tensors, ending)))
    assert_refused(llama, saved, rf"lacks model.layers.0.mlp.down_proj\{ending}: it is damaged")


def test_z_of_a_layer_that_is_not_adapted(saved: Path, llama: PreTrainedModel) -> None:
    config = json.loads((saved / "adapter_config.json").read_text())
    config.update(target_modules=TARGETS["attention"], base_fingerprint=None)
    (saved / "adapter_config.json").write_text(json.dumps(config))
    assert_refused(llama, saved, "z for .*mlp.*not adapted in this model")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_z_that_is_not_finite(saved: Path, llama: PreTrainedModel, value: float) -> None:
    edit(saved, lambda tensors: tensors[first(tensors, ".svf_z.weight")].fill_(value))
    assert_refused(llama, saved, "not finite")


@pytest.mark.parametrize("size", [31, 33, 1])
def test_z_of_another_length(saved: Path, llama: PreTrainedModel, size: int) -> None:
    edit(saved, lambda tensors: tensors.update({first(tensors, ".svf_z.weight"): torch.ones(size)}))
    assert_refused(llama, saved, "damaged")


DAMAGED = {
    "z of whole numbers": (".svf_z.weight", lambda z: z.bool()),
    "z of eight bits": (".svf_z.weight", lambda z: z.to(torch.float8_e4m3fn)),
    "complex z": (".svf_z.weight", lambda z: z.to(torch.complex64)),
    "a short probe": (".svf_probe", lambda probe: probe[:3].clone()),
    "a fingerprint of numbers": (".svf_fingerprint", lambda digest: digest.bfloat16()),
    "a short fingerprint": (".svf_fingerprint", lambda digest: digest[:3].clone()),
}


@pytest.mark.parametrize(("ending", "change"), DAMAGED.values(), ids=DAMAGED)
def test_tensors_of_another_kind(
    saved: Path, llama: PreTrainedModel, ending: str, change: Callable[[Tensor], Tensor]
) -> None:
    edit(saved, lambda tensors: tensors.update({(key := first(tensors, ending)): change(tensors[key])}))
    assert_refused(llama, saved, "is of another type or shape")
    with pytest.raises(SVFError, match="is of another type or shape"):
        read_expert(saved)


def test_a_tensor_that_would_replace_a_frozen_one(saved: Path, llama: PreTrainedModel) -> None:
    norm = "base_model.model.model.norm.weight"
    edit(saved, lambda tensors: tensors.update({norm: torch.full((32,), 3.0)}))
    assert_refused(llama, saved, r"the adapter file also has 'model\.norm\.weight'")
    assert bool((llama.model.norm.weight == 1).all())


@pytest.mark.parametrize("name", ["\0", "a" * 10_000, f"{'a' * 10_000}.svf_z.weight", "two\nlines.svf_z.weight"])
def test_a_name_that_is_in_no_model_is_told_on_a_line(saved: Path, llama: PreTrainedModel, name: str) -> None:
    edit(saved, lambda tensors: tensors.update({name: tensors.pop(first(tensors, ".svf_z.weight"))}))
    assert_refused(llama, saved, "the adapter")


def test_resized_embeddings_come_back(
    make_llama: Callable, perturb: Callable, logits: Callable, tmp_path: Path
) -> None:
    def resized() -> PreTrainedModel:
        model = make_llama()
        model.resize_token_embeddings(model.config.vocab_size + 2)
        return model

    model = perturb(get_peft_model(resized(), SVFConfig()))
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert any("embed_tokens" in key for key in load_file(tmp_path / WEIGHTS))
    loaded = PeftModel.from_pretrained(resized(), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize("core", ["diagonal", "band:1", "block:8"])
def test_other_methods_of_decomposition_make_the_same_model(
    make_llama: Callable,
    perturb: Callable,
    logits: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    core: str,
) -> None:
    model = perturb(get_peft_model(make_llama(), SVFConfig(core=core)))
    model.save_pretrained(tmp_path)
    monkeypatch.setattr("svf_rl.svf.model.thin_svd", lambda weight: thin_svd(weight, "svd"))
    loaded = logits(PeftModel.from_pretrained(make_llama(), tmp_path))
    torch.testing.assert_close(loaded, logits(model), rtol=0, atol=1e-5 * float(loaded.abs().max()))


def test_a_cast_of_the_weights_alone_goes_on(make_llama: Callable, perturb: Callable, logits: Callable) -> None:
    model = perturb(get_peft_model(make_llama(), SVFConfig()))
    expected = logits(model)
    cast_mixed_precision_params(model, torch.bfloat16)
    torch.testing.assert_close(logits(model).float(), expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_z_that_was_altered(saved: Path, llama: PreTrainedModel) -> None:
    edit(saved, lambda tensors: tensors[first(tensors, ".svf_z.weight")].mul_(1.1))
    assert_refused(llama, saved, "probe")


@pytest.mark.parametrize("damage", ["truncated", "emptied", "overwritten"])
def test_a_damaged_file_is_an_error_of_the_file_format(saved: Path, llama: PreTrainedModel, damage: str) -> None:
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes({"truncated": data[:-10], "emptied": b"", "overwritten": b"x" * 200}[damage])
    with pytest.raises(Exception, match=r"[Hh]eader|[Mm]etadata|mmap|empty") as caught:  # safetensors' own type
        PeftModel.from_pretrained(llama, saved)
    assert "\n" not in str(caught.value)


# Other factors of the same weight


def with_factors(monkeypatch: pytest.MonkeyPatch, change: Callable[[Factors], Factors]) -> None:
    def changed(weight: Tensor) -> Factors:
        return change(thin_svd(weight))

    monkeypatch.setattr("svf_rl.svf.model.thin_svd", changed)


def flip_signs(factors: Factors) -> Factors:
    sign = torch.where(torch.arange(factors.s.numel()) % 2 == 0, 1.0, -1.0).double()
    return Factors(factors.U * sign, factors.s, factors.Vt * sign[:, None])


def rotate(factors: Factors) -> Factors:
    """Another orthogonal basis, the same in U and V: the same W only where singular values are equal."""
    r = factors.s.numel()
    Q = torch.linalg.qr(torch.randn(r, r, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).Q
    return Factors(factors.U @ Q, factors.s, Q.T @ factors.Vt)


def degenerate(model: PreTrainedModel) -> PreTrainedModel:
    """All singular values of the MLP weights are equal: their factors are not determined."""
    for layer in model.model.layers:
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            factors = thin_svd(linear.weight)
            linear.weight.data = (0.2 * factors.U @ factors.Vt).float()
    return model


def test_flipped_signs_are_the_same_decomposition(
    saved: Path, trained: Tensor, llama: PreTrainedModel, logits: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_factors(monkeypatch, flip_signs)
    loaded = logits(PeftModel.from_pretrained(llama, saved))
    torch.testing.assert_close(loaded, trained, rtol=0, atol=1e-5 * float(trained.abs().max()))


def test_rotated_factors_of_the_same_weight_are_refused(
    make_llama: Callable, perturb: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    perturb(get_peft_model(degenerate(make_llama()), SVFConfig())).save_pretrained(tmp_path)
    with_factors(monkeypatch, rotate)
    assert_refused(degenerate(make_llama()), tmp_path, "factors of .* are not those of the adapter's training")


def test_rotated_factors_do_not_matter_where_z_is_uniform(
    make_llama: Callable, logits: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = get_peft_model(degenerate(make_llama()), SVFConfig())
    for layer in svf_layers(model).values():
        layer.svf_z["default"].weight.data.fill_(1.2)
    model.save_pretrained(tmp_path)
    expected = logits(model)
    with_factors(monkeypatch, rotate)
    loaded = logits(PeftModel.from_pretrained(degenerate(make_llama()), tmp_path))
    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


# A refusal leaves things as they were


def test_a_name_that_no_module_can_have_leaves_no_adapter(saved: Path, make_llama: Callable) -> None:
    model = PeftModel.from_pretrained(make_llama(), saved)
    with pytest.raises(KeyError):
        model.add_weighted_adapter(["default"], [1.0], "x.y")
    assert list(model.peft_config) == ["default"]


def test_a_refused_second_adapter_leaves_the_first_in_use(
    saved: Path, make_llama: Callable, perturb: Callable, logits: Callable
) -> None:
    model = perturb(get_peft_model(make_llama(seed=1), SVFConfig()))
    before = logits(model)
    with pytest.raises(SVFError, match="other base weights"):
        model.load_adapter(saved, "wrong")
    assert list(model.peft_config) == ["default"]
    assert torch.equal(logits(model), before)


def test_a_refused_file_leaves_the_adapter_that_it_was_to_replace(
    saved: Path, llama: PreTrainedModel, logits: Callable, tmp_path: Path
) -> None:
    model = PeftModel.from_pretrained(llama, saved, adapter_name="a")
    model.load_adapter(saved, "b")
    before = logits(model)
    shutil.copytree(saved, tmp_path / "damaged")
    weights = load_file(saved / "adapter_model.safetensors")
    spoilt = {name: value * torch.nan if name.endswith("svf_z.weight") else value for name, value in weights.items()}
    save_file(spoilt, tmp_path / "damaged" / "adapter_model.safetensors")
    with pytest.raises(SVFError, match="the adapter file is damaged"):
        model.load_adapter(tmp_path / "damaged", "a")
    assert list(model.peft_config) == ["a", "b"]
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_strong_z_of_bfloat16_goes_with_the_same_weights_in_another_type(
    dtype: torch.dtype, make_llama: Callable, tmp_path: Path
) -> None:
    adapted = get_peft_model(make_llama().to(torch.bfloat16), SVFConfig())
    for name, z in adapted.named_parameters():
        if "svf_z" in name:
            z.data.fill_(2.0)
    adapted.save_pretrained(tmp_path)
    PeftModel.from_pretrained(make_llama().to(torch.bfloat16).to(dtype), tmp_path)


def test_an_adapter_survives_a_copy_of_its_folder(
    saved: Path, trained: Tensor, llama: PreTrainedModel, logits: Callable, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "elsewhere")
    shutil.rmtree(saved)
    assert torch.equal(logits(PeftModel.from_pretrained(llama, tmp_path / "elsewhere")), trained)


def test_copies_and_pickles_of_the_whole_model(
    llama: PreTrainedModel, perturb: Callable, logits: Callable, tmp_path: Path
) -> None:
    model: nn.Module = perturb(get_peft_model(llama, SVFConfig(parameterization="sigmoid")))
    torch.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(logits(other), logits(model))
        other.save_pretrained(tmp_path / "adapter")
        assert (tmp_path / "adapter" / WEIGHTS).is_file()
