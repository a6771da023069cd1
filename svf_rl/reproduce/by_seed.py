"""Tests between the methods of a table, paired by seed. Pure functions."""

from collections.abc import Collection, Sequence
from typing import Any

from svf_rl.evaluation.adapters import BASE
from svf_rl.metrics.statistics import estimate_over_seeds, holm, paired_t
from svf_rl.reproduce.estimates import as_difference


def compare_by_seed(groups: Sequence[dict[str, Any]], reference: str | None, untested: Collection[str] = ()) -> None:
    """
    Adds to the rows of tables the difference of their values `by_seed` to those of the method `reference`, as
    `against_reference`: paired by seed from two seeds on, and from three on with the p-value, corrected together with
    all others of these tables, for as many tests as are planned: how many came out depends on the data.

    Args:
        untested (`Collection[str]`): methods that get no p-value here.
    """
    tested, planned = [], 0
    for group in groups:
        found = {row["method"]: row for row in group["rows"]}
        others: dict[int, float] = found.get(reference or "", {}).get("by_seed", {})
        for row in group["rows"]:
            if row["method"] in (BASE, reference):
                continue
            planned += row["method"] not in untested
            by_seed = row.get("by_seed", {})
            # accuracies are shares of items: rounding must not make equal differences into different ones
            differences = [round(value - others[seed], 9) for seed, value in by_seed.items() if seed in others]
            estimate = estimate_over_seeds(differences)
            if estimate is not None:
                row["against_reference"] = as_difference(estimate)
                # two seeds, or equal differences, say nothing of the spread
                if len(differences) > 2 and len(set(differences)) > 1 and row["method"] not in untested:
                    tested.append((row, paired_t(differences), len(differences)))
    corrected = holm([p for _, p, _ in tested] + [1.0] * (planned - len(tested)))
    for (row, p, seeds), p_holm in zip(tested, corrected, strict=False):
        row["against_reference"] |= {"p": p, "p_holm": p_holm, "seeds": seeds}
