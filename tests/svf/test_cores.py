"""Cores: each computes what its dense formula says, starts at `W`, and is saved, merged and counted as what it is."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from svf_rl.errors import SVFError
from svf_rl.svf import SVFConfig, SVFLinear, reference_mode, svf_layers
from svf_rl.svf.core import Block, Projected, make_core
from svf_rl.svf.decompose import fingerprint, thin_svd
from svf_rl.svf.expert import check_same_base, read_expert
from svf_rl.svf.probe import project
from svf_rl.svf.targets import logical_weight
from svf_rl.training.decay import decay_towards_identity
from svf_rl.training.shared_base import copy_adapters

MULTIPLIERS = ["top:3", "bottom:3", "projected:13"]
MIXING = ["band:1", "band:3", "block:3", "block:3:bottom", "block:3:random"]
every_core = pytest.mark.parametrize("core", MULTIPLIERS + MIXING)


def move(model: nn.Module, size: float = 0.3, seed: int = 0) -> nn.Module:
    """Every trained value, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


def layer(core: str, shape: tuple[int, int], biases: bool = False, conv: bool = False) -> SVFLinear:
    torch.manual_seed(0)
    module = Conv1D(*shape) if conv else nn.Linear(shape[1], shape[0])
    nn.init.normal_(module.weight, std=0.3)
    weight = logical_weight(module).detach()
    factors = thin_svd(weight).to(weight.dtype)
    made = SVFLinear(module.requires_grad_(False), factors, fingerprint(weight), project(factors, weight), "a.path")
    made.update_layer("default", SVFConfig(core=core, biases=biases))
    made.set_adapter("default")
    return move(made)


def dense_middle(core: str, z: Tensor, s: Tensor) -> Tensor:
    """What stands between `U` and `Vᵀ`, (r, r) in fp64, written element by element."""
    kind, *rest = core.split(":")
    r, number, middle = len(s), int(rest[0]), torch.diag(s)
    if kind in ("top", "bottom"):
        first = 0 if kind == "top" else r - number
        return middle + torch.diag(F.pad(z, (first, r - first - number)) * s)
    if kind == "projected":
        P = Projected(number, "0:a.path").projection(r, z.device).double()
        return middle + torch.diag(s * (P @ z))
    C = torch.zeros(r, r, dtype=torch.float64)
    if kind == "band":
        values = iter(z)
        for i in range(r):
            C[i, i] = next(values) * s[i]
        for distance in range(1, number + 1):
            for i in range(r - distance):
                C[i, i + distance] = next(values) * (s[i] * s[i + distance]).sqrt()
            for i in range(r - distance):
                C[i + distance, i] = next(values) * (s[i] * s[i + distance]).sqrt()
        return middle + C
    where = Block(number, rest[1] if len(rest) > 1 else "top", "0:a.path").directions(r, z.device)
    for a, i in enumerate(where):
        for b, j in enumerate(where):
            C[i, j] = z[a * number + b] * (s[i] * s[j]).sqrt()
    return middle + C


@every_core
@pytest.mark.parametrize("biases", [False, True], ids=["", "biases"])
@pytest.mark.parametrize(("shape", "conv"), [((12, 20), False), ((20, 12), False), ((9, 16), True)])
def test_output_and_gradients_are_those_of_the_dense_formula(
    core: str, biases: bool, shape: tuple[int, int], conv: bool
) -> None:
    made = layer(core, shape, biases, conv)
    base = made.get_base_layer()
    x, cotangent = torch.randn(3, 5, shape[1], requires_grad=True), torch.randn(3, 5, shape[0])
    y = made(x)
    (y * cotangent).sum().backward()

    U, s, Vt = torch.linalg.svd(logical_weight(base).detach().double(), full_matrices=False)
    ours = made.svf_factors.U.double()
    signs = (ours * U).sum(0).sign()  # of each pair of directions, which an SVD leaves open
    z = made.svf_z["default"].weight.detach().double().requires_grad_()
    bias = base.bias.double()
    if biases:
        b = made.svf_bias["default"].weight.detach().double().requires_grad_()
        bias = bias + b
    x64 = x.detach().double().requires_grad_()
    expected = F.linear(x64, (U * signs) @ dense_middle(core, z, s) @ (Vt * signs[:, None]), bias)
    (expected * cotangent).sum().backward()

    def close(value: Tensor, to: Tensor) -> bool:
        return bool((value.double() - to).norm() <= 1e-5 * to.norm())

    assert close(y.detach(), expected.detach())
    assert close(x.grad, x64.grad)
    assert close(made.svf_z["default"].weight.grad, z.grad)
    assert not biases or close(made.svf_bias["default"].weight.grad, b.grad)


@every_core
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_starts_at_the_reference_and_at_the_base_weight(
    core: str, dtype: torch.dtype, llama: PreTrainedModel, logits: Callable
) -> None:
    weights = {name: p.detach().clone() for name, p in llama.to(dtype).named_parameters()}
    model = get_peft_model(llama, SVFConfig(core=core, biases=True))
    start = logits(model)
    with reference_mode(model):
        assert torch.equal(logits(model), start)
    move(model)
    with reference_mode(model):
        assert torch.equal(logits(model), start)
    assert not torch.equal(logits(model), start)
    model.merge_adapter()
    with reference_mode(model):
        assert torch.equal(logits(model), start)
    model.unmerge_adapter()

    merged = get_peft_model(model.unload(), SVFConfig(core=core, biases=True)).merge_and_unload()
    assert all(torch.equal(p, weights[name]) for name, p in merged.named_parameters() if name in weights)


@every_core
def test_what_is_added_in_fp32_is_not_rounded_under_autocast(core: str) -> None:
    made = layer(core, (12, 20)).svf_mask["default"]
    torch.manual_seed(0)
    h, s = torch.randn(5, 12), torch.rand(12)
    z = torch.randn(made.size(12))

    def change() -> Tensor:
        return made.mix(h, s, z) if made.mixes else made(z, s)

    exact = change()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(change(), exact)


@every_core
def test_runs_on_one_base_model_have_what_is_drawn_once(core: str, llama: PreTrainedModel, logits: Callable) -> None:
    model = move(get_peft_model(llama, SVFConfig(core=core)))
    copied = copy_adapters(model)
    assert torch.equal(logits(copied), logits(model))
    for ours, theirs in zip(svf_layers(copied).values(), svf_layers(model).values(), strict=True):
        assert ours.svf_mask["default"] is not theirs.svf_mask["default"]
        assert ours.svf_mask["default"].drawn is theirs.svf_mask["default"].drawn
        assert ours.svf_z["default"].weight is not theirs.svf_z["default"].weight


@every_core
def test_the_rank_is_in_the_file_where_an_expert_is_read_by_it(
    core: str, llama: PreTrainedModel, tmp_path: Path
) -> None:
    get_peft_model(llama, SVFConfig(core=core)).save_pretrained(tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert any(name.endswith(".svf_rank") for name in names) is (core in MULTIPLIERS)


@every_core
def test_merged_is_unmerged(core: str, llama: PreTrainedModel, logits: Callable) -> None:
    model = move(get_peft_model(llama, SVFConfig(core=core, biases=True)))
    before = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-6)
    model.unmerge_adapter()
    assert torch.equal(logits(model), before)
    assert all(layer.get_base_layer().bias is None for layer in svf_layers(model).values())
    torch.testing.assert_close(logits(model.merge_and_unload()), before, rtol=1e-5, atol=1e-6)


@every_core
def test_merged_elements_are_rounded_once(core: str) -> None:
    """In bf16, whose sums are fp32, elements that cancel are computed again in fp64."""
    made = layer(core, (200, 96))
    weight = made.get_base_layer().weight.data.bfloat16()
    made.get_base_layer().weight.data = weight
    U, s, Vt = (part.double() for part in made.svf_factors.tensors())
    change = dense_middle(core, made.svf_z["default"].weight.detach().double(), s) - torch.diag(s)
    exact = weight.double() + U @ change @ Vt
    found = made.merged_weight().double()
    spacing = 2.0 ** (exact.abs().log2().floor() - 7)
    assert ((found - exact).abs() / spacing).max() < 0.51


@every_core
def test_active_adapters_add_up_with_others(core: str, llama: PreTrainedModel, logits: Callable) -> None:
    model = get_peft_model(llama, SVFConfig(core=core, biases=True))
    model.add_adapter("plain", SVFConfig())
    model.base_model.set_adapter(["default", "plain"])
    move(model)
    both = logits(model)
    model.merge_adapter(["default", "plain"])
    torch.testing.assert_close(logits(model), both, rtol=1e-5, atol=1e-6)


@every_core
def test_each_row_has_its_own_adapter(core: str, llama: PreTrainedModel, ids: Tensor, logits: Callable) -> None:
    model = get_peft_model(llama, SVFConfig(core=core, biases=True))
    model.add_adapter("plain", SVFConfig())
    model.base_model.set_adapter(["default", "plain"])
    move(model).eval()
    expected = []
    for name in ("default", "plain"):
        model.set_adapter(name)
        expected.append(logits(model))
    with torch.no_grad():
        found = model(input_ids=ids, adapter_names=["default", "plain"]).logits
    torch.testing.assert_close(found, torch.stack([expected[0][0], expected[1][1]]), rtol=1e-5, atol=1e-6)


@every_core
@pytest.mark.parametrize("low_memory", [False, True])
def test_saved_and_loaded(
    core: str, low_memory: bool, llama: PreTrainedModel, logits: Callable, tmp_path: Path
) -> None:
    base = copy.deepcopy(llama)
    model = move(get_peft_model(llama, SVFConfig(core=core, biases=True)))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_memory, is_trainable=True)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.get_nb_trainable_parameters()[0] == model.get_nb_trainable_parameters()[0]


@every_core
def test_transformers_saves_and_loads_it_too(core: str, make_llama: Callable, logits: Callable, tmp_path: Path) -> None:
    model = make_llama()
    model.add_adapter(SVFConfig(core=core, biases=True))
    move(model).save_pretrained(tmp_path)
    loaded = make_llama()
    loaded.load_adapter(tmp_path)
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda bias: bias * torch.nan, "the bias of model.layers.0.* not finite or above"),
        (lambda bias: bias + 1e30, "the bias of model.layers.0.* not finite or above"),
        (lambda bias: bias[:3], r"the bias of model.layers.0.* has shape \(3,\)"),
        (None, "has biases, its configuration none"),
    ],
)
def test_damaged_biases_are_said(damage: Callable | None, says: str, make_llama: Callable, tmp_path: Path) -> None:
    move(get_peft_model(make_llama(), SVFConfig(biases=True))).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    if damage is None:
        del config["biases"]
    else:
        name = min(key for key in tensors if key.endswith("svf_bias.weight"))
        tensors[name] = damage(tensors[name]).contiguous()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(SVFError, match=says) as caught:
        PeftModel.from_pretrained(make_llama(), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_bias_that_is_not_finite_is_not_merged_safely(llama: PreTrainedModel) -> None:
    model = get_peft_model(llama, SVFConfig(biases=True))
    next(iter(svf_layers(model).values())).svf_bias["default"].weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_adapter(safe_merge=True)


@every_core
def test_other_weights_are_refused_and_rounded_ones_are_not(
    core: str, make_llama: Callable, logits: Callable, tmp_path: Path
) -> None:
    model = move(get_peft_model(make_llama(), SVFConfig(core=core)))
    model.save_pretrained(tmp_path)
    with pytest.raises(SVFError, match="other base weights"):
        PeftModel.from_pretrained(make_llama(seed=1), tmp_path)
    rounded = make_llama()
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter *= 1 + 1e-6
    with pytest.warns(UserWarning, match="up to rounding"):
        loaded = PeftModel.from_pretrained(rounded, tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("core", "r", "values"),
    [("top:3", 8, 3), ("bottom:3", 8, 3), ("band:2", 8, 8 + 14 + 12), ("block:3", 8, 9), ("block:8:random", 8, 64)],
)
def test_how_many_values_a_matrix_has(core: str, r: int, values: int) -> None:
    assert make_core(core, 0, "").size(r) == values


def test_projected_13_trains_13_values(llama: PreTrainedModel, logits: Callable) -> None:
    model = get_peft_model(llama, SVFConfig(core="projected:13"))
    assert model.get_nb_trainable_parameters()[0] == 13
    start = logits(model)
    v = next(p for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        v += 0.1
    assert not torch.allclose(logits(model), start, atol=1e-4)
    for made in svf_layers(model).values():
        m = made.active_multiplier().detach()
        assert 0.05 < (m - 1).std() < 0.2  # of the size of v
    copied = copy.deepcopy(model)
    assert copied.get_nb_trainable_parameters()[0] == 13


def test_projections_depend_on_seed_and_path_alone() -> None:
    s = torch.ones(32)
    found = {
        (seed, path): make_core("projected:4", seed, path)(torch.ones(4), s) for seed in (0, 1) for path in ("a", "b")
    }
    assert all(torch.equal(one, other) is (name == key) for name, one in found.items() for key, other in found.items())
    torch.manual_seed(5)
    P = Projected(4, "0:a").projection(1024, s.device)
    assert torch.equal(P, Projected(4, "0:a").projection(1024, s.device))
    assert P.mean().abs() < 0.02
    assert abs(P.std().item() - 0.5) < 0.02


def test_what_is_drawn_is_the_same_on_every_machine() -> None:
    """To the bit: saved adapters hold no projections and no directions."""
    P = Projected(4, "0:a").projection(8, torch.device("cpu"))
    drawn = [0.16703127324581146, 0.21332165598869324, 0.15361854434013367, -0.39753177762031555]
    assert P[0].tolist() == drawn
    assert Block(3, "random", "0:a").directions(32, torch.device("cpu")).tolist() == [7, 17, 31]


@pytest.mark.parametrize("core", MULTIPLIERS)
def test_an_expert_of_few_values_is_its_multiplier(
    core: str, make_llama: Callable, logits: Callable, tmp_path: Path
) -> None:
    few = move(get_peft_model(make_llama(), SVFConfig(core=core, core_seed=7)), seed=1)
    few.save_pretrained(tmp_path / "few")
    plain = move(get_peft_model(make_llama(), SVFConfig()), seed=2)
    plain.save_pretrained(tmp_path / "plain")
    read = [read_expert(tmp_path / name) for name in ("few", "plain")]
    check_same_base(read)
    for path, made in svf_layers(few.get_base_model()).items():
        torch.testing.assert_close(read[0].z[path], made.active_multiplier().detach())

    few.load_adapter(tmp_path / "plain", "plain")
    few.add_weighted_adapter(["default", "plain"], [0.25, 0.75], "mixed")
    few.set_adapter("mixed")
    for path, made in svf_layers(few.get_base_model()).items():
        mean = 0.25 * read[0].z[path] + 0.75 * read[1].z[path]
        torch.testing.assert_close(made.active_multiplier().detach(), mean)
    assert few.peft_config["mixed"].core_seed == 0


@pytest.mark.parametrize("values", [*({"core": core} for core in MIXING), {"biases": True}], ids=str)
def test_what_is_more_than_multipliers_is_no_expert(values: dict, make_llama: Callable, tmp_path: Path) -> None:
    get_peft_model(make_llama(), SVFConfig(**values)).save_pretrained(tmp_path)
    with pytest.raises(SVFError, match=r"neither combined nor served by factors") as caught:
        read_expert(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("core", MULTIPLIERS)
@pytest.mark.parametrize("rank", [None, 0, 2**40])
def test_a_damaged_rank_is_said(core: str, rank: int | None, make_llama: Callable, tmp_path: Path) -> None:
    get_peft_model(make_llama(), SVFConfig(core=core)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = next(key for key in tensors if key.endswith("svf_rank"))
    del tensors[name]
    if rank is not None:
        tensors[name] = torch.tensor([rank])
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(SVFError, match="damaged"):
        read_expert(tmp_path)


@every_core
def test_weight_decay_leads_to_the_base_model(core: str, llama: PreTrainedModel) -> None:
    model = move(get_peft_model(llama, SVFConfig(core=core)))
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    decay_towards_identity(optimizer, model, 0.5)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, old in zip(trained, before, strict=True):
        torch.testing.assert_close(parameter.detach(), old * 0.95)


@pytest.mark.parametrize(
    "core", ["top:0", "top", "top:-1", "top:1.5", "band:x", "block:2:middle", "top:3:random", "toip:3", "", "top:3 ",
             "top:3:top", None, 5, ["top:3"]]
)  # fmt: skip
def test_a_core_that_is_none_is_one_line(core: object) -> None:
    with pytest.raises(SVFError, match="core must be diagonal, top:k") as caught:
        SVFConfig(core=core)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("core", "most"), [("top:9999", 32), ("block:33", 32), ("band:32", 31), ("projected:4097", 4096)]
)
def test_more_than_the_rank_is_one_line_and_changes_nothing(core: str, most: int, llama: PreTrainedModel) -> None:
    with pytest.raises(SVFError, match=rf"is above {most}, the most that the adapted matrices allow") as caught:
        get_peft_model(llama, SVFConfig(core=core))
    assert "\n" not in str(caught.value)
    assert not svf_layers(llama)


@pytest.mark.parametrize(
    ("core", "says"),
    [
        ("top:20", r"\(model.layers.1.mlp.up_proj has rank 16\): lower it, or name that matrix in exclude_modules"),
        ("band:16", "has rank 16"),
        ("block:17", "has rank 16"),
        ("band:300", "w = 300 is above 256, the most that the adapted matrices allow: lower it"),
    ],
)
def test_the_matrix_whose_rank_is_too_small_is_named(core: str, says: str, llama: PreTrainedModel) -> None:
    llama.model.layers[1].mlp.up_proj = nn.Linear(32, 16, bias=False)
    with pytest.raises(SVFError, match=says):
        get_peft_model(llama, SVFConfig(core=core, target_modules=["up_proj"]))
    llama.model.layers[1].mlp.up_proj = nn.Linear(32, 1, bias=False)
    with pytest.raises(SVFError, match=r"w = 1 is above 0.*_proj has rank 1\): name that matrix in exclude_modules"):
        get_peft_model(llama, SVFConfig(core="band:1", target_modules=["up_proj"]))


def test_the_top_of_a_block_needs_no_word() -> None:
    assert SVFConfig(core="block:3:top").core == SVFConfig(core="block:3").core


@pytest.mark.parametrize("seed", ["x", None, 1.0, True, [1]])
def test_a_seed_that_is_none_is_one_line(seed: object) -> None:
    with pytest.raises(SVFError, match="core_seed must be an integer"):
        SVFConfig(core="projected:3", core_seed=seed)


def test_a_seed_is_kept_where_something_is_drawn_and_nowhere_else() -> None:
    seeds = {core: SVFConfig(core=core, core_seed=7).core_seed for core in ("diagonal", *MULTIPLIERS, *MIXING)}
    assert {core for core, seed in seeds.items() if seed} == {"projected:13", "block:3:random"}


@pytest.mark.parametrize("values", [{"parameterization": "sigmoid"}, {"renormalize": True}])
def test_what_only_the_diagonal_core_takes_is_refused(values: dict) -> None:
    with pytest.raises(SVFError, match="use core: diagonal"):
        SVFConfig(core="top:2", **values)


def test_files_of_the_diagonal_core_are_as_before(llama: PreTrainedModel, tmp_path: Path) -> None:
    get_peft_model(llama, SVFConfig()).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not {"core", "core_seed", "biases"} & content.keys()
    names = {name.rpartition(".svf_")[2] for name in load_file(tmp_path / "adapter_model.safetensors")}
    assert names == {"z.weight", "fingerprint", "probe"}
