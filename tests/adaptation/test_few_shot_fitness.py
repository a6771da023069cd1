"""The fitness of a candidate from verdicts and log-probabilities."""

import math

import pytest

from svf_rl.adaptation.arguments import FitnessWeights
from svf_rl.adaptation.fitness import Scored, fitness
from svf_rl.errors import SVFError

GREEDY, SAMPLED = FitnessWeights(1, 0, 0), FitnessWeights(0, 1, 0)
LIKELIHOOD = FitnessWeights(0, 0, 1)


def greedy(prompt: int, correct: bool | None, logp: float | None = None) -> Scored:
    return Scored(prompt, True, correct, logp)


def sampled(prompt: int, correct: bool | None, logp: float | None = None) -> Scored:
    return Scored(prompt, False, correct, logp)


def test_greedy_and_sampled_accuracy_are_mixed_by_their_weights() -> None:
    scored = [greedy(0, True), greedy(1, True), *(sampled(0, right) for right in (True, False, False, False))]
    assert fitness(scored, GREEDY).value == 1.0
    assert fitness(scored, SAMPLED).value == 0.25
    assert fitness(scored, FitnessWeights(1, 3, 0)).value == pytest.approx(0.25 * 1 + 0.75 * 0.25)


def test_only_the_proportions_of_the_weights_matter() -> None:
    scored = [greedy(0, True), sampled(0, False)]
    one, other = fitness(scored, FitnessWeights(5, 5, 0)), fitness(scored, FitnessWeights(0.5, 0.5, 0))
    assert one.value == other.value == 0.5


def test_a_prompt_counts_once_however_many_of_its_completions_could_be_graded() -> None:
    scored = [sampled(0, True), sampled(0, None), sampled(0, None), sampled(1, False), sampled(1, False)]
    assert fitness(scored, SAMPLED).value == 0.5


def test_a_failed_check_is_left_out_and_not_wrong() -> None:
    assert fitness([greedy(0, True), greedy(1, None)], GREEDY).value == 1.0


def test_without_any_verdict_there_is_no_fitness() -> None:
    nothing = fitness([greedy(0, None)], GREEDY)
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.tie_break)
    assert math.isnan(fitness([greedy(0, True)], SAMPLED).value)


def test_ties_are_broken_by_the_mean_log_likelihood_of_the_right_completions() -> None:
    scored = [greedy(0, True, -0.2), sampled(0, True, -0.4), sampled(0, False, -9.0), sampled(0, None, -9.0)]
    assert fitness(scored, GREEDY).tie_break == pytest.approx(-0.3)


def test_likelihood_counts_right_completions_by_their_probability() -> None:
    scored = [greedy(0, True, math.log(0.9)), greedy(1, True, math.log(0.5)), greedy(2, False, math.log(0.99))]
    assert fitness(scored, LIKELIHOOD).value == pytest.approx((0.9 + 0.5 + 0) / 3)


@pytest.mark.parametrize("logp", [0.0, -1.0, -1e6])
def test_the_fitness_stays_between_0_and_1(logp: float) -> None:
    assert 0 <= fitness([greedy(0, True, logp)], LIKELIHOOD).value <= 1


@pytest.mark.parametrize("weights", [(0, 0, 0), (-1, 2, 0), (math.nan, 1, 0), (1, math.inf, 0)])
def test_bad_weights_are_one_line(weights: tuple[float, float, float]) -> None:
    with pytest.raises(SVFError, match="weights of the fitness"):
        FitnessWeights(*weights)
