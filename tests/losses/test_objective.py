"""The objective's pure functions, against numbers worked out by hand and TRL's formulas."""

import math

import pytest
import torch

from svf_rl.losses.objective import (
    compute_advantages,
    compute_importance_weights,
    estimate_kl,
    reduce_tokens,
    reinforce_loss,
)

NAN = float("nan")
REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])  # two prompts, three completions each


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("none", [1, 0, 0, 1, 1, 0]),
        ("group_mean", [2 / 3, -1 / 3, -1 / 3, 1 / 3, 1 / 3, -2 / 3]),
        ("leave_one_out", [1, -1 / 2, -1 / 2, 1 / 2, 1 / 2, -1]),
        ("batch_mean", [1 / 2, -1 / 2, -1 / 2, 1 / 2, 1 / 2, -1 / 2]),
    ],
)
def test_baselines(baseline: str, expected: list[float]) -> None:
    torch.testing.assert_close(compute_advantages(REWARDS, 3, baseline), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("none", [4, 0, 2, 0, 6, 0]),
        ("group_mean", [1, 0, -1, 0, 0, 0]),
        ("leave_one_out", [2, 0, -2, 0, 0, 0]),  # 6 is alone in its group: nothing to compare with
        ("batch_mean", [0, 0, -2, 0, 2, 0]),
    ],
)
def test_an_unscorable_completion_takes_no_part_in_any_mean(baseline: str, expected: list[float]) -> None:
    rewards = torch.tensor([4, NAN, 2, NAN, 6, NAN])
    torch.testing.assert_close(compute_advantages(rewards, 3, baseline), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("baseline", ["none", "group_mean", "leave_one_out", "batch_mean"])
@pytest.mark.parametrize("normalize", [False, True])
def test_nothing_scorable_gives_zeros(baseline: str, normalize: bool) -> None:
    assert compute_advantages(torch.full((4,), NAN), 2, baseline, normalize).tolist() == [0, 0, 0, 0]


def test_a_group_without_a_score_leaves_the_other_group_alone() -> None:
    assert compute_advantages(torch.tensor([NAN, NAN, 1.0, 0.0]), 2, "leave_one_out").tolist() == [0, 0, 1, -1]


def test_one_completion_a_prompt() -> None:
    rewards = torch.tensor([1.0, -1.0, -1.0, NAN])
    assert compute_advantages(rewards, 1, "none").tolist() == [1, -1, -1, 0]
    torch.testing.assert_close(compute_advantages(rewards, 1, "batch_mean"), torch.tensor([4 / 3, -2 / 3, -2 / 3, 0]))
    assert compute_advantages(rewards, 1, "leave_one_out").tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_normalising_divides_by_the_deviation_of_the_group(baseline: str) -> None:
    rewards = torch.tensor([1.0, 0.0, NAN, 10.0, 0.0, 2.0])
    plain, normalised = (
        compute_advantages(rewards, 3, baseline),
        compute_advantages(rewards, 3, baseline, normalize=True),
    )
    deviations = torch.tensor([math.sqrt(0.5)] * 3 + [math.sqrt(28.0)] * 3)  # of 1, 0 and of 10, 0, 2
    torch.testing.assert_close(normalised, plain / deviations)


@pytest.mark.parametrize("baseline", ["none", "batch_mean"])
def test_normalising_divides_by_the_deviation_of_the_batch(baseline: str) -> None:
    plain, normalised = (
        compute_advantages(REWARDS, 3, baseline),
        compute_advantages(REWARDS, 3, baseline, normalize=True),
    )
    torch.testing.assert_close(normalised, plain / REWARDS.std())


def test_normalising_equal_rewards_divides_by_nothing() -> None:
    assert compute_advantages(torch.ones(4), 2, "group_mean", normalize=True).tolist() == [0, 0, 0, 0]
    assert compute_advantages(torch.ones(4), 2, "none", normalize=True).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("baseline", ["leave_one_out", "group_mean", "batch_mean"])
@pytest.mark.parametrize("size", [2, 8, 12])
def test_rewards_that_are_equal_stay_without_advantage_where_a_mean_of_them_rounds(baseline: str, size: int) -> None:
    for reward in (0.1, 0.2, 0.3, 1 / 3, -0.7, 1.1):
        scores = compute_advantages(torch.full((size,), reward), size, baseline, normalize=True)
        assert (scores == 0).all(), (reward, scores)
        assert scores.dtype == torch.float32


def test_clipping_is_the_last_step() -> None:
    rewards = torch.tensor([10.0, 0.0, 0.25, 0.0])
    assert compute_advantages(rewards, 2, "leave_one_out", clip=0.5).tolist() == [0.5, -0.5, 0.25, -0.25]
    normalised = compute_advantages(rewards, 2, "leave_one_out", normalize=True, clip=1.0)
    assert normalised.tolist() == [1, -1, 1, -1]  # ±√2 before


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(ValueError, match="median"):
        compute_advantages(REWARDS, 3, "median")


# ---- the vLLM mismatch correction ------------------------------------------------------------------------------------


def _trl_ratio(logps, sampling_logps, mask, mode, minimum, maximum):
    """TRL 1.16, `GRPOTrainer._generate_and_score_completions`, in the order of its own steps."""
    difference = torch.nan_to_num((logps - sampling_logps) * mask, nan=0.0)
    if mode in ("sequence_mask", "sequence_truncate"):
        difference = difference.sum(dim=-1, keepdim=True)
    ratio = torch.exp(difference)
    if mode in ("sequence_truncate", "token_truncate"):
        return torch.clamp(ratio, min=minimum, max=maximum)
    low, high = -math.inf if minimum is None else minimum, math.inf if maximum is None else maximum
    return ratio.masked_fill((ratio < low) | (ratio > high), value=0.0)


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
@pytest.mark.parametrize(("minimum", "maximum"), [(None, 1.5), (0.5, None), (0.7, 1.3)])
def test_mismatch_weights_are_those_of_trl(mode: str, minimum: float | None, maximum: float | None) -> None:
    torch.manual_seed(0)
    logps, sampled = -torch.rand(6, 9), -torch.rand(6, 9)
    sampled[0, 1] = NAN  # the generator knows nothing about this token
    mask = (torch.arange(9) < torch.tensor([[9], [7], [5], [3], [1], [0]])).long()
    weights = compute_importance_weights(logps, sampled, mask, mode, minimum, maximum)
    torch.testing.assert_close(weights, _trl_ratio(logps, sampled, mask, mode, minimum, maximum))
    bounded = weights[weights != 0]
    assert bounded.min() >= (minimum or 0)
    assert bounded.max() <= (maximum or math.inf)


def test_mismatch_weights_carry_no_gradient_and_are_one_where_the_generator_agrees() -> None:
    logps = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    mask = torch.tensor([[1, 1, 0]])
    sampled = torch.tensor([[-1.0, NAN, 5.0]])
    weights = compute_importance_weights(logps, sampled, mask, "token_truncate", None, 2.0)
    assert not weights.requires_grad
    assert weights.tolist() == [[1, 1, 1]]


# ---- estimators of the divergence ------------------------------------------------------------------------------------


def test_estimators_are_their_definitions() -> None:
    logps, ref_logps = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    ratio = (ref_logps - logps).exp()  # p_ref / p
    torch.testing.assert_close(estimate_kl(logps, ref_logps, "k1"), -ratio.log())
    torch.testing.assert_close(estimate_kl(logps, ref_logps, "k2"), ratio.log() ** 2 / 2)
    torch.testing.assert_close(estimate_kl(logps, ref_logps, "k3"), ratio - 1 - ratio.log())
    assert (estimate_kl(logps, ref_logps, "k3") >= 0).all()
    assert estimate_kl(logps, logps, "k3").tolist() == [0, 0]
    with pytest.raises(ValueError, match="k4"):
        estimate_kl(logps, ref_logps, "k4")


def _distributions() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    logits, ref_logits = torch.randn(2, 12, dtype=torch.float64)
    return logits, ref_logits


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_are_the_exact_divergence_in_expectation(kind: str) -> None:
    logits, ref_logits = _distributions()
    lp, lq = logits.log_softmax(0), ref_logits.log_softmax(0)
    exact = (lp.exp() * (lp - lq)).sum()
    torch.testing.assert_close((lp.exp() * estimate_kl(lp, lq, kind)).sum(), exact)


@pytest.mark.parametrize(("kind", "same"), [("k2", True), ("k1", False)])
def test_as_a_loss_k2_has_the_gradient_of_the_exact_divergence_and_k1_has_none(kind: str, same: bool) -> None:
    """The expectation of the gradient on sampled tokens: the probabilities that drew them are constants."""
    logits, ref_logits = _distributions()
    logits.requires_grad_()
    lp, lq = logits.log_softmax(0), ref_logits.log_softmax(0)
    (exact,) = torch.autograd.grad((lp.exp() * (lp - lq)).sum(), logits, retain_graph=True)
    (sampled,) = torch.autograd.grad((lp.exp().detach() * estimate_kl(lp, lq, kind)).sum(), logits)
    torch.testing.assert_close(sampled, exact if same else torch.zeros_like(exact), atol=1e-12, rtol=1e-9)


# ---- reduction and loss ----------------------------------------------------------------------------------------------


def test_tokens_that_do_not_count_are_left_out_even_when_they_are_not_finite() -> None:
    values = torch.tensor([[1.0, 2.0, NAN], [4.0, math.inf, 6.0], [NAN, NAN, NAN]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert reduce_tokens(values, mask, "sum").tolist() == [3, 4, 0]
    assert reduce_tokens(values, mask, "mean").tolist() == [1.5, 4, 0]


def test_the_loss_by_hand() -> None:
    logps = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]], requires_grad=True)
    mask, scores = torch.tensor([[1, 1], [1, 0]]), torch.tensor([2.0, -1.0])
    weights, kl = torch.tensor([[1.0, 0.5], [2.0, 9.0]]), torch.tensor([[0.1, 0.3], [0.2, 9.0]])

    def loss(reduction: str, weights: torch.Tensor | None = None, beta: float = 0.0) -> torch.Tensor:
        return reinforce_loss(logps, scores, mask, weights, kl, beta, reduction, sequences=4)

    assert loss("sum").item() == pytest.approx((2 * 3 - 3) / 4)
    assert loss("mean").item() == pytest.approx((2 * 1.5 - 3) / 4)
    assert loss("sum", weights).item() == pytest.approx((2 * 2 - 6) / 4)
    assert loss("sum", None, beta=0.5).item() == pytest.approx((2 * 3 + 0.2 - 3 + 0.1) / 4)
    assert loss("mean", None, beta=0.5).item() == pytest.approx((2 * 1.5 + 0.1 - 3 + 0.1) / 4)

    loss("sum", weights).backward()
    assert logps.grad.tolist() == [[-0.5, -0.25], [0.5, 0.0]]  # −A·w / sequences


def test_micro_batches_add_up_to_the_mean_over_the_update() -> None:
    torch.manual_seed(2)
    logps, scores = -torch.rand(8, 5), torch.randn(8)
    mask = (torch.rand(8, 5) > 0.3).long()
    whole = reinforce_loss(logps, scores, mask, None, None, 0.0, "sum", 8)
    parts = [
        reinforce_loss(logps[i : i + 2], scores[i : i + 2], mask[i : i + 2], None, None, 0.0, "sum", 8)
        for i in range(0, 8, 2)
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_no_sequence_at_all_gives_zero_with_a_graph() -> None:
    logps = torch.zeros(2, 3, requires_grad=True)
    loss = reinforce_loss(logps, torch.zeros(2), torch.zeros(2, 3), None, None, 0.0, "mean", 0)
    loss.backward()
    assert loss.item() == 0
    assert logps.grad.abs().sum() == 0
