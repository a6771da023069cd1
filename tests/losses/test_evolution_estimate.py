"""Evolution strategies: the estimate of a gradient, and what is made of fitness before."""

import math

import pytest
import torch
from torch import Tensor

from svf_rl.losses.evolution import FITNESS, estimate_gradient, member_fitness, perturbation, shape_fitness

NAN = math.nan
SIGMA = 0.1


def drawn(pairs: int, size: int) -> Tensor:
    return torch.stack([perturbation(seed, size) for seed in range(pairs)])  # (pairs, size)


def members(center: Tensor, perturbations: Tensor) -> Tensor:
    signs = torch.tensor([[1.0], [-1.0]])
    return (center + signs * SIGMA * perturbations[:, None]).flatten(0, 1)  # (2 pairs, size)


def test_the_gradient_of_a_quadratic_is_found() -> None:
    """Exactly with as many orthogonal perturbations as there are values: the even part cancels within each pair."""
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    hessian, slope, center = -root @ root.T, torch.arange(6.0), torch.linspace(-1, 1, 6)

    def function(x: Tensor) -> Tensor:
        return (x @ hessian * x).sum(1) / 2 + x @ slope

    expected = -(hessian @ center + slope)  # of the loss, minus the function
    axes = math.sqrt(6) * torch.linalg.qr(root)[0].T
    exact = estimate_gradient(function(members(center, axes)), axes, SIGMA)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-4)
    many = drawn(4_000, 6)
    estimated = estimate_gradient(function(members(center, many)), many, SIGMA)
    assert (estimated - expected).norm() < 0.12 * expected.norm()


def test_pairs_are_antithetic() -> None:
    perturbations, center = drawn(8, 5), torch.zeros(5)
    even = members(center, perturbations).square().sum(1)
    assert estimate_gradient(even, perturbations, SIGMA).abs().max() == 0
    fitness = torch.linspace(0, 1, 16).square()
    swapped = fitness.view(-1, 2).flip(1).reshape(-1)
    gradient = estimate_gradient(fitness, perturbations, SIGMA)
    assert gradient.norm() > 0
    assert torch.equal(estimate_gradient(swapped, perturbations, SIGMA), -gradient)
    torch.testing.assert_close(estimate_gradient(fitness + 3, perturbations, SIGMA), gradient)


def test_a_pair_of_which_one_has_no_fitness_does_not_count() -> None:
    perturbations, fitness = drawn(3, 4), torch.tensor([0.1, 0.4, 0.9, NAN, 0.3, 0.0])
    there = [0, 2]
    rest = estimate_gradient(fitness.view(-1, 2)[there].reshape(-1), perturbations[there], SIGMA)
    torch.testing.assert_close(estimate_gradient(fitness, perturbations, SIGMA), rest)
    assert estimate_gradient(torch.full((6,), NAN), perturbations, SIGMA).abs().max() == 0


def test_perturbations_come_from_their_seed_alone() -> None:
    state = torch.random.get_rng_state()
    one = perturbation(7, 50_000)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(one, perturbation(7, 50_000))
    other = perturbation(8, 50_000)
    assert abs((one @ other / 50_000).item()) < 0.02
    assert (one.mean().item(), one.std().item()) == pytest.approx((0, 1), abs=0.02)


def test_ranks_are_centered_and_equals_share_theirs() -> None:
    shaped = shape_fitness(torch.tensor([3.0, 1.0, 1.0, 2.0, 9.0]), "ranks")
    assert shaped.tolist() == pytest.approx([0.25, -0.375, -0.375, 0.0, 0.5])
    assert shape_fitness(torch.tensor([0.0, 1.0]), "ranks").tolist() == [-0.5, 0.5]
    assert shape_fitness(torch.zeros(4), "ranks").tolist() == [0, 0, 0, 0]
    values = torch.randn(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shape_fitness(values, "ranks"), shape_fitness((3 * values).exp(), "ranks"))


def test_normalized_fitness_has_no_unit() -> None:
    values = torch.randn(40, generator=torch.Generator().manual_seed(0))
    shaped = shape_fitness(100 * values + 7, "normalized")
    assert (shaped.mean().item(), shaped.std(correction=0).item()) == pytest.approx((0, 1), abs=1e-5)
    torch.testing.assert_close(shaped, shape_fitness(values, "normalized"), rtol=0, atol=1e-4)
    assert shape_fitness(torch.ones(4), "normalized").tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", FITNESS)
def test_members_without_fitness_are_compared_with_nobody(kind: str) -> None:
    shaped = shape_fitness(torch.tensor([0.5, NAN, 0.1, NAN, 0.7]), kind)
    assert shaped.isnan().tolist() == [False, True, False, True, False]
    assert torch.equal(shaped[[0, 2, 4]], shape_fitness(torch.tensor([0.5, 0.1, 0.7]), kind))
    assert shape_fitness(torch.full((4,), NAN), kind).isnan().all()


def test_an_unknown_shaping_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown shaping 'median'"):
        shape_fitness(torch.zeros(2), "median")


def test_nobody_gains_by_lacking_the_reward_of_a_hard_prompt() -> None:
    rewards = torch.tensor([[1.0, 1.0, 1.0], [0.25, 0.75, NAN], [1.0, 0.0, 0.5], [NAN, NAN, NAN]])  # (prompts, members)
    assert member_fitness(rewards).tolist() == pytest.approx([2.25 / 3, 1.75 / 3, 2 / 3])
    one, none = member_fitness(torch.tensor([[1.0, NAN], [0.0, NAN]])).tolist()
    assert one == 0.5
    assert math.isnan(none)


def test_the_order_of_rewards_makes_no_difference() -> None:
    rewards = torch.tensor([0.1, 0.7, 0.2, 0.3, 1.1, 0.6, 0.9])
    orders = [torch.randperm(7, generator=torch.Generator().manual_seed(seed)) for seed in range(50)]
    assert len(set(member_fitness(torch.stack([rewards[order] for order in orders], 1)).tolist())) == 1
