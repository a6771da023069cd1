"""The factored layer computes what the dense formula of the paper says: output and gradients."""

import copy
from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from svf_rl.svf import SVFConfig, SVFLinear, reference_mode, svf_layers
from svf_rl.svf.decompose import fingerprint, thin_svd
from svf_rl.svf.probe import project
from svf_rl.svf.targets import logical_weight

SHAPES = {"wide": (12, 20), "tall": (20, 12), "square": (16, 16), "two rows": (2, 8)}


def linear(out: int, size: int, bias: bool = False, conv: bool = False) -> nn.Module:
    torch.manual_seed(0)
    module = Conv1D(out, size) if conv else nn.Linear(size, out, bias=bias)
    nn.init.normal_(module.weight, std=0.3)
    if module.bias is not None:
        nn.init.normal_(module.bias)
    return module


def svf(module: nn.Module, *configs: SVFConfig) -> SVFLinear:
    """The SVF layer with one active adapter a configuration, z away from its start."""
    weight = logical_weight(module).detach()
    factors = thin_svd(weight).to(weight.dtype)
    layer = SVFLinear(module, factors, fingerprint(weight), project(factors, weight))
    names = [f"adapter{i}" for i in range(len(configs))]
    for name, config in zip(names, configs, strict=True):
        layer.update_layer(name, config)
        layer.svf_z[name].weight.data.add_(0.3 * torch.randn(layer.svf_factors.s.shape))
    layer.set_adapter(names)
    return layer


def dense_multiplier(config: SVFConfig, z: Tensor, s: Tensor) -> Tensor:
    m = config.max_multiplier / (1 + torch.exp(-z)) if config.parameterization == "sigmoid" else z
    return m * s.sum() / (s * m).sum() if config.renormalize else m


def dense(layer: SVFLinear, configs: list[SVFConfig], x: Tensor, zs: list[Tensor]) -> Tensor:
    """y (..., out) in fp64 from an SVD of its own: W' = U diag(s·m) Vᵀ built whole."""
    base = layer.get_base_layer()
    U, s, Vt = torch.linalg.svd(logical_weight(base).detach().double(), full_matrices=False)
    m = 1 + sum(dense_multiplier(c, z, s) - 1 for c, z in zip(configs, zs, strict=True))
    bias = None if base.bias is None else base.bias.double()
    return F.linear(x, U @ torch.diag(s * m) @ Vt, bias)


def assert_equals_dense(layer: SVFLinear, configs: list[SVFConfig], rtol: float = 1e-5) -> None:
    x = torch.randn(3, 5, layer.in_features, requires_grad=True)
    cotangent = torch.randn(3, 5, layer.out_features)
    (layer(x) * cotangent).sum().backward()

    x64 = x.detach().double().requires_grad_()
    zs = [vector.weight.detach().double().requires_grad_() for vector in layer.svf_z.values()]
    y = dense(layer, configs, x64, zs)
    (y * cotangent).sum().backward()

    assert relative(layer(x), y) < rtol
    assert relative(x.grad, x64.grad) < rtol
    for vector, z in zip(layer.svf_z.values(), zs, strict=True):
        assert relative(vector.weight.grad, z.grad) < rtol


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("parameterization", ["direct", "sigmoid"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_output_and_gradients_equal_the_dense_formula(
    shape: tuple[int, int], parameterization: str, renormalize: bool
) -> None:
    config = SVFConfig(parameterization=parameterization, renormalize=renormalize)
    assert_equals_dense(svf(linear(*shape), config), [config])


@pytest.mark.parametrize("conv", [False, True], ids=["Linear", "Conv1D"])
def test_biases_stay_as_they_are(conv: bool) -> None:
    config = SVFConfig()
    layer = svf(linear(20, 12, bias=True, conv=conv), config)
    assert_equals_dense(layer, [config])
    torch.testing.assert_close(layer(torch.zeros(1, 12))[0], layer.get_base_layer().bias, rtol=0, atol=0)


def test_several_active_adapters_add_their_changes() -> None:
    configs = [SVFConfig(), SVFConfig(parameterization="sigmoid"), SVFConfig(renormalize=True)]
    assert_equals_dense(svf(linear(12, 20), *configs), configs)


def test_a_rank_deficient_weight_works_and_its_zeros_get_no_gradient() -> None:
    module = linear(12, 20)
    module.weight.data = torch.randn(12, 3) @ torch.randn(3, 20)
    config = SVFConfig()
    layer = svf(module, config)
    assert_equals_dense(layer, [config])
    gradient = layer.svf_z["adapter0"].weight.grad
    assert gradient[3:].abs().max() < 1e-5 * gradient.abs().max()


@pytest.mark.parametrize("renormalize", [False, True])
def test_an_all_zero_weight_gives_the_bias_and_a_gradient_of_zero(renormalize: bool) -> None:
    module = linear(12, 20, bias=True)
    nn.init.zeros_(module.weight)
    layer = svf(module, SVFConfig(renormalize=renormalize))
    y = layer(torch.randn(4, 20))
    y.sum().backward()
    assert torch.equal(y, module.bias.expand(4, 12))
    assert torch.equal(layer.svf_z["adapter0"].weight.grad, torch.zeros(12))


def test_in_bf16_a_step_of_z_below_bf16_resolution_changes_the_output() -> None:
    layer = svf(linear(64, 64).to(torch.bfloat16), SVFConfig())
    x = torch.randn(32, 64, dtype=torch.bfloat16)
    before = layer(x)
    layer.svf_z["adapter0"].weight.data.mul_(1 + 1e-3)
    assert before.dtype == torch.bfloat16
    assert not torch.equal(layer(x), before)


def test_the_gradient_through_a_whole_model_equals_the_dense_formula(
    llama: PreTrainedModel, ids: Tensor, perturb: Callable
) -> None:
    base = copy.deepcopy(llama).double()
    model = perturb(get_peft_model(llama, SVFConfig(target_modules="mlp+attention")))
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()

    weights, zs = {}, {}
    for path, layer in svf_layers(model).items():
        name = path.removeprefix("base_model.model.")
        W = base.get_submodule(name).weight.detach()
        U, s, Vt = torch.linalg.svd(W, full_matrices=False)
        zs[path] = layer.svf_z["default"].weight.detach().double().requires_grad_()
        weights[f"{name}.weight"] = U @ torch.diag(s * zs[path]) @ Vt
    expected = torch.func.functional_call(base, weights, kwargs={"input_ids": ids, "labels": ids}).loss
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours = torch.cat([layer.svf_z["default"].weight.grad for layer in svf_layers(model).values()])
    theirs = torch.cat([zs[path].grad for path in svf_layers(model)])
    assert relative(ours, theirs) < 1e-5


def test_reference_mode_is_z_of_one_to_the_bit(llama: PreTrainedModel, logits: Callable, perturb: Callable) -> None:
    model = get_peft_model(llama, SVFConfig(target_modules="mlp+attention"))
    start = logits(model)
    perturb(model)
    changed = logits(model)
    assert not torch.equal(changed, start)
    with reference_mode(model):
        assert torch.equal(logits(model), start)
    assert torch.equal(logits(model), changed)


def test_reference_mode_ends_with_an_exception(llama: PreTrainedModel, logits: Callable, perturb: Callable) -> None:
    model = perturb(get_peft_model(llama, SVFConfig()))
    changed = logits(model)
    with pytest.raises(RuntimeError, match="stop"), reference_mode(model):
        raise RuntimeError("stop")
    assert torch.equal(logits(model), changed)


def test_reference_mode_is_z_of_one_while_merged(llama: PreTrainedModel, logits: Callable, perturb: Callable) -> None:
    model = get_peft_model(llama, SVFConfig())
    start = logits(model)
    perturb(model).merge_adapter()
    with reference_mode(model):
        assert torch.equal(logits(model), start)


@pytest.mark.parametrize("trainable", [True, False])
def test_reference_mode_uses_the_original_of_modules_to_save(
    llama: PreTrainedModel, logits: Callable, trainable: bool
) -> None:
    model = get_peft_model(llama, SVFConfig(modules_to_save=["lm_head"]))
    start = logits(model)
    head = model.get_submodule("base_model.model.lm_head.modules_to_save.default")
    head.weight.data.mul_(1.5)
    head.requires_grad_(trainable)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    changed = logits(model)
    with reference_mode(model):
        assert torch.equal(logits(model), start)
    assert torch.equal(logits(model), changed)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
