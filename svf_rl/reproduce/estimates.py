"""Accuracies over seeds with their intervals, from the verdicts on each item. Pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass

from svf_rl.metrics.statistics import Interval, bootstrap, wilson

Verdicts = Mapping[int, bool | None]
"""Item to verdict; `None` where the check failed by itself."""


@dataclass(frozen=True)
class Estimate:
    """
    The accuracy of one method.

    Args:
        value (`float`): the mean over the items of each item's mean over the seeds.
        interval (`tuple`): 95 %, for the choice of the items: what other items of the task would give with the same
            trained models. It does not cover the choice of the seeds; `by_seed` shows that.
        by_seed (`dict[int, float]`): the accuracy of each seed.
        items (`int`): items with at least one verdict.
        not_scorable (`int`): completions without a verdict, which take no part.
    """

    value: float
    interval: Interval
    by_seed: dict[int, float]
    items: int
    not_scorable: int


@dataclass(frozen=True)
class Difference:
    """How much better one method is than another on the same items; 95 % interval as in [`Estimate`]."""

    value: float
    interval: Interval


def estimate(by_seed: Mapping[int, Verdicts]) -> Estimate | None:
    """The accuracy over the seeds; `None` where there is no verdict at all.

    With one seed the interval is Wilson's, with several the bootstrap's over the items. Where every item has the same
    mean the bootstrap knows no spread, and Wilson's interval of as many items takes its place.
    """
    means = item_means(by_seed)
    if not means:
        return None
    values = list(means.values())
    value = sum(values) / len(values)
    spread = len(by_seed) > 1 and max(values) > min(values)
    interval = bootstrap(values) if spread else wilson(round(value * len(values)), len(values))
    accuracies = {}
    for seed, verdicts in by_seed.items():
        known = [verdict for verdict in verdicts.values() if verdict is not None]
        if known:
            accuracies[seed] = sum(known) / len(known)
    missing = sum(verdict is None for verdicts in by_seed.values() for verdict in verdicts.values())
    return Estimate(value, interval, accuracies, len(values), missing)


def compared(method: Mapping[int, Verdicts], other: Mapping[int, Verdicts]) -> Difference | None:
    """`method` less `other` over the items that both have a verdict on, paired; `None` where there are none."""
    ours, theirs = item_means(method), item_means(other)
    values = [ours[item] - theirs[item] for item in ours.keys() & theirs.keys()]
    if not values:
        return None
    return Difference(sum(values) / len(values), bootstrap(sorted(values)))


def item_means(by_seed: Mapping[int, Verdicts]) -> dict[int, float]:
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
