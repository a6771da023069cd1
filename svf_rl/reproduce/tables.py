"""Results as Markdown tables. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any

from svf_rl.evaluation.adapters import BASE

Row = Mapping[str, Any]


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def accuracy(row: Row) -> str:
    """In per cent, with its interval."""
    if row["accuracy"] is None:
        return str(row["status"])
    return f"{100 * row['accuracy']:.1f} ({_range(row['interval'])})"


def accuracies(rows: Sequence[Row], names: Sequence[str], more: Mapping[str, Sequence[str]] | None = None) -> str:
    """A line a method: accuracy with interval, range of the seeds, difference to the base, seeds and items."""
    extra = more or {}
    headings = ["", "accuracy % (95 %)", "seeds: lowest to highest", "against base", "seeds", "items", *extra]
    lines = []
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        columns = [values[place] for values in extra.values()]
        lines.append([name, accuracy(row), _seed_range(row), _against(row), _count(row, "seeds"), _count(row, "items"),
                      *columns])  # fmt: skip
    return markdown_table(headings, lines)


def number(value: float | None, digits: int = 1) -> str:
    """`value`, or nothing where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def signed(difference: Mapping[str, Any]) -> str:
    """A difference in points, with its interval."""
    low, high = difference["interval"]
    return f"{100 * difference['value']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _against(row: Row) -> str:
    return signed(row["against_base"]) if row.get("against_base") else ""


def _seed_range(row: Row) -> str:
    values = list((row.get("by_seed") or {}).values())
    if row["method"] == BASE or not values:
        return ""
    return _range((min(values), max(values))) if len(values) > 1 else f"{100 * values[0]:.1f}"


def _range(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def _count(row: Row, key: str) -> str:
    # the base model has no seed: it answers greedily
    return "" if row["method"] == BASE and key == "seeds" else str(row.get(key, 0))
