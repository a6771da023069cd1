"""The merged weight: exact at z = 1, within one unit in the last place elsewhere, and undone to the bit."""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from svf_rl.svf import SVFConfig, SVFLinear, svf_layers
from svf_rl.svf.decompose import fingerprint, thin_svd
from svf_rl.svf.merge import merged_weight
from svf_rl.svf.probe import project


def ulps_apart(a: Tensor, b: Tensor) -> Tensor:
    """How many representable numbers lie between the elements of `a` and `b`, of one floating type."""
    integer = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}[a.dtype]

    def ordinal(x: Tensor) -> Tensor:
        bits = x.contiguous().view(integer).long()
        return torch.where(bits < 0, torch.iinfo(integer).min - bits, bits)  # −0 and 0 are one number

    return (ordinal(a) - ordinal(b)).abs()


def merge_fp64(weight: Tensor, U: Tensor, Vt: Tensor, delta: Tensor) -> Tensor:
    return (weight.double() + U.double() @ torch.diag(delta.double()) @ Vt.double()).to(weight.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(96, 700), (700, 96), (600, 600), (1, 7)], ids=str)
def test_no_element_is_more_than_one_ulp_from_an_fp64_merge(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (0.02 * torch.randn(shape)).to(dtype)
    factors = thin_svd(weight).to(dtype)
    delta = factors.s * 0.1 * torch.randn(factors.s.shape)
    merged = merged_weight(weight, factors.U, factors.Vt, delta)
    apart = ulps_apart(merged, merge_fp64(weight, factors.U, factors.Vt, delta))
    assert merged.dtype == dtype
    assert apart.max() <= 1
    assert (apart > 0).float().mean() <= 1e-3
    assert (ulps_apart(merged, weight) > 0).float().mean() > 0.5  # it is another matrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_without_a_change_the_weight_is_equal_to_the_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 600).to(dtype)
    weight[0, 0], weight[1] = torch.finfo(dtype).tiny, 0.0
    factors = thin_svd(weight).to(dtype)
    assert torch.equal(merged_weight(weight, factors.U, factors.Vt, torch.zeros(40)), weight)


def test_a_transposed_view_merges_like_its_copy() -> None:
    torch.manual_seed(0)
    weight = torch.randn(20, 30).T
    factors = thin_svd(weight).to(torch.float32)
    delta = 0.1 * factors.s
    expected = merged_weight(weight.contiguous(), factors.U, factors.Vt, delta)
    assert torch.equal(merged_weight(weight, factors.U, factors.Vt, delta), expected)


def test_the_weight_is_only_read() -> None:
    torch.manual_seed(0)
    weight = torch.randn(20, 30)
    before = weight.clone()
    factors = thin_svd(weight).to(torch.float32)
    merged_weight(weight, factors.U, factors.Vt, factors.s)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_hundred_merges_leave_the_base_bit_identical(
    llama: PreTrainedModel, perturb: Callable, dtype: torch.dtype
) -> None:
    base = {k: v.clone() for k, v in llama.to(dtype).state_dict().items()}
    model = get_peft_model(llama, SVFConfig())
    changed = 0
    for cycle in range(200):
        perturb(model, seed=cycle)
        model.merge_adapter()
        layer = next(iter(svf_layers(model).values()))
        changed += not torch.equal(layer.get_base_layer().weight, layer.base_weight())
        model.unmerge_adapter()
    assert changed == 200
    for name, module in model.get_base_model().named_modules():
        weight = module.base_weight() if isinstance(module, SVFLinear) else getattr(module, "weight", None)
        if weight is not None and f"{name}.weight" in base:
            assert torch.equal(weight, base[f"{name}.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"renormalize": True}, {"parameterization": "sigmoid"}], ids=str)
def test_merging_at_the_start_of_training_changes_nothing(
    llama: PreTrainedModel, dtype: torch.dtype, options: dict
) -> None:
    base = {k: v.clone() for k, v in llama.to(dtype).state_dict().items()}
    merged = get_peft_model(llama, SVFConfig(target_modules="mlp+attention", **options)).merge_and_unload()
    assert all(torch.equal(value, base[name]) for name, value in merged.state_dict().items())


def test_merged_and_unmerged_give_the_same_logits(llama: PreTrainedModel, logits: Callable, perturb: Callable) -> None:
    base = copy.deepcopy(llama)
    model = perturb(get_peft_model(llama, SVFConfig(target_modules="mlp+attention")))
    trained = logits(model)
    model.merge_adapter()
    assert not torch.equal(logits(model), trained)  # another path: W' instead of its factors
    torch.testing.assert_close(logits(model), trained, rtol=0, atol=1e-5 * float(trained.abs().max()))
    model.unmerge_adapter()
    assert torch.equal(logits(model), trained)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base))


def test_adapters_merge_together_as_they_act_together(
    llama: PreTrainedModel, logits: Callable, perturb: Callable
) -> None:
    model = get_peft_model(llama, SVFConfig())
    model.add_adapter("other", SVFConfig(parameterization="sigmoid"))
    perturb(perturb(model), "other", seed=1)
    model.base_model.set_adapter(["default", "other"])
    together = logits(model)
    model.merge_adapter(["default"])
    model.merge_adapter(["other"])  # one after the other
    torch.testing.assert_close(logits(model), together, rtol=0, atol=1e-5 * float(together.abs().max()))
    model.unmerge_adapter()
    assert torch.equal(logits(model), together)


def test_merging_twice_is_merging_once(llama: PreTrainedModel, logits: Callable, perturb: Callable) -> None:
    model = perturb(get_peft_model(llama, SVFConfig()))
    model.merge_adapter()
    once = logits(model)
    with pytest.warns(UserWarning, match="[Aa]lready"):
        model.merge_adapter()
    assert torch.equal(logits(model), once)


def test_safe_merge_refuses_a_broken_adapter_and_changes_nothing(llama: PreTrainedModel, perturb: Callable) -> None:
    model = perturb(get_peft_model(llama, SVFConfig()))
    layer = next(iter(svf_layers(model).values()))
    before = layer.get_base_layer().weight.clone()
    layer.svf_z["default"].weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.get_base_layer().weight, before)
    assert not layer.merged


def test_the_kept_weight_follows_a_cast_of_the_merged_model(llama: PreTrainedModel, perturb: Callable) -> None:
    base = {k: v.to(torch.bfloat16) for k, v in llama.state_dict().items()}
    model = perturb(get_peft_model(llama, SVFConfig()))
    model.merge_adapter()
    model.to(torch.bfloat16)
    model.unmerge_adapter()
    plain = model.unload()
    assert all(torch.equal(value, base[name]) for name, value in plain.state_dict().items())


def test_delta_weight_is_what_the_merge_adds() -> None:
    torch.manual_seed(0)
    module = nn.Linear(20, 12, bias=False)
    weight = module.weight.detach().clone()
    factors = thin_svd(weight).to(torch.float32)
    layer = SVFLinear(module, factors, fingerprint(weight), project(factors, weight))
    layer.update_layer("default", SVFConfig())
    layer.svf_z["default"].weight.data.mul_(1.25)
    torch.testing.assert_close(layer.get_delta_weight("default"), 0.25 * weight, rtol=1e-5, atol=1e-7)


def test_a_bias_that_no_configuration_knows_is_warned_of() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8, bias=False)), SVFConfig(target_modules=["0"], biases=True))
    with pytest.warns(UserWarning, match="layers without a bias have one now"):
        model.merge_and_unload()
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), SVFConfig(target_modules=["0"], biases=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.merge_and_unload()


@pytest.mark.parametrize("targets", [["first"], ["first", "second"]])
def test_layers_that_share_a_weight_are_merged_each_by_itself(targets: list[str]) -> None:
    torch.manual_seed(0)
    tied = nn.Sequential(OrderedDict(first=nn.Linear(8, 8, bias=False), second=nn.Linear(8, 8, bias=False)))
    tied.second.weight = tied.first.weight
    model = get_peft_model(tied, SVFConfig(target_modules=targets))
    with torch.no_grad():
        for number, layer in enumerate(svf_layers(model).values(), 2):
            layer.svf_z["default"].weight.mul_(number)
    x = torch.randn(4, 8)
    base, wanted = tied.first.get_base_layer().weight.clone(), model(x)
    with pytest.warns(UserWarning, match="shares its weight with another module"):
        model.merge_adapter()
    torch.testing.assert_close(model(x), wanted)
    model.unmerge_adapter()
    assert torch.equal(tied.first.get_base_layer().weight, base)
    torch.testing.assert_close(model(x), wanted)
    torch.testing.assert_close(model.merge_and_unload()(x), wanted)
