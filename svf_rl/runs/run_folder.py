"""What a training run left in its folder, read without the libraries that made it."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.metrics.statistics import Estimate, estimate_share
from svf_rl.runs.summary import RunSummary
from svf_rl.storage.json_files import read_json, read_json_lines
from svf_rl.svf.saved_config import CONFIG, REMEDY, WEIGHTS, check_config

Metrics = dict[str, float]


@dataclass(frozen=True)
class Line:
    """The numbers logged together after `step` optimizer steps."""

    step: int
    values: Metrics


@dataclass(frozen=True)
class RunFolder:
    """
    A folder that `svf_rl/train.py` wrote, or is writing.

    Args:
        path (`Path`): the folder.
        name (`str`): what the run is called in the report.
        updates (`list[Line]`): one for each logged step.
        evaluations (`list[Line]`): on the validation items, during training.
        base (`Metrics`): the base model on the test items (`accuracy`, `items`, ...); empty when not there yet.
        final (`Metrics`): the trained model on the same items.
        summary ([`RunSummary`]): an empty one while the run is unfinished.
    """

    path: Path
    name: str
    updates: list[Line]
    evaluations: list[Line]
    base: Metrics
    final: Metrics
    summary: RunSummary

    @property
    def finished(self) -> bool:
        return self.summary.updates is not None

    @property
    def recipe(self) -> dict[str, Any]:
        """Empty while the run is unfinished."""
        return self.summary.recipe

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        last = self.updates[-1].step if self.updates else 0
        return last if self.summary.updates is None else self.summary.updates

    @property
    def task(self) -> str | None:
        """Such as `gsm8k`, or `quickstart:math`; `None` while the run is unfinished."""
        if not self.recipe:
            return None
        task = str(self.recipe.get("task", "columns"))
        return f"{task}:{self.recipe.get('skill', 'math')}" if task == "quickstart" else task

    @property
    def before(self) -> Estimate | None:
        return _accuracy(self.base)

    @property
    def after(self) -> Estimate | None:
        return _accuracy(self.final)

    @property
    def best_step(self) -> int | None:
        """The step whose checkpoint was kept as the best on the validation items."""
        return _step(self.summary.best_checkpoint or "")

    @property
    def rewards(self) -> list[str]:
        """Names of the reward functions; the first decides what is right."""
        names = (key.split("/") for line in self.updates[:1] for key in line.values)
        return ["/".join(parts[1:-1]) for parts in names if parts[0] == "rewards" and parts[-1] == "mean"]

    @property
    def correct_threshold(self) -> float:
        """The reward from which on a completion counts as right."""
        return float(self.recipe.get("correct_threshold", 0.5))

    def mean(self, key: str) -> float | None:
        """Over the steps that logged `key`; `None` when none did."""
        values = [line.values[key] for line in self.updates if math.isfinite(line.values.get(key, math.nan))]
        return sum(values) / len(values) if values else None

    def adapter(self) -> Path | None:
        """The folder of the trained adapter; of an unfinished run that of its last checkpoint."""
        by_step = {_step(path.name) or 0: path for path in self.path.glob("checkpoint-*")}
        candidates = [self.path] if self.finished else [by_step[step] for step in sorted(by_step, reverse=True)]
        return next((path for path in candidates if (path / WEIGHTS).is_file()), None)


def read_run(path: Path, name: str | None = None) -> RunFolder:
    """
    Read a run folder, of an unfinished run too.

    Raises:
        SVFError: there is no such folder, it is not of a run, nothing was logged yet, or a file is damaged.
    """
    file = path / "metrics.jsonl"
    if not os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises for a name that is too long)
        raise SVFError(f"{path} is not a folder: give the output_dir of a training run")
    if not file.is_file():
        raise SVFError(f"{path} is not a run folder: it has no metrics.jsonl")
    updates: list[Line] = []
    evaluations: list[Line] = []
    base: Metrics = {}
    final: Metrics = {}
    for line in read_metrics(path):
        prefixes = {key.split("_")[0] for key in line.values if key.endswith("_accuracy")}
        if "base" in prefixes:
            base = _without_prefix("base_", line.values)
        elif "test" in prefixes:
            final = _without_prefix("test_", line.values)
        elif "eval" in prefixes:
            evaluations = [*_before(line.step, evaluations), line]
        elif "loss" in line.values:  # and not the line with the totals of the run
            # a resumed run starts from a checkpoint: what was logged behind that is not of this run
            updates, evaluations = [*_before(line.step, updates), line], _before(line.step, evaluations)
    if not (updates or evaluations or base):
        raise SVFError(f"{file} holds no metrics yet: wait for the first step")
    summary = read_summary(path)
    if summary.updates is None and (path / "summary.json").is_file():
        raise SVFError(f"{path / 'summary.json'} is not the summary of a training run")
    return RunFolder(path, name or path.resolve().name, updates, evaluations, base, final, summary)


def read_summary(folder: Path) -> RunSummary:
    """`summary.json`; an empty one where the folder has none, or one of something else than a run.

    Raises:
        SVFError: the file is damaged.
    """
    path, remedy = folder / "summary.json", "restore it, or remove it"
    content = read_json(path, remedy, missing_ok=True)
    try:
        return RunSummary.from_dict(content) if isinstance(content.get("recipe"), dict) else RunSummary()
    except SVFError as error:
        raise SVFError(f"{path} is damaged ({error}): {remedy}") from error


def read_metrics(folder: Path) -> list[Line]:
    """The numbers in `metrics.jsonl`, none without the file, less a torn last line, which a run that was killed or is
    writing right now leaves. Raises `SVFError` for another line that is damaged."""
    return read_json_lines(folder / "metrics.jsonl", _read_line, "remove that line")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` as it stands, with values of the types that its method has. Raises `SVFError` where there
    is none, or it is damaged."""
    path = folder / CONFIG
    if not path.is_file():
        raise SVFError(f"no adapter in {folder}: it needs {CONFIG} and {WEIGHTS}")
    content = read_json(path, REMEDY, {"peft_type": str})
    check_config(content, folder)
    return content


def _read_line(content: Any) -> Line:
    step = int(content["step"])
    return Line(step, {key: float(v) for key, v in content.items() if type(v) in (int, float) and key != "step"})


def _accuracy(metrics: Metrics) -> Estimate | None:
    value, items = metrics.get("accuracy", math.nan), metrics.get("items", 0)
    return estimate_share(value, int(items)) if 0 <= value <= 1 and items >= 1 else None


def _without_prefix(prefix: str, values: Mapping[str, float]) -> Metrics:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _before(step: int, lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.step < step]


def _step(checkpoint: str) -> int | None:
    ending = checkpoint.removeprefix("checkpoint-")
    return int(ending) if ending.isdecimal() else None
