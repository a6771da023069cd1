"""Estimates, intervals and a paired test for right and wrong answers. Pure functions."""

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
