"""The pictures of how methods train and what they reach, one function each; `None` where there is nothing to draw."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from svf_rl.evaluation.adapters import BASE
from svf_rl.report.style import GREY, PALETTE, WIDTH, add_legend, make_figure, shorten_name
from svf_rl.reproduce.figures import TICKS, method_looks
from svf_rl.reproduce.methods import SVF, method_name
from svf_rl.reproduce.rows import Row, known, row_name


def draw_curves(groups: Sequence[Mapping[str, Any]]) -> Figure | None:
    """For each task the reward of sampled answers over updates, tokens and seconds: the mean of the seeds, and where
    their lowest and highest are."""
    drawn = [group for group in groups if any("reward" in c for row in group["rows"] for c in _curves(row))]
    if not drawn:
        return None
    figure = Figure(figsize=(WIDTH, 2.3 * len(drawn)), layout="constrained")
    methods = list(dict.fromkeys(row["method"] for group in drawn for row in group["rows"] if _curves(row)))
    looks = method_looks(methods)
    for group, line in zip(drawn, figure.subplots(len(drawn), 3, squeeze=False, sharey=True), strict=True):
        for axes, (name, unit) in zip(line, _ALONG.items(), strict=True):
            for row in group["rows"]:
                if _curves(row):
                    _draw_curve(axes, _curves(row), unit, looks[row["method"]])
            axes.set_xlabel(name)
            axes.set_xlim(left=0)
        line[0].set_ylim(0, 1.03)
        line[0].set_yticks(*TICKS)
        line[0].set_ylabel("sampled reward (%)")
        line[0].set_title(f"{group['expert']}: {group['task']}", loc="left", fontsize=9.5)
    add_legend(figure, [(Line2D([], [], **looks[name]), method_name(name)) for name in methods], alone=True)
    return figure


def draw_methods(groups: Sequence[Mapping[str, Any]]) -> Figure | None:
    """For each task all methods below one another, those with most trained values first: each seed's accuracy, their
    mean and its interval over seeds, and a line for the base model."""
    drawn = [group for group in groups if any(_is_shown(row) for row in group["rows"])]
    if not drawn:
        return None
    rows_of = [
        sorted((row for row in group["rows"] if _is_shown(row)), key=lambda row: -(row.get("trained_values") or 0))
        for group in drawn
    ]
    figure, panels = make_figure(len(drawn), 0.24 * max(map(len, rows_of)) + 1.0)
    for axes, group, rows in zip(panels, drawn, rows_of, strict=True):
        for place, row in enumerate(rows):
            colour = PALETTE[0] if row["method"] == SVF else GREY
            seeds = list(row["by_seed"].values())
            axes.plot(seeds, [place] * len(seeds), ".", color=colour, alpha=0.6, markersize=6)
            axes.plot(row["accuracy"], place, "D", color=colour, markersize=5)
            if "interval_over_seeds" in row:
                axes.plot(row["interval_over_seeds"], [place, place], color=colour, linewidth=1.0)
        base = next((row for row in group["rows"] if row["method"] == BASE), None)
        if base is not None and base["accuracy"] is not None:
            axes.axvline(base["accuracy"], color="black", linestyle="dotted", linewidth=1.2)
        axes.set_yticks(range(len(rows)), [_with_values(row) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
        axes.set_xlim(0, 1)
        axes.set_xticks(*TICKS)
        axes.set_title(f"{group['expert']}: {group['task']}", loc="left", fontsize=9.5)
    panels[-1].set_xlabel("accuracy (%)")
    entries: list[tuple[Any, str]] = [
        (Line2D([], [], color=GREY, marker=".", linestyle="none", alpha=0.6), "a seed"),
        (Line2D([], [], color=GREY, marker="D", linewidth=1.0, markersize=5), "mean, 95 % over seeds"),
        (Line2D([], [], color="black", linestyle="dotted", linewidth=1.2), "base model"),
    ]
    add_legend(figure, entries)
    return figure


def draw_passes(probes: Sequence[Mapping[str, Any]]) -> Figure | None:
    """pass@k over k, a panel for each table of a probe with several samples: the mean of the seeds, and where their
    lowest and highest are."""
    drawn = [probe for probe in probes if any(row.get("pass_at_k") for row in probe["rows"])]
    if not drawn:
        return None
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    shown = [row for probe in drawn for row in probe["rows"] if row.get("pass_at_k")]
    called = {row["method"]: row_name(row) for row in shown}
    looks = method_looks(called)
    names = {probe["name"] for probe in drawn}
    panels = figure.subplots(1, len(drawn), squeeze=False, sharey=True)[0]
    for axes, probe in zip(panels, drawn, strict=True):
        for row in probe["rows"]:
            found = {int(k): known(by_seed.values()) for k, by_seed in (row.get("pass_at_k") or {}).items()}
            found = {k: values for k, values in found.items() if values}
            if found:
                _draw_band(axes, list(found), list(found.values()), looks[row["method"]])
        axes.set_xscale("log", base=2)
        ks = sorted({int(k) for row in probe["rows"] for k in row.get("pass_at_k") or ()})
        axes.set_xticks(ks, [str(k) for k in ks])
        title = probe["expert"] if len(names) == 1 else f"{probe['name']}: {probe['expert']}"
        axes.set_title(shorten_name(title), loc="left", fontsize=9.5)
        axes.set_xlabel("k")
    panels[0].set_ylim(0, 1.03)
    panels[0].set_yticks(*TICKS)
    panels[0].set_ylabel("pass@k (%)")
    add_legend(figure, [(Line2D([], [], **looks[method]), name) for method, name in called.items()])
    return figure


_ALONG = {"updates": ("steps", 1.0), "thousands of tokens": ("tokens", 1e-3), "seconds": ("seconds", 1.0)}


def _curves(row: Row) -> list[Mapping[str, Any]]:
    return list(row.get("curves", {}).values())


def _draw_curve(axes: Axes, curves: Sequence[Row], unit: tuple[str, float], look: Mapping[str, Any]) -> None:
    """Against the mean over the seeds of what they had used by then."""
    key, scale = unit
    drawn = [curve for curve in curves if "reward" in curve and None not in curve.get(key, [None])]
    length = min((len(curve["reward"]) for curve in drawn), default=0)
    along = [scale * sum(curve[key][line] for curve in drawn) / len(drawn) for line in range(length)]
    values = [known(curve["reward"][line] for curve in drawn) for line in range(length)]
    _draw_band(axes, along, values, look)


def _draw_band(axes: Axes, along: Any, values: Sequence[Sequence[float]], look: Mapping[str, Any]) -> None:
    """A line through the means, and a band from the lowest to the highest; places without values are left out."""
    there = [(place, one) for place, one in zip(along, values, strict=True) if one]
    places = [place for place, _ in there]
    axes.plot(places, [sum(one) / len(one) for _, one in there], **look)
    lowest, highest = [min(one) for _, one in there], [max(one) for _, one in there]
    axes.fill_between(places, lowest, highest, color=look["color"], alpha=0.15)


def _is_shown(row: Row) -> bool:
    return row["method"] != BASE and row["accuracy"] is not None


def _with_values(row: Row) -> str:
    name = shorten_name(row_name(row))
    return f"{name}, {row['trained_values']:,} values" if row.get("trained_values") else name
