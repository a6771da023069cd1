"""Accuracies over seeds: what the interval is taken over, and what is paired with what."""

import pytest

from svf_rl.metrics.statistics import bootstrap, wilson
from svf_rl.reproduce.estimates import compared, estimate, item_means, oracle


def verdicts(*answers):
    return dict(enumerate(answers))


def test_one_seed_has_wilson_s_interval():
    found = estimate({0: verdicts(True, True, False, True)})
    assert found.value == 0.75
    assert found.interval == wilson(3, 4)
    assert (found.n, found.not_scorable) == (4, 0)


def test_over_seeds_the_items_are_resampled_and_not_the_completions():
    found = estimate({0: verdicts(True, True, False), 1: verdicts(True, False, False)})
    assert found.value == pytest.approx(0.5)
    assert found.interval == bootstrap([1.0, 0.5, 0.0])


def test_answers_without_a_verdict_take_no_part():
    found = estimate({0: verdicts(True, None), 1: verdicts(False, None)})
    assert (found.value, found.n, found.not_scorable) == (0.5, 1, 2)
    assert estimate({0: verdicts(None)}) is None
    assert estimate({}) is None


def test_items_that_all_agree_still_leave_doubt():
    found = estimate({0: verdicts(*[True] * 20), 1: verdicts(*[True] * 20)})
    assert found.value == 1
    assert found.interval == wilson(20, 20)
    assert found.interval[0] < 0.9


def test_differences_are_paired_by_item():
    base = {0: verdicts(False, True, False, False)}
    method = {0: verdicts(True, True, False, True), 1: verdicts(True, True, False, False)}
    found = compared(method, base)
    assert found.value == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert found.interval[0] >= 0  # no item got worse
    assert compared({}, base) is None


def test_a_difference_counts_the_items_of_both():
    assert compared({0: {1: True, 2: True}}, {0: {2: False, 3: True}}).value == 1


def test_the_oracle_takes_each_item_from_its_own_expert():
    by_expert = {"a": verdicts(True, False, True), "b": verdicts(False, True, False)}
    assert oracle({0: "a", 1: "b", 2: "b"}, by_expert) == {0: True, 1: True, 2: False}
    assert oracle({0: "a", 1: "c"}, by_expert) == {0: True}


def test_an_item_s_mean_is_over_the_seeds_that_have_a_verdict():
    assert item_means({0: {7: True, 8: None}, 1: {7: False, 8: True}}) == {7: 0.5, 8: 1.0}
