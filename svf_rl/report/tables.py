"""What a report says in tables and in the notes below its pictures."""

from collections.abc import Sequence

import numpy as np

from svf_rl.markdown import escape_markdown, markdown_table
from svf_rl.metrics.statistics import Estimate
from svf_rl.models.kinds import kind_of
from svf_rl.report.evaluation_folder import EvaluationFolder
from svf_rl.report.figures import choose_window
from svf_rl.report.groups import Group
from svf_rl.report.multipliers import Panel, shrink
from svf_rl.runs.run_folder import RunFolder, read_adapter_config

_NOT_OF_THE_RECIPE = {"output_dir", "run_name", "logging_dir"}


def tabulate_runs(runs: Sequence[RunFolder]) -> str:
    """A line a run."""
    headings = (
        "run", "task", "adapter", "trained values", "seed", "steps", "accuracy before", "accuracy after", "items"
    )  # fmt: skip
    rows = []
    for run in runs:
        tested, values = run.after or run.before, run.summary.trained_values
        if values is None and (folder := run.adapter()):
            config = read_adapter_config(folder)
            values = kind_of(config).count_values(folder, config)
        rows.append(
            [
                run.name,
                run.task or "unknown",
                run.recipe.get("adapter", "svf") if run.recipe else "unknown",
                "unknown" if values is None else f"{values:,}",
                "unknown" if run.summary.seed is None else run.summary.seed,
                run.steps if run.finished else f"{run.steps}, unfinished",
                _with_interval(run.before, "unknown"),
                _with_interval(run.after, "unknown") if run.finished else "unfinished",
                tested.n if tested else "",
            ]
        )
    return markdown_table(headings, rows)


def tabulate_groups(groups: Sequence[Group]) -> str:
    """The mean over the seeds, for recipes that ran with several; empty without one."""
    rows = []
    for group in groups:
        before = [run.before.value for run in group.runs if run.before]
        after = [run.after.value for run in group.runs if run.after]
        if len(group.runs) > 1 and before and after:
            mean = sum(after) / len(after)
            gain = mean - sum(before) / len(before)
            seeds = ", ".join(str(run.summary.seed) for run in group.runs)
            rows.append([group.label, seeds, f"{mean:.3f}", f"{min(after):.3f} to {max(after):.3f}", f"{gain:+.3f}"])
    return markdown_table(["recipe", "seeds", "mean accuracy after", "lowest to highest", "mean gain"], rows)


def tabulate_tasks(runs: Sequence[RunFolder]) -> str:
    """Accuracy on each task of a mixture; empty when no run had one."""
    rows = [
        [run.name, key.removeprefix("accuracy/"), f"{run.base[key]:.3f}", f"{run.final[key]:.3f}"]
        for run in runs
        for key in run.final
        if key.startswith("accuracy/") and key in run.base
    ]
    return markdown_table(["run", "part", "before", "after"], rows)


def tabulate_differences(runs: Sequence[RunFolder]) -> str:
    """Keys of the recipes, versions and commits in which the finished runs differ; empty when they do not."""
    finished = [run for run in runs if run.finished]
    known = [
        {
            **{key: value for key, value in run.recipe.items() if key not in _NOT_OF_THE_RECIPE},
            **{f"version of {name}": version for name, version in run.summary.packages.items()},
            "commit": run.summary.git_commit,
        }
        for run in finished
    ]
    keys = dict.fromkeys(key for one in known for key in one)
    rows = [
        [key, *("default" if key not in one else _plain(one[key]) for one in known)]
        for key in keys
        if len({_plain(one.get(key, "")) for one in known}) > 1
    ]
    return markdown_table(["", *(run.name for run in finished)], rows)


def tabulate_seconds(runs: Sequence[RunFolder]) -> str:
    """Seconds by phase of the finished runs; empty without one."""
    seconds = {run.name: run.summary.seconds for run in runs if run.finished}
    phases = list(dict.fromkeys(phase for by_phase in seconds.values() for phase in by_phase))
    rows = [[name, *(f"{found[p]:.1f}" if p in found else "" for p in phases)] for name, found in seconds.items()]
    return markdown_table(["run", *(phase.replace("_", " ") for phase in phases)], rows)


def list_warnings(runs: Sequence[RunFolder]) -> list[str]:
    """What a reader should know before trusting the numbers, a line each."""
    lines = []
    for run in runs:
        lines += [f"{run.name}: {warning}" for warning in run.summary.warnings]
        unscorable = run.mean("unscorable")
        if unscorable:
            lines.append(f"{run.name}: {100 * unscorable:.2g} % of the completions could not be scored")
        if not run.finished:
            lines.append(f"{run.name}: unfinished, after {run.steps} steps")
    return lines


def describe_smoothing(groups: Sequence[Group]) -> str:
    """What the lines of a picture over steps are, in words."""
    windows = {choose_window(len(run.updates), len(groups)) for group in groups for run in group.runs} - {1}
    notes = []
    if windows:
        spans = " or ".join(map(str, sorted(windows)))
        notes.append(f"Lines are moving means over {spans} logged steps; faint ones are single steps.")
    if any(len(group.runs) > 1 for group in groups):
        notes.append("A band goes from the lowest to the highest seed around their mean.")
    return " ".join(notes)


def describe_multipliers(run: RunFolder, panels: Sequence[Panel]) -> str:
    """What the picture of one run shows and what it leaves out, in words."""
    folder = run.adapter()
    source = f"From {folder.name}. " if folder is not None and folder != run.path else ""
    values = np.concatenate([panel.values[np.isfinite(panel.values)] for panel in panels])
    note = (
        f"{source}{values.size:,} values, mean {values.mean():.4f}, standard deviation {values.std():.4f}, from "
        f"{values.min():.3f} to {values.max():.3f}."
    )
    blocks: dict[tuple[int, int], list[str]] = {}
    for panel in panels:
        blocks.setdefault(shrink(panel.values)[1:], []).append(panel.kind)
    for (rows, columns), kinds in blocks.items():
        parts = [f"{columns} neighbouring indices"] * (columns > 1) + [f"{rows} neighbouring rows"] * (rows > 1)
        if parts:
            note += f" A point is the mean of {' by '.join(parts)} in {escape_markdown(', '.join(kinds))}."
    if any(len(set(panel.layers)) < len(panel.layers) for panel in panels):
        note += " The rows of a layer are its experts."
    if run.recipe.get("renormalize"):
        note += " `renormalize` scales the values of a matrix by one more factor, which is not in the picture."
    return note


def tabulate_evaluation(evaluation: EvaluationFolder) -> str:
    """A line for each model and task."""
    rows = []
    for result, _ in evaluation.graded:
        row = [result.task, result.label, _with_interval(result.accuracy, "none"), result.items]
        rows.append([*row, f"{result.tokens:.0f}", f"{100 * result.cut_off:.1f} %", result.not_scorable])
    return markdown_table(["task", "model", "accuracy", "items", "tokens", "cut off", "not scorable"], rows)


def _with_interval(estimate: Estimate | None, missing: str) -> str:
    """Such as `0.695 (0.654 to 0.734)`."""
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})" if estimate else missing


def _plain(value: object) -> str:
    return "none" if value is None else str(value)
