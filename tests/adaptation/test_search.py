"""The searches on functions whose optimum is known, and what they promise about ties, noise, bounds and going on."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from svf_rl.adaptation.search import CrossEntropySearch, RandomSearch, Search
from svf_rl.errors import SVFError

Fitness = Callable[[np.ndarray], float]
PEAK = np.array([0.8, 0.1, 0.5])


def quadratic(x: np.ndarray) -> float:
    return -float(((x - PEAK) ** 2).sum())


def multimodal(x: np.ndarray) -> float:
    """Rastrigin's function about the peak: a local optimum every fifth of the range."""
    distance = 5 * (x - PEAK)
    return -float((distance**2 - 2 * np.cos(2 * math.pi * distance) + 2).sum())


def run(search: Search, fitness: Fitness, generations: int) -> Search:
    for _ in range(generations):
        search.tell([fitness(candidate) for candidate in search.ask()])
    return search


def test_finds_the_top_of_a_quadratic() -> None:
    search = run(CrossEntropySearch(3, seed=0), quadratic, 20)
    assert np.allclose(search.best.vector, PEAK, atol=0.01)


@pytest.mark.parametrize("fitness", [quadratic, multimodal])
def test_beats_random_search_with_the_same_evaluations(fitness: Fitness) -> None:
    pairs = [
        (
            run(CrossEntropySearch(3, seed=seed), fitness, 15).best.fitness,
            run(RandomSearch(3, seed=seed), fitness, 15).best.fitness,
        )
        for seed in range(10)
    ]
    assert all(guided > random for guided, random in pairs)


def test_finds_the_highest_of_many_tops() -> None:
    """Within a tenth of the distance between two of them, from most seeds."""
    found = [run(CrossEntropySearch(3, population=64, seed=seed), multimodal, 15).best.vector for seed in range(10)]
    assert sum(np.allclose(vector, PEAK, atol=0.02) for vector in found) >= 8


@pytest.mark.parametrize("kind", [CrossEntropySearch, RandomSearch])
def test_is_a_function_of_its_seed(kind: type[Search]) -> None:
    first, again, other = (run(kind(4, seed=seed), lambda x: -x.sum(), 3) for seed in (1, 1, 2))
    assert np.array_equal(first.ask(), again.ask())
    assert not np.array_equal(first.ask(), other.ask())


def test_asking_twice_gives_the_same_candidates() -> None:
    search = CrossEntropySearch(3, seed=0)
    assert np.array_equal(search.ask(), search.ask())


@pytest.mark.parametrize("kind", [CrossEntropySearch, RandomSearch])
@pytest.mark.parametrize("stopped_after", range(5))
def test_a_stored_search_goes_on_bit_by_bit(kind: type[Search], stopped_after: int) -> None:
    def noisy(search: Search) -> None:
        noise = np.random.default_rng(search.generation).normal(size=search.population)
        search.tell([quadratic(x) + n for x, n in zip(search.ask(), noise, strict=True)], noise.tolist())

    whole, stopped = kind(3, seed=5), kind(3, seed=5)
    for _ in range(5):
        noisy(whole)
    for _ in range(stopped_after):
        noisy(stopped)
    resumed = kind(3, seed=5)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict(), allow_nan=False)))
    for _ in range(5 - stopped_after):
        noisy(resumed)
    assert resumed.state_dict() == whole.state_dict()
    assert np.array_equal(resumed.ask(), whole.ask())


@pytest.mark.parametrize("kind", [CrossEntropySearch, RandomSearch])
def test_every_candidate_is_within_the_bounds(kind: type[Search]) -> None:
    search = kind(5, low=-0.5, high=0.25, seed=0)
    for _ in range(4):
        candidates = search.ask()
        assert candidates.shape == (32, 5)
        assert candidates.min() >= -0.5
        assert candidates.max() <= 0.25
        search.tell(candidates.sum(axis=1))


def test_the_bounds_themselves_are_candidates() -> None:
    """Clamped, not drawn anew: an expert that is off is met often."""
    candidates = CrossEntropySearch(3, mean=0.2, seed=0).ask()
    assert (candidates == 0).mean() > 0.2


def test_member_0_is_the_start_and_then_the_best_so_far() -> None:
    search = CrossEntropySearch(3, mean=[0.1, 0.2, 0.3], seed=0)
    assert search.ask()[0].tolist() == [0.1, 0.2, 0.3]
    for _ in range(5):
        search.tell([quadratic(x) for x in search.ask()])
        assert search.ask()[0].tolist() == search.best.vector


def test_without_noise_the_best_never_gets_worse() -> None:
    search, seen, told = CrossEntropySearch(3, seed=3), -math.inf, []
    for _ in range(6):
        values = [multimodal(x) for x in search.ask()]
        seen = max(seen, *values)
        search.tell(values)
        told.append(search.best.fitness)
        assert search.best.fitness == seen
    assert told == sorted(told)


def test_the_distribution_is_that_of_the_elites() -> None:
    search = CrossEntropySearch(2, population=10, elites=3, seed=0)
    candidates = search.ask()
    search.tell(list(range(10)))
    assert np.allclose(search.mean, candidates[7:].mean(axis=0))
    assert np.allclose(search.std, candidates[7:].std(axis=0))


def test_momentum_keeps_a_share_of_the_old_distribution() -> None:
    search = CrossEntropySearch(2, population=10, elites=3, mean=0.5, std=0.4, momentum=0.25, seed=0)
    elites = search.ask()[7:]
    search.tell(list(range(10)))
    assert np.allclose(search.mean, 0.25 * 0.5 + 0.75 * elites.mean(axis=0))
    assert np.allclose(search.std, 0.25 * 0.4 + 0.75 * elites.std(axis=0))


def test_the_deviation_stays_above_its_minimum() -> None:
    search = run(CrossEntropySearch(3, min_std=0.05, seed=0), quadratic, 30)
    assert isinstance(search, CrossEntropySearch)
    assert search.std.tolist() == [0.05] * 3


@pytest.mark.parametrize(("population", "elites"), [(32, 6), (10, 2), (4, 1), (2, 1)])
def test_a_fifth_are_elites_and_never_none(population: int, elites: int) -> None:
    assert CrossEntropySearch(1, population=population).elites == elites


def test_equal_fitness_is_decided_by_the_second_value() -> None:
    search = CrossEntropySearch(2, population=4, elites=1, seed=0)
    candidates = search.ask()
    search.tell([1.0, 2.0, 2.0, 2.0], [9.0, math.nan, -3.0, -5.0])
    assert search.best.vector == candidates[2].tolist()
    assert search.mean.tolist() == candidates[2].tolist()
    assert (search.best.fitness, search.best.tie_break) == (2.0, -3.0)


def test_among_equals_the_first_is_taken() -> None:
    search = CrossEntropySearch(2, population=4, seed=0)
    start = search.ask()[0].tolist()
    search.tell([1.0] * 4)
    search.tell([1.0] * 4)
    assert search.best.vector == start
    assert search.best.generation == 0


@pytest.mark.parametrize("missing", [math.nan, math.inf, -math.inf])
def test_what_has_no_fitness_ranks_last_and_teaches_nothing(missing: float) -> None:
    search = CrossEntropySearch(2, population=5, elites=3, seed=0)
    candidates = search.ask()
    search.tell([missing, 1.0, missing, 2.0, missing])
    assert search.best.vector == candidates[3].tolist()
    assert np.allclose(search.mean, candidates[[1, 3]].mean(axis=0))


def test_a_lucky_best_is_found_out() -> None:
    """Its figure is the mean over its evaluations, so that one high figure by chance does not last."""
    search = RandomSearch(2, population=3, seed=0)
    search.tell([0.0, 1.0, 0.5])
    lucky = search.best.vector
    search.tell([0.4, 0.1, 0.2])  # evaluated again it reaches 0.4: the mean is 0.7, and nobody is above
    assert (search.best.vector, search.best.evaluations) == (lucky, 2)
    assert search.best.fitness == pytest.approx(0.7)
    better = search.ask()[2].tolist()
    search.tell([0.3, 0.1, 0.6])  # mean 0.567, and 0.6 is above both
    assert (search.best.vector, search.best.fitness, search.best.generation) == (better, 0.6, 2)


def test_an_unlucky_best_is_kept() -> None:
    search = RandomSearch(2, population=2, seed=0)
    search.tell([0.9, 0.1])
    best = search.best.vector
    search.tell([0.3, 0.5])  # the other is above 0.3, but not above the mean of 0.9 and 0.3
    assert search.best.vector == best


def test_noise_does_not_lead_astray() -> None:
    """A noise of a third of the range: the mean of the search still ends near the top."""
    noise = np.random.default_rng(0)
    search = CrossEntropySearch(3, population=64, seed=0)
    run(search, lambda x: quadratic(x) + 0.3 * noise.normal(), 15)
    assert np.abs(search.mean - PEAK).max() < 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimension": 0}, "at least 1 dimension"),
        ({"population": 1}, "population must be at least 2"),
        ({"elites": 0}, "elites must be between 1 and the population"),
        ({"elites": 33}, "elites must be between 1 and the population"),
        ({"low": 1.0}, "low must be below high"),
        ({"high": math.nan}, "low must be below high"),
        ({"std": 0.0}, "std must be above 0"),
        ({"std": math.nan}, "std must be above 0"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"min_std": -1.0}, "min_std must be"),
        ({"mean": 1.5}, "start must lie between"),
        ({"mean": [0.1, 0.2]}, "one number, or 3"),
        ({"mean": [0.1, 0.2, math.nan]}, "one number, or 3"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_settings_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SVFError, match=message) as error:
        CrossEntropySearch(**{"dimension": 3, **settings})
    assert "\n" not in str(error.value)


def test_bad_fitness_is_one_line() -> None:
    search = CrossEntropySearch(3, seed=0)
    with pytest.raises(SVFError, match="31 values for 32 candidates"):
        search.tell([0.0] * 31)
    with pytest.raises(SVFError, match="31 values for 32 candidates"):
        search.tell([0.0] * 32, [0.0] * 31)
    with pytest.raises(SVFError, match="no candidate"):
        search.tell([math.nan] * 32)
    with pytest.raises(SVFError, match="no best candidate"):
        _ = search.best
    assert search.generation == 0


def test_a_state_of_another_search_is_refused() -> None:
    state = run(CrossEntropySearch(3, seed=0), quadratic, 1).state_dict()
    with pytest.raises(SVFError, match="seed: 0 there, 1 here"):
        CrossEntropySearch(3, seed=1).load_state_dict(state)
    with pytest.raises(SVFError, match=r"search: .* there, .* here"):
        RandomSearch(3, seed=0).load_state_dict(state)
    for damaged in ({}, {**state, "best": 3}, {k: v for k, v in state.items() if k != "std"}, {**state, "mean": [1]}):
        with pytest.raises(SVFError):
            CrossEntropySearch(3, seed=0).load_state_dict(damaged)
