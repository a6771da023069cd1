"""Estimates, intervals and paired tests for right and wrong answers and for accuracies by seed. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Interval = tuple[float, float]

# How many numbers of resampled rows are drawn together.
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A figure from `n` items, and the ends of its interval (95 % unless told otherwise)."""

    value: float
    low: float
    high: float
    n: int

    @property
    def interval(self) -> Interval:
        return self.low, self.high


def estimate_share(value: float, n: int, confidence: float = 0.95) -> Estimate:
    """The share `value` of right answers among `n` items, with Wilson's interval. Raises `ValueError` for `n < 1`."""
    return Estimate(value, *wilson(round(value * n), n, confidence), n)


def estimate_mean(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean of `values`, one an item, with the bootstrap's interval. Raises `ValueError` for no values."""
    return Estimate(sum(values) / max(1, len(values)), *bootstrap(values, confidence), len(values))


def estimate_over_seeds(values: Sequence[float], confidence: float = 0.95) -> Estimate | None:
    """The mean of `values`, one a seed, with Student's interval: what other seeds would give. `None` below two values,
    which know no spread."""
    n = len(values)
    if n < 2:
        return None
    mean, error = _mean_and_error(values)
    half = student_quantile((1 + confidence) / 2, n - 1) * error
    return Estimate(mean, mean - half, mean + half, n)


def as_json(estimate: Estimate | None) -> dict[str, Any]:
    """`{"value": …, "interval": [low, high]}`, as result files hold an estimate; both `None` without one."""
    return {"value": estimate and estimate.value, "interval": estimate and list(estimate.interval)}


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """
    The chance that at least one of `k` completions is right, from `correct` right ones among `samples`.

    `1 − C(n−c, k) / C(n, k)`, the unbiased estimate of Chen et al., "Evaluating Large Language Models Trained on Code",
    arXiv 2107.03374. The binomial coefficients are exact integers, so that no product underflows.

    Raises:
        ValueError: unless `0 ≤ correct ≤ samples` and `1 ≤ k ≤ samples`.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(
            f"pass@k needs 0 <= correct <= samples and 1 <= k <= samples, not {correct=}, {samples=}, {k=}"
        )
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """
    Wilson's score interval of a proportion (JASA 22, 1927): unlike `p ± z·√(p(1−p)/n)` it stays within 0 and 1 and has
    a width at 0 and at 1.

    Raises:
        ValueError: unless `0 ≤ successes ≤ trials` and `trials ≥ 1`.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"wilson needs 0 <= successes <= trials and trials >= 1, not {successes=}, {trials=}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p, spread = successes / trials, z * z / trials
    center = (p + spread / 2) / (1 + spread)
    half = math.sqrt(p * (1 - p) * spread + spread * spread / 4) / (1 + spread)
    # at the ends rounding would miss 0 and 1 by the last bit
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == trials else center + half
    return low, high


def bootstrap(values: Sequence[float], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """
    The percentile interval of the mean of `values`, drawn with replacement: one value a problem, so that the samples of
    one problem stay together.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("bootstrap needs at least one value")
    drawn_from = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means: list[float] = []
    while len(means) < resamples:
        rows = min(resamples - len(means), max(1, _CHUNK // len(values)))
        means += generator.choice(drawn_from, size=(rows, len(values))).mean(axis=1).tolist()
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mcnemar(gained: int, lost: int) -> float:
    """
    The two-sided p-value of McNemar's test in its exact form (Psychometrika 12, 1947): were both answerers equally
    good, each item on which they disagree would fall to either side like a fair coin.

    Args:
        gained (`int`): items that only the second has right.
        lost (`int`): items that only the first has right.
    """
    discordant, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(discordant, count) for count in range(fewer + 1))
    return min(1.0, 2 * tail / 2**discordant)


def paired_t(differences: Sequence[float]) -> float:
    """
    The two-sided p-value of Student's paired test (Biometrika 6, 1908): the chance of a mean this far from 0 where the
    differences are normal around 0.

    Raises:
        ValueError: fewer than two differences, or one that is not finite.
    """
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        raise ValueError("a paired test needs at least two differences, all of them finite")
    mean, error = _mean_and_error(differences)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return max(0.0, 1 - student_within(abs(mean) / error, len(differences) - 1))  # by rounding below


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number by Holm's step-down method (Scandinavian Journal of Statistics 6, 1979):
    with all below α rejected, the chance of one or more false rejections is at most α."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def student_within(t: float, degrees: int) -> float:
    """How likely Student's t with so many `degrees` of freedom lies between -`t` and `t` (Abramowitz and Stegun, 26.7.3
    and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    term = total = math.cos(angle) if degrees % 2 else 1.0
    for power in range(2 + degrees % 2, degrees - 1, 2):
        term *= (power - 1) / power * math.cos(angle) ** 2
        total += term
    if degrees % 2 == 0:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if degrees > 1 else 0.0))


def student_quantile(share: float, degrees: int) -> float:
    """The t that Student's distribution stays below with the chance `share`, between one half and 1."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_within(middle, degrees) < 2 * share - 1 else (low, middle)
    return high


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
