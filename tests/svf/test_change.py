"""The figures of a change, against their definitions on whole matrices and against changes whose figures are known."""

import pytest
import torch
from torch import Tensor

from svf_rl.svf.change import Change, measure_change
from svf_rl.svf.decompose import Factors, thin_svd


def weight_of(shape: tuple[int, int]) -> tuple[Tensor, Factors]:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    return weight, thin_svd(weight)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16)], ids=str)
def test_each_figure_is_what_its_definition_says(shape: tuple[int, int]) -> None:
    weight, factors = weight_of(shape)
    change = 0.01 * torch.randn(shape)
    found = measure_change(change, factors)
    s = torch.linalg.svdvals(change.double())
    p = s**2 / (s**2).sum()
    U, _, Vt = torch.linalg.svd(weight.double(), full_matrices=False)
    rotated = U.T @ change.double() @ Vt.T
    assert found.relative == pytest.approx((change.norm() / weight.norm()).item(), rel=1e-5)
    assert found.stable_rank == pytest.approx(((s**2).sum() / s[0] ** 2).item())
    assert found.effective_rank == pytest.approx((-(p * p.log()).sum()).exp().item())
    assert found.diagonal == pytest.approx((rotated.diag().square().sum() / (s**2).sum()).item(), rel=1e-5)


def test_scaled_singular_values_are_all_on_the_diagonal_and_rotated_directions_are_not() -> None:
    _, factors = weight_of((12, 30))
    scaled = (factors.U * factors.s * torch.randn(12)) @ factors.Vt
    rotated = factors.U.roll(1, 1) @ factors.Vt
    assert measure_change(scaled, factors).diagonal == pytest.approx(1)
    assert measure_change(rotated, factors).diagonal == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rank", [1, 3])
def test_equal_singular_values_have_their_number_for_both_ranks(rank: int) -> None:
    _, factors = weight_of((12, 30))
    change = factors.U[:, :rank] @ factors.Vt[:rank]
    found = measure_change(change, factors)
    assert found.stable_rank == pytest.approx(rank)
    assert found.effective_rank == pytest.approx(rank)


def test_only_the_relative_change_has_a_size() -> None:
    _, factors = weight_of((12, 30))
    change = torch.randn(12, 30)
    small, large = (measure_change(size * change, factors) for size in (1e-7, 1.0))
    assert small.relative == pytest.approx(1e-7 * large.relative)
    assert small.stable_rank == pytest.approx(large.stable_rank)
    assert small.diagonal == pytest.approx(large.diagonal)


def test_what_is_not_defined_is_left_open() -> None:
    weight, factors = weight_of((12, 30))
    assert measure_change(torch.zeros(12, 30), factors) == Change(0.0)
    assert measure_change(weight * float("nan"), factors) == Change(None)
    assert measure_change(weight, thin_svd(torch.zeros(12, 30))).relative is None
