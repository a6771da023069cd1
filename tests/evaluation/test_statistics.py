"""Estimates and tests against values from elsewhere: by hand, by enumeration, from published tables."""

from itertools import combinations, product

import numpy as np
import pytest

from svf_rl.metrics.statistics import (
    bootstrap,
    estimate_over_seeds,
    holm,
    mcnemar,
    paired_t,
    pass_at_k,
    student_quantile,
    student_within,
    wilson,
)


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_all_choices_of_k_that_hold_a_right_one(samples: int) -> None:
    for correct in range(samples + 1):
        marks = [True] * correct + [False] * (samples - correct)
        for k in range(1, samples + 1):
            choices = list(combinations(marks, k))
            assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, choices)) / len(choices), abs=1e-15)


def test_pass_at_1_is_the_share_of_right_ones() -> None:
    assert pass_at_k(200, 37, 1) == pytest.approx(37 / 200, abs=1e-15)


def test_pass_at_k_of_many_samples_stays_exact() -> None:
    """The product form in floating point: 1 − Π (1 − k/i)."""
    n, c, k = 10_000, 3, 100
    product_form = 1 - np.prod(1 - k / np.arange(n - c + 1, n + 1))
    assert pass_at_k(n, c, k) == pytest.approx(product_form, rel=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    """Its mean over all outcomes of 5 tries, each right with probability p, is 1 − (1 − p)ᵏ."""
    p, n = 0.3, 5
    for k in range(1, n + 1):
        mean = sum(
            p ** sum(outcome) * (1 - p) ** (n - sum(outcome)) * pass_at_k(n, sum(outcome), k)
            for outcome in product([0, 1], repeat=n)
        )
        assert mean == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(("samples", "correct", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1)])
def test_pass_at_k_refuses_what_makes_no_sense(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(samples, correct, k)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe, "Two-sided confidence intervals for the single proportion", Stat. Med. 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_where_the_score_test_turns() -> None:
    low, high = wilson(30, 100)
    for end in (low, high):
        assert abs(0.3 - end) / (end * (1 - end) / 100) ** 0.5 == pytest.approx(1.959964, abs=1e-6)


def test_wilson_has_a_width_at_the_ends_and_stays_within_0_and_1() -> None:
    assert wilson(0, 10)[0] == 0.0 < wilson(0, 10)[1]
    assert wilson(10, 10)[0] < 1.0 == wilson(10, 10)[1]


def test_wilson_refuses_no_trials() -> None:
    with pytest.raises(ValueError, match="wilson needs"):
        wilson(0, 0)


def test_bootstrap_of_two_values_gives_their_possible_means() -> None:
    """Means of two draws from {0, 1}: 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    assert bootstrap([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap([0.0, 1.0], confidence=0.4) == (0.5, 0.5)


def test_bootstrap_of_many_values_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(1).random(2000).tolist()
    mean, half = np.mean(values), 1.96 * np.std(values) / 2000**0.5
    assert bootstrap(values) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_bootstrap_is_reproducible() -> None:
    values = [0.1, 0.5, 0.5, 0.9]
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 1), (3, 3), (2, 9), (0, 12)])
def test_mcnemar_is_the_share_of_coin_tosses_at_least_as_uneven(gained: int, lost: int) -> None:
    tosses = gained + lost
    uneven = [abs(2 * sum(outcome) - tosses) >= abs(gained - lost) for outcome in product([0, 1], repeat=tosses)]
    assert mcnemar(gained, lost) == pytest.approx(sum(uneven) / len(uneven))


def test_mcnemar_does_not_care_who_is_first_and_survives_large_counts() -> None:
    assert mcnemar(700, 610) == mcnemar(610, 700)
    assert 0.01 < mcnemar(700, 610) < 0.02
    assert mcnemar(5000, 0) == pytest.approx(0.0, abs=1e-300)


@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (10, 2.2281), (30, 2.0423)]
)
def test_student_s_quantiles_are_those_of_the_tables(degrees: int, t: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(t, abs=5e-5)
    assert student_within(t, degrees) == pytest.approx(0.95, abs=1e-5)


def test_a_paired_t_test_by_hand() -> None:
    # mean 2, standard deviation 1, so t = 2 / (1 / sqrt 3) = 3.4641 with two degrees: p = 0.0742
    assert paired_t([1.0, 2.0, 3.0]) == pytest.approx(0.0742, abs=1e-4)
    assert paired_t([0.0, 0.0]) == 1
    for unfit in ([1.0], [1.0, float("nan"), 2.0]):
        with pytest.raises(ValueError, match="at least two differences, all of them finite"):
            paired_t(unfit)


def test_holm_corrects_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_one_seed_has_no_interval_over_seeds() -> None:
    assert estimate_over_seeds([0.5]) is None
    found = estimate_over_seeds([0.4, 0.6])
    assert found.interval == pytest.approx((0.5 - 12.7062 * 0.1, 0.5 + 12.7062 * 0.1), abs=1e-4)
