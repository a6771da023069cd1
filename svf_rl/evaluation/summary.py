"""What the records of a task say in numbers."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from svf_rl.evaluation.records import Answers, Record
from svf_rl.metrics.statistics import Estimate, as_json, estimate_mean, estimate_share, mcnemar, pass_at_k


@dataclass(frozen=True)
class Comparison:
    """
    An adapter against the base on the same items: McNemar's exact test, two-sided.

    `gained` counts the items on which the adapter does better, `lost` those on which it does worse: right against
    wrong, and with several samples an item, the larger share of right ones (a sign test, for one sample McNemar's).
    """

    items: int
    gained: int
    lost: int
    p_value: float


@dataclass(frozen=True)
class Result:
    """One model on one task."""

    label: str  # `base`, or the adapter
    task: str
    metric: str  # "accuracy" or "pass_at_k", the task's own
    # Mean over the items of the share of right completions, which is pass@1; Wilson's interval with one sample an item,
    # with several a bootstrap over the items. `None` where nothing could be scored.
    accuracy: Estimate | None
    pass_at_k: dict[int, Estimate | None]  # by k, over the items with at least k scorable completions
    items: int  # that were asked
    completions: int
    not_scorable: int  # completions without a verdict, which take no part in the figures above
    tokens: float  # of a completion, on average
    cut_off: float  # share of the completions that ended at the limit
    seconds: float  # see `Answers`
    reused: int
    against_base: Comparison | None = None  # for adapters

    def to_dict(self) -> dict[str, Any]:
        """For the summary file."""
        figures = {k: as_json(found) for k, found in self.pass_at_k.items()}
        return {**asdict(self), "accuracy": as_json(self.accuracy), "pass_at_k": figures}


def summarize(
    label: str, task: str, metric: str, answers: Answers, ks: Sequence[int] = (1,), base: Answers | None = None
) -> Result:
    """The figures of one model on one task; `base` holds the base model's answers to the same items."""
    records = answers.records
    counts = _counts(records)
    scorable = {index: (n, c) for index, (n, c) in counts.items() if n > 0}
    shares = [c / n for n, c in scorable.values()]
    several = len(records) > len(counts)
    return Result(
        label=label,
        task=task,
        metric=metric,
        accuracy=_estimate(shares, several),
        pass_at_k={k: _estimate([pass_at_k(n, c, k) for n, c in scorable.values() if n >= k], several) for k in ks},
        items=len(counts),
        completions=len(records),
        not_scorable=sum(record.correct is None for record in records),
        tokens=sum(record.tokens for record in records) / len(records),
        cut_off=sum(not record.finished for record in records) / len(records),
        seconds=round(answers.seconds, 2),
        reused=answers.reused,
        against_base=None if base is None else compare(base.records, records),
    )


def compare(base: Sequence[Record], other: Sequence[Record]) -> Comparison:
    """`other` against `base`, over the items that both have a verdict on."""
    before, after = _counts(base), _counts(other)
    gained = lost = items = 0
    for index in before.keys() & after.keys():
        (n_before, c_before), (n_after, c_after) = before[index], after[index]
        if n_before and n_after:
            items += 1
            gained += c_after * n_before > c_before * n_after
            lost += c_after * n_before < c_before * n_after
    return Comparison(items, gained, lost, mcnemar(gained, lost))


def _counts(records: Sequence[Record]) -> dict[int, tuple[int, int]]:
    """Of each item: scorable completions, and right ones."""
    verdicts: dict[int, list[bool | None]] = defaultdict(list)
    for record in records:
        verdicts[record.index].append(record.correct)
    return {index: (len(found) - found.count(None), found.count(True)) for index, found in verdicts.items()}


def _estimate(shares: Sequence[float], several: bool) -> Estimate | None:
    if not shares:
        return None
    spread = several and max(shares) > min(shares)  # without one the bootstrap knows none either
    return estimate_mean(shares) if spread else estimate_share(sum(shares) / len(shares), len(shares))
