"""Accuracies over seeds with their intervals, from the verdicts on each item. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from svf_rl.metrics.statistics import Estimate, bootstrap, estimate_mean, estimate_over_seeds, estimate_share

Verdicts = Mapping[int, bool | None]
"""Item to verdict; `None` where the check failed by itself."""

BySeed = Mapping[int, Verdicts]

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Accuracy(Estimate):
    """
    The accuracy of one method: the mean over the `n` items (those with a verdict) of each item's mean over the seeds.

    The interval is for the choice of the items: what other items of the task would give with the same trained models.
    It does not cover the choice of the seeds.

    Args:
        not_scorable (`int`): completions without a verdict, which take no part.
    """

    not_scorable: int


def estimate(by_seed: BySeed) -> Accuracy | None:
    """The accuracy over the seeds; `None` where there is no verdict at all.

    With one seed the interval is Wilson's, with several the bootstrap's over the items. Where every item has the same
    mean the bootstrap knows no spread, and Wilson's interval of as many items takes its place.
    """
    means = item_means(by_seed)
    if not means:
        return None
    values = list(means.values())
    spread = len(by_seed) > 1 and max(values) > min(values)
    found = estimate_mean(values) if spread else estimate_share(sum(values) / len(values), len(values))
    missing = sum(verdict is None for verdicts in by_seed.values() for verdict in verdicts.values())
    return Accuracy(**vars(found), not_scorable=missing)


def by_sample(by_seed: Mapping[int, Mapping[int, Sequence[bool | None]]]) -> dict[int, Verdicts]:
    """Each sample of each seed as if it were a seed of its own: an item's mean is over both."""
    apart: dict[tuple[int, int], dict[int, bool | None]] = {}
    for seed, items in by_seed.items():
        for item, answers in items.items():
            for sample, answer in enumerate(answers):
                apart.setdefault((seed, sample), {})[item] = answer
    return dict(enumerate(apart.values()))


def compared(method: BySeed, other: BySeed) -> Estimate | None:
    """`method` less `other` over the items that both have a verdict on, paired; `None` where there are none."""
    ours, theirs = item_means(method), item_means(other)
    values = [ours[item] - theirs[item] for item in ours.keys() & theirs.keys()]
    if not values:
        return None
    return Estimate(sum(values) / len(values), *bootstrap(sorted(values)), len(values))


def compared_by_seed(method: BySeed, other: BySeed) -> Estimate | None:
    """The same over the seeds that both have: what one seed makes of a method says nothing of another's."""
    seeds = sorted(method.keys() & other.keys())
    return compared({seed: method[seed] for seed in seeds}, {seed: other[seed] for seed in seeds})


def as_difference(found: Estimate) -> dict[str, Any]:
    """`{"value": …, "interval": [low, high]}`, as result files hold a difference; the interval is `None` where all
    values were equal, which says nothing of their spread."""
    return {"value": found.value, "interval": list(found.interval) if found.high - found.low > _ROUNDING else None}


def over_seeds(values: Iterable[float]) -> list[float] | None:
    """Student's interval of the mean of `values`, one a seed; `None` where they know no spread."""
    found = estimate_over_seeds(list(values))
    return None if found is None else as_difference(found)["interval"]


def share_over_seeds(values: Iterable[float]) -> list[float] | None:
    """The same of shares, which lie between 0 and 1."""
    found = over_seeds(values)
    return None if found is None else [max(0.0, found[0]), min(1.0, found[1])]


def item_means(by_seed: BySeed) -> dict[int, float]:
    """Each item's share of right answers over the seeds that have a verdict on it."""
    answers: dict[int, list[bool]] = {}
    for verdicts in by_seed.values():
        for item, verdict in verdicts.items():
            if verdict is not None:
                answers.setdefault(item, []).append(verdict)
    return {item: sum(found) / len(found) for item, found in answers.items()}


def oracle(own: Mapping[int, str], by_expert: Mapping[str, Verdicts]) -> dict[int, bool | None]:
    """The verdicts of a dispatch that never errs: of each item those of its own expert."""
    return {item: by_expert[expert][item] for item, expert in own.items() if item in by_expert.get(expert, {})}
