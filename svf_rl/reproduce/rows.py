"""One line of a table of accuracies, from the verdicts of its seeds. Pure functions."""

from collections.abc import Iterable, Mapping
from typing import Any

from svf_rl.evaluation.adapters import BASE
from svf_rl.metrics.statistics import as_json, estimate_over_seeds
from svf_rl.reproduce.estimates import by_sample, compared, estimate
from svf_rl.reproduce.raw import Answers


def make_row(method: str, by_seed: Mapping[int, Answers], base: Mapping[int, Answers]) -> dict[str, Any]:
    """One line of a table: `accuracy` is `None` where nothing came out."""
    found = estimate(by_sample(by_seed))
    if found is None:
        return {"method": method, "accuracy": None, "status": "failed"}
    seeds = {seed: one.value for seed, answers in by_seed.items() if (one := estimate(by_sample({seed: answers})))}
    row: dict[str, Any] = {
        "method": method,
        "accuracy": found.value,
        "interval": list(found.interval),
        "by_seed": seeds,
        "seeds": len(seeds),
        "items": found.n,
        "not_scorable": found.not_scorable,
    }
    if over_seeds := estimate_over_seeds(list(seeds.values())):
        row["interval_over_seeds"] = [max(0.0, over_seeds.low), min(1.0, over_seeds.high)]
    if method != BASE and (against := compared(by_sample(by_seed), by_sample(base))):
        row["against_base"] = as_json(against)
    return row


def name_variant(row: dict[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """The row with the `name` that the comparison gives its method, where that is a variant."""
    variant = raw["variants"].get(row["method"])
    return row if variant is None else {**row, "name": variant["name"]}


def known_mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are known; `None` where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
