"""The pictures of a report, one function each; `None` where no run logged what a picture shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from svf_rl.report.groups import Group, find_curve
from svf_rl.report.multipliers import Panel, shrink
from svf_rl.report.style import DIVERGING, GREY, PALETTE, add_legend, choose_look, make_figure, shorten_name
from svf_rl.runs.run_folder import RunFolder

PHASES = {"rollout": "rollout", "reward": "reward", "sync": "weight sync", "update": "gradient and optimizer"}

# More points than this are drawn faintly, under their moving mean; of many lines, the mean alone and sooner.
_FEW_POINTS, _FEW_POINTS_OF_MANY_LINES = 60, 10
_FEW_LINES = 4

_RING: dict[str, Any] = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "linestyle": "none"}
_BASE: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.0}

Entries = list[tuple[Artist, str]]


def draw_over_steps(groups: Sequence[Group], key: str, label: str) -> Figure | None:
    """One metric, the axis of which has that label."""
    if not any(find_curve(group, key) for group in groups):
        return None
    figure, (axes,) = make_figure()
    entries = _draw(axes, groups, key, label)
    axes.set_xlabel("step")
    add_legend(figure, entries)
    return figure


def draw_lengths(groups: Sequence[Group]) -> Figure | None:
    """Above the mean length of the completions, below the share that the limit cut off."""
    if not any(find_curve(group, "completions/mean_length") for group in groups):
        return None
    cut_off = [curve for group in groups if (curve := find_curve(group, "completions/clipped_ratio")) is not None]
    figure, (above, *others) = make_figure(1 + any(curve.high.any() for curve in cut_off), 2.2)
    entries = _draw(above, groups, "completions/mean_length", "tokens a completion")
    if not others:  # nothing was: the panel would be empty
        above.set_xlabel("step" + " (no completion was cut off at the limit)" * bool(cut_off))
        add_legend(figure, entries)
        return figure
    (below,) = others
    _draw(below, groups, "completions/clipped_ratio", "cut off at the limit")
    below.set_xlabel("step")
    below.yaxis.set_major_formatter(PercentFormatter(1.0))
    low, high = below.get_ylim()
    below.set_ylim(max(low, -0.002), min(max(high, 0.05), 1.02))
    above.sharex(below)
    add_legend(figure, entries)
    return figure


def draw_accuracy(groups: Sequence[Group]) -> Figure | None:
    """Accuracy on the validation items, from the base model's at step 0, and rings at the best checkpoints. Runs
    without step 0 have the base model's accuracy on the test items as a line."""
    if not any(find_curve(group, "eval_accuracy", "evaluations") for group in groups):
        return None
    figure, (axes,) = make_figure()
    entries = _draw(axes, groups, "eval_accuracy", "validation accuracy", "evaluations", marker="o")
    entries.append((Line2D([], [], color=GREY, marker="o", markersize=4, linestyle="none"), "an evaluation"))
    ringed = False
    for place, group in enumerate(groups):
        best = [
            (line.step, line.values["eval_accuracy"])
            for run in group.runs
            for line in run.evaluations
            if line.step == run.best_step and "eval_accuracy" in line.values
        ]
        if best:
            axes.plot(*zip(*best, strict=True), color=choose_look(place)["color"], clip_on=False, **_RING)
            ringed = True
    if ringed:
        entries.append((Line2D([], [], color=GREY, **_RING), "best checkpoint"))
    entries += _base_lines(axes, [group for group in groups if not _starts_at_0(group)], groups)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))
    axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    axes.set_xlabel("step")
    add_legend(figure, entries, alone=True)
    return figure


def draw_timing(runs: Sequence[RunFolder]) -> Figure | None:
    """Seconds of a mean step by what they went into, a bar a run, the first run on top."""
    timed = [run for run in runs if any(run.mean(f"time/{phase}") is not None for phase in PHASES)]
    if not timed:
        return None
    figure, (axes,) = make_figure(1, 0.75 + 0.3 * len(timed))
    places = np.arange(len(timed))
    ends = np.zeros(len(timed))
    entries: Entries = []
    for color, (phase, name) in zip(PALETTE, PHASES.items(), strict=False):
        seconds = np.array([run.mean(f"time/{phase}") or 0.0 for run in timed])
        axes.barh(places, seconds, left=ends, color=color, height=0.65)
        ends += seconds
        entries.append((Patch(color=color), name))
    for place, end in zip(places, ends, strict=True):
        axes.annotate(f"{end:.3g} s", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(places, [shorten_name(run.name) for run in timed])
    axes.set_ylim(len(timed) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max(ends.max(), 1e-9))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds a step (mean)")
    add_legend(figure, entries, alone=True)
    return figure


def find_color_range(panels: Sequence[Panel]) -> float:
    """How far from 1 the colours reach: 99.5 % of what the panels show lies within."""
    shown = np.concatenate([shrink(panel.values)[0].ravel() for panel in panels])
    return max(float(np.nanquantile(np.abs(shown - 1), 0.995)), 1e-3)


def draw_multipliers(panels: Sequence[Panel], half_range: float) -> Figure:
    """The multipliers m of the singular values, a panel a kind of module: white is 1, the base model."""
    most_rows = max(len(panel.layers) for panel in panels)
    height = min(3.0, max(1.1, 0.55 + 0.035 * most_rows))
    figure, axes = make_figure(len(panels), height)
    beyond = False
    for ax, panel in zip(axes, panels, strict=True):
        grid, rows, columns = shrink(panel.values)
        beyond |= bool((np.abs(grid - 1) > half_range).any())
        ax.grid(visible=False)
        ax.set_facecolor("#CCCCCC")  # where a matrix has fewer singular values
        image = ax.imshow(
            grid,
            aspect="auto",
            interpolation="nearest",
            cmap=DIVERGING,
            norm=CenteredNorm(1.0, half_range),
            extent=(-0.5, grid.shape[1] * columns - 0.5, grid.shape[0] * rows - 0.5, -0.5),
        )
        ax.set_xlim(-0.5, panel.values.shape[1] - 0.5)
        ax.set_ylim(panel.values.shape[0] - 0.5, -0.5)
        ax.set_title(shorten_name(panel.kind), loc="left", fontsize=9)
        ax.set_ylabel("layer")
        first_rows = {layer: row for row, layer in reversed(list(enumerate(panel.layers)))}
        shown = sorted(first_rows)[:: max(1, -(-len(first_rows) // 8))]
        ax.set_yticks([first_rows[layer] for layer in shown], [str(layer) for layer in shown])
    axes[-1].set_xlabel("index of the singular value, largest first")
    bar = figure.colorbar(
        image, ax=axes, extend="both" if beyond else "neither", extendfrac=0.03, aspect=12 * len(panels), pad=0.02
    )
    bar.set_label("multiplier m")
    bar.ax.grid(visible=False)
    return figure


def choose_window(points: int, lines: int) -> int:
    """Over how many points a curve of so many is averaged, in a picture of so many lines: 1 is not at all."""
    few = _FEW_POINTS if lines <= _FEW_LINES else _FEW_POINTS_OF_MANY_LINES
    return 1 if points <= few else max(5, points // 20)


def _starts_at_0(group: Group) -> bool:
    return all(line.step == 0 for run in group.runs for line in run.evaluations[:1])


def _draw(
    axes: Axes, groups: Sequence[Group], key: str, label: str, kind: str = "updates", marker: str | None = None
) -> Entries:
    """One line a group, smoothed where it has many points, with a band from the lowest to the highest of its runs. The
    place of a group decides its colour, in every picture the same."""
    entries: Entries = []
    faint = band = False
    for place, group in enumerate(groups):
        raw = find_curve(group, key, kind)
        if raw is None:
            continue
        color = choose_look(place)["color"]
        window = 1 if kind == "evaluations" else choose_window(len(raw.steps), len(groups))
        if window > 1 and len(groups) <= _FEW_LINES and len(group.runs) == 1:
            axes.plot(raw.steps, raw.mean, color=color, alpha=0.25, linewidth=0.8)
            faint = True
        smooth = raw if window == 1 else find_curve(group, key, kind, window)
        assert smooth is not None
        shown = marker or ("o" if len(smooth.steps) == 1 else None)  # a line of one point is nothing to see
        (line,) = axes.plot(smooth.steps, smooth.mean, marker=shown, markersize=4, **choose_look(place))
        entries.append((line, group.label))
        if len(group.runs) > 1:
            axes.fill_between(smooth.steps, smooth.low, smooth.high, color=color, alpha=0.18, linewidth=0)
            band = True
    if faint:
        entries.append((Line2D([], [], color=GREY, alpha=0.4, linewidth=0.8), "each step (bold: mean)"))
    if band:
        entries.append((Patch(color=GREY, alpha=0.25, linewidth=0), "lowest to highest seed"))
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    return entries


def _base_lines(axes: Axes, shown: Sequence[Group], groups: Sequence[Group]) -> Entries:
    """The base model's accuracy for those of the groups that are shown: one grey line where all runs agree on it, else
    one in the colour of each group."""
    values: Mapping[int, float] = {
        place: float(np.mean([run.before.value for run in group.runs if run.before is not None]))
        for place, group in enumerate(groups)
        if group in shown and any(run.before is not None for run in group.runs)
    }
    distinct = {round(value, 6) for value in values.values()}
    if not distinct:
        return []
    if len(distinct) == 1:
        axes.axhline(distinct.pop(), color=GREY, **_BASE)
    else:
        for place, value in values.items():
            axes.axhline(value, color=choose_look(place)["color"], **_BASE)
    return [(Line2D([], [], color=GREY, **_BASE), "base model (test items)")]
