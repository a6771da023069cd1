"""The multiplier `m` of the singular values, and the configuration that chooses it."""

import math

import pytest
import torch

from svf_rl.errors import SVFError
from svf_rl.svf import SVFConfig
from svf_rl.svf.mask import Mask, initial_z

S = torch.tensor([3.0, 2.0, 0.5])
Z = torch.tensor([0.5, 1.5, -1.0])


def test_direct_is_z_itself() -> None:
    assert torch.equal(Mask()(Z, S), Z)


def test_sigmoid_reaches_up_to_the_largest_multiplier() -> None:
    m = Mask("sigmoid", max_multiplier=3.0)(Z, S)
    torch.testing.assert_close(m, torch.tensor([3 / (1 + math.exp(-z)) for z in Z.tolist()]))
    assert Mask("sigmoid", max_multiplier=3.0)(torch.tensor([50.0]), S[:1]).item() == pytest.approx(3.0)


@pytest.mark.parametrize("parameterization", ["direct", "sigmoid"])
def test_renormalize_keeps_the_sum_of_the_singular_values(parameterization: str) -> None:
    m = Mask(parameterization, renormalize=True)(Z, S)
    assert (S * m).sum().item() == pytest.approx(S.sum().item(), rel=1e-6)
    plain = Mask(parameterization)(Z, S)
    torch.testing.assert_close(m / m[0], plain / plain[0])  # only the scale changed


@pytest.mark.parametrize("s", [torch.zeros(3), S], ids=["all-zero W", "z = 0"])
def test_renormalize_with_nothing_to_keep_has_finite_value_and_gradient(s: torch.Tensor) -> None:
    z = (Z if s.sum() == 0 else torch.zeros(3)).clone().requires_grad_()
    m = Mask(renormalize=True)(z, s)
    m.sum().backward()
    assert torch.equal(m, z)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("parameterization", "largest"), [("direct", 2.0), ("sigmoid", 2.0), ("sigmoid", 5.0)])
def test_identity_start_gives_m_of_one(parameterization: str, largest: float, renormalize: bool) -> None:
    config = SVFConfig(parameterization=parameterization, max_multiplier=largest, renormalize=renormalize)
    m = Mask.of(config)(initial_z(3, config), S)
    torch.testing.assert_close(m, torch.ones(3), rtol=1e-6, atol=0)


def test_random_start_has_the_given_mean_and_deviation() -> None:
    torch.manual_seed(0)
    direct = initial_z(20_000, SVFConfig(init="random", init_std=0.05))
    sigmoid = initial_z(20_000, SVFConfig(init="random", parameterization="sigmoid"))
    assert direct.mean().item() == pytest.approx(1.0, abs=2e-3)
    assert direct.std().item() == pytest.approx(0.05, rel=0.03)
    assert sigmoid.mean().item() == pytest.approx(0.1, abs=5e-4)  # the reference implementation: 0.1 + 0.01·N(0, 1)
    assert sigmoid.std().item() == pytest.approx(0.01, rel=0.03)


@pytest.mark.parametrize("init", ["identity", "random"])
def test_z_starts_in_fp32_whatever_the_default_type(init: str) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert initial_z(4, SVFConfig(init=init)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"parameterization": "exponential"}, "'direct' or 'sigmoid'"),
        ({"init": "zeros"}, "'identity' or 'random'"),
        ({"parameterization": "sigmoid", "max_multiplier": 1.0}, "above 1"),
        ({"parameterization": "sigmoid", "max_multiplier": math.inf}, "above 1"),
        ({"parameterization": "sigmoid", "max_multiplier": math.nan}, "above 1"),
        ({"init_std": -0.1}, "init_std"),
        ({"init_std": math.nan}, "init_std"),
        ({"init_mean": math.inf}, "init_mean"),
        ({"target_modules": "mlp.(up"}, "target_modules .* nor a valid regular expression"),
        ({"exclude_modules": "*"}, "exclude_modules .* nor a valid regular expression"),
        ({"layers_pattern": "layers"}, "layers_to_transform"),
    ],
)
def test_bad_values_are_refused_in_one_line(values: dict, says: str) -> None:
    with pytest.raises(SVFError, match=says) as caught:
        SVFConfig(**values)
    assert "\n" not in str(caught.value)


def test_max_multiplier_does_not_concern_the_direct_form() -> None:
    assert SVFConfig(max_multiplier=1.0).parameterization == "direct"
