"""The pictures of a comparison, one function each; `None` where there is nothing to draw."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from svf_rl.evaluation.adapters import BASE
from svf_rl.report.style import GREY, PALETTE, add_legend, choose_look, make_figure, shorten_name
from svf_rl.reproduce.methods import LORA, MEAN, ORACLE, SVF, is_few_shot, method_name
from svf_rl.reproduce.rows import Row

_WHISKER = Line2D([], [], color="black", marker="|", markersize=7, linewidth=1.0)

# Inches: a bar, and room for the axis.
_BAR, _AXIS = 0.28, 0.75
TICKS = [0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "20", "40", "60", "80", "100"]


def draw_fine_tuning(groups: Sequence[Mapping[str, Any]]) -> Figure | None:
    """For each task the accuracy of every method, in groups of bars beside one another."""
    methods = list(dict.fromkeys(row["method"] for group in groups for row in group["rows"]))
    if not any(row["accuracy"] is not None for group in groups for row in group["rows"]):
        return None
    figure, (axes,) = make_figure(1, 3.0)
    width, colours = 0.8 / len(methods), {method: look["color"] for method, look in method_looks(methods).items()}
    for group_place, group in enumerate(groups):
        for row in group["rows"]:
            if row["accuracy"] is not None:
                x = group_place + (methods.index(row["method"]) - (len(methods) - 1) / 2) * width
                axes.bar(x, row["accuracy"], width * 0.9, color=colours[row["method"]])
                _interval_and_seeds(axes, x, row, vertical=True)
    axes.set_xticks(range(len(groups)), [shorten_name(group["expert"]) for group in groups])
    axes.grid(visible=False, axis="x")
    _show_accuracy(axes)
    names = [(Patch(color=colours[method]), method_name(method)) for method in methods]
    add_legend(figure, [*names, *_marks([row for group in groups for row in group["rows"]])])
    return figure


def draw_adaptation(tasks: Sequence[Mapping[str, Any]], experts: Sequence[str]) -> Figure | None:
    """For each unseen task the accuracy of every method, bars below one another, their names at the side."""
    drawn = [task for task in tasks if any(row["accuracy"] is not None for row in task["rows"])]
    if not drawn:
        return None
    figure, panels = _bar_panels(drawn)
    kinds: dict[str, str] = {}
    for axes, task in zip(panels, drawn, strict=True):
        rows = [row for row in task["rows"] if row["accuracy"] is not None]
        for place, row in enumerate(rows):
            kind, colour = _kind(row["method"], experts)
            kinds.setdefault(kind, colour)
            axes.barh(place, row["accuracy"], 0.7, color=colour)
            _interval_and_seeds(axes, place, row, vertical=False)
        _name_bars(axes, shorten_name(task["label"]), [method_name(row["method"], experts) for row in rows])
        axes.set_xlim(0, 1)
        axes.set_xticks(*TICKS)
    panels[-1].set_xlabel("accuracy (%)")
    entries = [(Patch(color=colour), kind) for kind, colour in kinds.items()]
    add_legend(figure, [*entries, *_marks([row for task in drawn for row in task["rows"]])])
    return figure


def draw_shots(tasks: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Accuracy over the number of labelled prompts, with the base model's as a line."""
    drawn = [task for task in tasks if sum(row["accuracy"] is not None for row in task["rows"]) > 1]
    if not drawn:
        return None
    figure, (axes,) = make_figure()
    entries: list[tuple[Any, str]] = []
    for place, task in enumerate(drawn):
        rows = [row for row in task["rows"] if row["accuracy"] is not None]
        xs, ys = [row["shots"] for row in rows], np.array([row["accuracy"] for row in rows])
        lows, highs = np.array([row["interval"] for row in rows]).T
        colour = PALETTE[place % len(PALETTE)]
        bars = axes.errorbar(xs, ys, yerr=[ys - lows, highs - ys], marker="o", capsize=3, color=colour)
        for row in rows:
            seeds = list(row["by_seed"].values())
            axes.plot([row["shots"]] * len(seeds), seeds, ".", color=colour, alpha=0.6, markersize=5)
        entries.append((bars, task["label"]))
        if task["base"]["accuracy"] is not None:
            line = axes.axhline(task["base"]["accuracy"], color=colour, linestyle="dotted", linewidth=1.2)
            entries.append((line, f"{task['label']}, base model"))
    axes.set_xticks(sorted({row["shots"] for task in drawn for row in task["rows"]}))
    axes.set_xlabel("labelled prompts")
    _show_accuracy(axes)
    seed = Line2D([], [], color=GREY, marker=".", markersize=5, linestyle="none", alpha=0.6)
    add_legend(figure, [*entries, (_WHISKER, "95 % interval"), (seed, "a seed")])
    return figure


def draw_timing(tasks: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Seconds of the first pass (classes, or the search) and of the second (answers), stacked."""
    drawn = [task for task in tasks if task["rows"]]
    if not drawn:
        return None
    figure, panels = _bar_panels(drawn)
    for axes, task in zip(panels, drawn, strict=True):
        first, second = ([row[key] for row in task["rows"]] for key in ("first_pass_seconds", "second_pass_seconds"))
        axes.barh(range(len(first)), first, 0.7, color=PALETTE[0])
        axes.barh(range(len(first)), second, 0.7, left=first, color=PALETTE[1])
        title = f"{shorten_name(task['label'])}, {task['items']} items"
        _name_bars(axes, title, [method_name(row["method"]) for row in task["rows"]])
    panels[-1].set_xlabel("seconds")
    add_legend(figure, [(Patch(color=PALETTE[i]), name) for i, name in enumerate(["first pass", "second pass"])])
    return figure


def _bar_panels(tasks: Sequence[Mapping[str, Any]]) -> tuple[Figure, list[Axes]]:
    return make_figure(len(tasks), _BAR * max(len(task["rows"]) for task in tasks) + _AXIS)


def _name_bars(axes: Axes, title: str, names: Sequence[str]) -> None:
    """Names at the side of horizontal bars, the first on top."""
    axes.set_yticks(range(len(names)), [shorten_name(name) for name in names])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_title(title, loc="left", fontsize=9.5)


def _interval_and_seeds(axes: Axes, at: float, row: Row, vertical: bool) -> None:
    """On the bar at that place: its interval, and a dot for each seed's accuracy where there are several."""
    value, (low, high), seeds = row["accuracy"], row["interval"], list(row["by_seed"].values())
    errors, places = [[value - low], [high - value]], [at] * len(seeds)
    style: dict[str, Any] = {"color": "black", "capsize": 2.5, "linewidth": 1.0}
    if vertical:
        axes.errorbar(at, value, yerr=errors, **style)
    else:
        axes.errorbar(value, at, xerr=errors, **style)
    if len(seeds) > 1:
        xs, ys = (places, seeds) if vertical else (seeds, places)
        axes.plot(xs, ys, ".", color="white", markeredgecolor="black", markeredgewidth=0.5, markersize=5, zorder=4)


def _show_accuracy(axes: Axes) -> None:
    axes.set_ylim(0, 1.03)
    axes.set_yticks(*TICKS)
    axes.set_ylabel("accuracy (%)")


def method_looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and dashes by method; those of the base model, SVF and LoRA are the same in every picture."""
    looks: dict[str, dict[str, Any]] = {BASE: {"color": GREY}, SVF: choose_look(0), LORA: choose_look(1)}
    others = [method for method in methods if method not in looks]
    return looks | {method: choose_look(2 + place) for place, method in enumerate(others)}


def _marks(rows: Sequence[Row]) -> list[tuple[Any, str]]:
    """What [`_interval_and_seeds`] draws on bars."""
    dot = Line2D([], [], color="white", marker=".", markeredgecolor="black", markeredgewidth=0.5, linestyle="none")
    return [
        (_WHISKER, "95 % interval"),
        *([(dot, "a seed")] if any(len(row.get("by_seed", ())) > 1 for row in rows) else ()),
    ]


def _kind(method: str, experts: Sequence[str]) -> tuple[str, str]:
    """What a method is, and its colour: grey for what others are measured by, then experts, mixtures and dispatch."""
    if method in (BASE, ORACLE):
        return "reference", GREY
    if method in experts:
        return "one expert", PALETTE[5]
    if method == MEAN or is_few_shot(method):
        return "experts mixed", PALETTE[0]
    return "dispatch", PALETTE[1]
