"""Accuracies over seeds with their intervals, from the verdicts on each item. Pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass

from svf_rl.metrics.statistics import Estimate, bootstrap, estimate_mean, estimate_share

Verdicts = Mapping[int, bool | None]
"""Item to verdict; `None` where the check failed by itself."""


@dataclass(frozen=True)
class Accuracy(Estimate):
    """
    The accuracy of one method: the mean over the `n` items (those with a verdict) of each item's mean over the seeds.

    The interval is for the choice of the items: what other items of the task would give with the same trained models.
    It does not cover the choice of the seeds; `by_seed` shows that.

    Args:
        by_seed (`dict[int, float]`): the accuracy of each seed.
        not_scorable (`int`): completions without a verdict, which take no part.
    """

    by_seed: dict[int, float]
    not_scorable: int


def estimate(by_seed: Mapping[int, Verdicts]) -> Accuracy | None:
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
    known = {seed: item_means({seed: verdicts}).values() for seed, verdicts in by_seed.items()}
    accuracies = {seed: sum(answers) / len(answers) for seed, answers in known.items() if answers}
    missing = sum(verdict is None for verdicts in by_seed.values() for verdict in verdicts.values())
    return Accuracy(**vars(found), by_seed=accuracies, not_scorable=missing)


def compared(method: Mapping[int, Verdicts], other: Mapping[int, Verdicts]) -> Estimate | None:
    """`method` less `other` over the items that both have a verdict on, paired; `None` where there are none."""
    ours, theirs = item_means(method), item_means(other)
    values = [ours[item] - theirs[item] for item in ours.keys() & theirs.keys()]
    if not values:
        return None
    return Estimate(sum(values) / len(values), *bootstrap(sorted(values)), len(values))


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
