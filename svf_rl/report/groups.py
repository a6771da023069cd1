"""Runs that differ in nothing but the seed, and the curve that they have in common. Pure functions."""

import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from svf_rl.runs.run_folder import RunFolder

# Keys in which runs of one recipe may differ: the seed, and what only decides where things are written.
_OF_ONE_RUN = {
    "seed", "data_seed", "output_dir", "run_name", "logging_dir", "report_to", "resume_from_checkpoint",
    "log_completions",
}  # fmt: skip

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Runs of one recipe with several seeds, drawn as one line; often a single run."""

    label: str
    runs: list[RunFolder]


@dataclass(frozen=True)
class Curve:
    """A metric over the steps: the mean over the runs of a group, the lowest and the highest; shapes `(n,)`."""

    steps: Values
    mean: Values
    low: Values
    high: Values


def group_by_recipe(runs: Sequence[RunFolder]) -> list[Group]:
    """
    Finished runs of one recipe and different seeds together, in the order of their first; each other run by itself.

    What an unfinished run's recipe was is not known, and its curve would cut the others' short.
    """
    groups: dict[str, list[RunFolder]] = {}
    for run in runs:
        recipe = {key: value for key, value in run.recipe.items() if key not in _OF_ONE_RUN}
        key = json.dumps(recipe, sort_keys=True, default=str)
        seeds = [other.summary.seed for other in groups.get(key, [])]
        if not run.finished or run.summary.seed in seeds:
            key = str(run.path.resolve())
        groups.setdefault(key, []).append(run)
    labels: list[str] = []
    for members in groups.values():
        label = _common_name([run.name for run in members])
        labels.append(label if label not in labels else f"{members[0].name}, {label}")
    return [Group(label, members) for label, members in zip(labels, groups.values(), strict=True)]


def find_curve(group: Group, key: str, kind: str = "updates", window: int = 1) -> Curve | None:
    """One metric of a group, at the steps (of `"updates"` or `"evaluations"`) at which all its runs logged it, each run
    smoothed by a moving mean over `window` points; `None` when there is no such step."""
    by_step = [
        {line.step: line.values[key] for line in getattr(run, kind) if math.isfinite(line.values.get(key, math.nan))}
        for run in group.runs
    ]
    steps = sorted(set(by_step[0]).intersection(*by_step[1:]))
    if not steps:
        return None
    values = np.array([smooth_curve(np.array([run[step] for step in steps]), window) for run in by_step])
    return Curve(np.array(steps, dtype=np.float64), values.mean(0), values.min(0), values.max(0))


def smooth_curve(values: Values, window: int) -> Values:
    """The mean over `window` points around each point, over fewer at the ends: shape `(n,)`, as `values`."""
    here = slice(window // 2, window // 2 + len(values))
    sums, counts = (np.convolve(part, np.ones(window))[here] for part in (values, np.ones(len(values))))
    means: Values = sums / counts
    return means


def _common_name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    prefix = re.sub(r"[\W_]*(seed)?[\W_]*\d*$", "", "".join(letters[0] for letters in alike))
    return f"{prefix} ({len(names)} seeds)" if len(prefix) >= 3 else f"{names[0]} ... {names[-1]} ({len(names)} seeds)"
