"""`report.md`: the tables in words."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from svf_rl.evaluation.adapters import BASE
from svf_rl.markdown import code, markdown_table, render
from svf_rl.reproduce.methods import method_name
from svf_rl.reproduce.rows import Row, known_mean, row_name

_TESTED = ("fine_tuning", "adaptation", "ablations", "probes", "texts")


def render_document(results: Mapping[str, Any], figures: Collection[str], folders: Collection[str] = ()) -> str:
    """The report on what is in `results.json`, with those pictures (their names without `.png`); `folders` of cells are
    beside it."""
    groups = [group for part in _TESTED for group in results.get(part, ())]
    planned = {part: len(seeds) for part, seeds in results["seeds"].items()}
    rows = [row["against_reference"] for group in groups for row in group["rows"] if "against_reference" in row]
    tests = [row for row in rows if "p" in row]
    return render(
        "reproduce/report.md.jinja",
        results=results,
        figures=figures,
        folders=folders,
        planned=planned,
        seeds=sorted({seed for seeds in results["seeds"].values() for seed in seeds}),
        fewest_seeds=min((test["seeds"] for test in tests), default=None),
        tabulate_accuracies=partial(tabulate_accuracies, experts=results["experts"]),
        tabulate_passes=tabulate_passes,
        tabulate_timing=_tabulate_timing,
        tabulate_runs=_tabulate_runs,
        tabulate_text=partial(_tabulate_text, planned=planned.get("probes", 0)),
        tabulate_variants=_tabulate_variants,
        tabulate_changes=partial(_tabulate_changes, planned=planned.get("probes", 0)),
        method_name=method_name,
        signed=_signed,
        describe_probe=_describe_probe,
    )


def tabulate_accuracies(
    rows: Sequence[Row],
    more: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    experts: Sequence[str] = (),
    planned: int = 0,
) -> str:
    """A line a method: accuracy with interval, range of the seeds, difference to the base, seeds (and of how many
    `planned` ones, where some are missing) and items, and `more` columns of those in `_COLUMNS`. `names` are what
    methods are called, where it is not their usual name."""
    lines = [
        [(names or {}).get(row["method"]) or row_name(row, experts)]
        + [show({**row, "planned": planned}) for show in (*_ALWAYS.values(), *(_COLUMNS[heading] for heading in more))]
        for row in rows
    ]
    return markdown_table(["", *_ALWAYS, *more], lines, "---:")


def tabulate_passes(rows: Sequence[Row]) -> str:
    """A line a method: pass@k in per cent, as the mean over the seeds, with its interval over the items, for each k;
    below it, of several seeds, the interval over these."""
    ks = list(rows[0]["pass_at_k"])
    lines = []
    for row in rows:
        means = [_percent(known_mean(row["pass_at_k"][k].values())) for k in ks]
        intervals = [row["pass_at_k_interval"][k] for k in ks]
        shown = [f"{mean} ({_range(*one)})" if one else mean for mean, one in zip(means, intervals, strict=True)]
        lines.append([row_name(row), *shown])
        if row["method"] != BASE and any(row["pass_at_k_over_seeds"].values()):
            by_seed = [row["pass_at_k_over_seeds"][k] for k in ks]
            lines.append(["95 % over seeds", *(_range(*one) if one else "" for one in by_seed)])
    return markdown_table(["", *(f"pass@{k}" for k in ks)], lines, "---:")


def _tabulate_variants(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a variant: what it changes in the recipe."""
    lines = [[name, ", ".join(_as_keys(keys))] for name, keys in variants.items()]
    return markdown_table(["", "keys of the recipe"], lines)


def _tabulate_text(rows: Sequence[Row], tested: bool, planned: int) -> str:
    """A line a method: nats a token, and the differences to the base model and, if `tested`, to SVF."""
    lines = []
    for row in rows:
        seeds = _seeds({**row, "planned": planned})
        seeds += f" ({row['diverged']} more: not finite)" if row["diverged"] else ""
        values = list(row["by_seed"].values())
        lowest = f"{min(values):.3f} to {max(values):.3f}" if len(values) > 1 else ""
        interval = "{:.3f} to {:.3f}".format(*row["interval_over_seeds"]) if row["interval_over_seeds"] else ""
        against = _signed_nats(row.get("against_base"))
        lines.append([row_name(row), _number(row["loglikelihood"], 3), lowest, interval, against, seeds])
        if tested:
            lines[-1] += [_signed_nats(row.get("against_reference")), _p_value(row)]
    headings = ["", "log-likelihood of a token", "seeds: lowest to highest", "95 % over seeds", "against base", "seeds"]
    headings += ["against SVF, by seed", "p (Holm)"] if tested else []
    return markdown_table(headings, lines, "---:")


def _signed_nats(difference: Mapping[str, Any] | None) -> str:
    """A difference in nats, with its interval where the spread is known."""
    if not difference:
        return ""
    interval = difference["interval"]
    return f"{difference['value']:+.3f}" + (" ({:+.3f} to {:+.3f})".format(*interval) if interval else "")


def _tabulate_changes(rows: Sequence[Row], planned: int) -> str:
    """A line a method: how far the matrices moved, where, and how."""
    headings = ["", "seeds", "relative change %", "95 % over seeds", "first third of the layers", "middle", "last"]
    headings += ["stable rank", "effective rank", "along singular directions %", "entropy: first, last update"]
    lines = []
    for row in rows:
        moved = [_number(None if part is None else 100 * part, 2) for part in (row["relative"], *row["thirds"])]
        interval = row["relative_over_seeds"]
        spread = f"{100 * max(0.0, interval[0]):.2f} to {100 * interval[1]:.2f}" if interval else ""
        ranks = [_number(row[key]) for key in ("stable_rank", "effective_rank")]
        entropy = ", ".join(_number(value, 2) for value in row["entropy"] if value is not None)
        shown = [moved[0], spread, *moved[1:], *ranks, _percent(row["diagonal"]), entropy]
        lines.append([row_name(row), _seeds({**row, "planned": planned}), *shown])
    return markdown_table(headings, lines, "---:")


def _tabulate_runs(runs: Sequence[Row]) -> str:
    """A line a run, those that failed too."""
    lines = []
    for run in runs:
        seconds = (run.get("seconds") or {}).get("train")
        found = str(run["failed"]) if run.get("failed") else _percent(run["accuracy"])
        place = run["expert"], row_name(run), run["seed"]
        lines.append([*place, _count(run.get("trained_values")), run.get("updates", ""), _number(seconds, 0), found])
    headings = ["expert", "method", "seed", "values", "updates", "training (s)", "accuracy %"]
    return markdown_table(headings, lines, "---:")


def _tabulate_timing(rows: Sequence[Row]) -> str:
    headings = ["", "seeds", "first pass (s)", "second pass (s)", "first / second", "weight syncs"]
    lines = []
    for row in rows:
        first, second = row["first_pass_seconds"], row["second_pass_seconds"]
        numbers = [_number(value, 2) for value in (first, second, first / max(second, 1e-9))]
        lines.append([method_name(row["method"]), row["seeds"], *numbers, _number(row["syncs"], 0)])
    return markdown_table(headings, lines, "---:")


def _describe_probe(probe: Row) -> str:
    """How the answers of a probe were made."""
    many = f"{probe['samples']} answers to each item" if probe["samples"] > 1 else "one answer to each item"
    sampled = f"{many}, sampled at temperature {probe['temperature']:g}" if probe["temperature"] else "greedy answers"
    options = [" ".join(key.replace("`", "'").split()) for key in _as_keys(probe["options"])]
    return f"{sampled}, with {code(options)}" if options else sampled


def _as_keys(values: Mapping[str, Any]) -> list[str]:
    """As they stand in a recipe."""
    return [f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _range(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _over_seeds(row: Row) -> str:
    return _range(*row["interval_over_seeds"]) if row["method"] != BASE and row.get("interval_over_seeds") else ""


def _p_value(row: Row) -> str:
    p = row.get("against_reference", {}).get("p_holm")
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _signed(difference: Mapping[str, Any]) -> str:
    """A difference in points, with its interval where the spread is known."""
    interval = difference["interval"]
    shown = "" if interval is None else " ({:+.1f} to {:+.1f})".format(*(100 * end for end in interval))
    return f"{100 * difference['value']:+.1f}{shown}"


def _against_reference(row: Row) -> str:
    return _signed(row["against_reference"]) if row.get("against_reference") else ""


def _accuracy(row: Row) -> str:
    if row["accuracy"] is None:
        return str(row["status"])
    return f"{_percent(row['accuracy'])} ({_range(*row['interval'])})"


def _seed_range(row: Row) -> str:
    values = list((row.get("by_seed") or {}).values())
    if row["method"] == BASE or not values:
        return ""
    return _range(min(values), max(values)) if len(values) > 1 else _percent(values[0])


def _seeds(row: Row) -> str:
    """Of how many seeds a row is; the base model has none."""
    if row["method"] == BASE:
        return ""
    made = row.get("seeds", 0)
    return f"{made} of {row['planned']}" if made < row["planned"] else str(made)


_ALWAYS: dict[str, Callable[[Row], str]] = {
    "accuracy % (95 %)": _accuracy,
    "seeds: lowest to highest": _seed_range,
    "against base": lambda row: _signed(row["against_base"]) if row.get("against_base") else "",
    "seeds": _seeds,
    "items": lambda row: str(row.get("items", 0)),
}
_COLUMNS: dict[str, Callable[[Row], str]] = {
    "values": lambda row: _count(row.get("trained_values")),
    "95 % over seeds": _over_seeds,
    "against SVF, by seed": _against_reference,
    "against the best expert, by seed": _against_reference,
    "p (Holm)": _p_value,
    "steps": lambda row: str(row.get("updates", "")),
    "training (s)": lambda row: _number(row.get("training_seconds"), 0),
    "search (s)": lambda row: _number(row.get("search_seconds")),
    "sent to the right expert %": lambda row: _percent(row.get("dispatched_right")),
}
