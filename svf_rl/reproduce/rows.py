"""One line of a table of accuracies, from the verdicts of its seeds. Pure functions."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from svf_rl.evaluation.adapters import BASE
from svf_rl.reproduce.estimates import as_difference, by_sample, compared, estimate, share_over_seeds
from svf_rl.reproduce.methods import method_name
from svf_rl.reproduce.raw import Answers, Raw, base_label

Row = Mapping[str, Any]


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
    if interval := share_over_seeds(seeds.values()):
        row["interval_over_seeds"] = interval
    if method != BASE and (against := compared(by_sample(by_seed), by_sample(base))):
        row["against_base"] = as_difference(against)
    return row


def base_of(method: str, found: Mapping[str, Any]) -> Any:
    """What the base model of a method said; `None` where it was not asked."""
    return found.get(base_label(method), found.get(BASE))


def name_variant(row: dict[str, Any], raw: Raw) -> dict[str, Any]:
    """The row with the `name` that the comparison gives its method, where that is a variant."""
    variant = raw["variants"].get(row["method"])
    return row if variant is None else {**row, "name": variant["name"]}


def row_name(row: Row, experts: Collection[str] = ()) -> str:
    """What readers know its method by."""
    return str(row.get("name") or method_name(row["method"], experts))


def known(values: Iterable[float | None]) -> list[float]:
    """Those that are known."""
    return [value for value in values if value is not None]


def known_mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are known; `None` where none is."""
    found = known(values)
    return sum(found) / len(found) if found else None
