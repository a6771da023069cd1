"""What a training run left in its folder, read without the libraries that made it."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.metrics.statistics import Interval, wilson

Metrics = dict[str, float]


@dataclass(frozen=True)
class Line:
    """The numbers logged together after `step` updates."""

    step: int
    values: Metrics


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers among `items`."""

    value: float
    items: int

    @property
    def interval(self) -> Interval:
        """Wilson's, 95 %."""
        return wilson(round(self.value * self.items), self.items)


@dataclass(frozen=True)
class RunFolder:
    """
    A folder that `svf_rl/train.py` wrote, or is writing.

    Args:
        path (`Path`): the folder.
        name (`str`): what the run is called in the report.
        updates (`list[Line]`): one for each logged update.
        evaluations (`list[Line]`): on the validation items, during training.
        base (`Metrics`): the base model on the test items (`accuracy`, `items`, ...); empty when not there yet.
        final (`Metrics`): the trained model on the same items.
        recipe (`dict`): the recipe's keys; empty while the run is unfinished.
        summary (`dict`): `summary.json`; empty while the run is unfinished.
    """

    path: Path
    name: str
    updates: list[Line]
    evaluations: list[Line]
    base: Metrics
    final: Metrics
    recipe: dict[str, Any]
    summary: dict[str, Any]

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    @property
    def steps(self) -> int:
        """Updates so far."""
        return int(self.summary.get("updates", self.updates[-1].step if self.updates else 0))

    @property
    def task(self) -> str | None:
        """Such as `gsm8k`, or `quickstart:math`; `None` while the run is unfinished."""
        if not self.recipe:
            return None
        task = str(self.recipe.get("task", "columns"))
        return f"{task}:{self.recipe.get('skill', 'math')}" if task == "quickstart" else task

    @property
    def before(self) -> Accuracy | None:
        return _accuracy(self.base)

    @property
    def after(self) -> Accuracy | None:
        return _accuracy(self.final)

    @property
    def best_step(self) -> int | None:
        """The update whose checkpoint was kept as the best on the validation items."""
        checkpoint = str(self.summary.get("best_checkpoint") or "")
        return int(checkpoint.removeprefix("checkpoint-")) if checkpoint[11:].isdecimal() else None

    @property
    def rewards(self) -> list[str]:
        """Names of the reward functions; the first decides what is right."""
        names = (key.split("/") for line in self.updates[:1] for key in line.values)
        return ["/".join(parts[1:-1]) for parts in names if parts[0] == "rewards" and parts[-1] == "mean"]

    def mean(self, key: str) -> float | None:
        """Over the updates that logged `key`; `None` when none did."""
        values = [line.values[key] for line in self.updates if math.isfinite(line.values.get(key, math.nan))]
        return sum(values) / len(values) if values else None

    def adapter(self) -> Path | None:
        """The folder of the trained adapter; of an unfinished run that of its last checkpoint."""
        checkpoints = [(_number(path), path) for path in self.path.glob("checkpoint-*")]
        last = [path for _, path in sorted(checkpoints, reverse=True)]
        candidates = [self.path] if self.finished else last
        return next((path for path in candidates if (path / "adapter_model.safetensors").is_file()), None)


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
    for line in _read_lines(file):
        prefixes = {key.split("_")[0] for key in line.values if key.endswith("_accuracy")}
        if "base" in prefixes:
            base = _without_prefix("base_", line.values)
        elif "test" in prefixes:
            final = _without_prefix("test_", line.values)
        elif "eval" in prefixes:
            evaluations = [*_before(line.step, evaluations), line]
        elif "loss" in line.values:  # and not the line with the totals of the run
            # a resumed run goes on from a checkpoint: what was logged behind that is not of this run
            updates, evaluations = [*_before(line.step, updates), line], _before(line.step, evaluations)
    if not (updates or evaluations or base):
        raise SVFError(f"{file} holds no metrics yet: wait for the first update")
    summary = _read_summary(path / "summary.json")
    return RunFolder(
        path, name or path.resolve().name, updates, evaluations, base, final, summary.get("recipe", {}), summary
    )


def _read_lines(file: Path) -> list[Line]:
    """The lines of the file, less a torn last one, which a run that was killed or is writing right now leaves."""
    lines = []
    try:
        texts = file.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise SVFError(f"cannot read {file}: {error.strerror}") from error
    for number, text in enumerate(texts, start=1):
        try:
            content = json.loads(text)
            step = content["step"]
            values = {key: float(value) for key, value in content.items() if _is_number(value) and key != "step"}
            lines.append(Line(int(step), values))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            if number < len(texts) or text.endswith(b"\n"):
                raise SVFError(f"{file}, line {number} is damaged: remove that line") from error
    return lines


def _read_summary(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SVFError(f"{file} is damaged: remove it, and the run counts as unfinished") from error
    shapes = {"recipe": dict, "seconds": dict, "packages": dict, "warnings": list, "updates": int}
    if not isinstance(summary, dict) or not all(isinstance(summary.get(key), kind) for key, kind in shapes.items()):
        raise SVFError(f"{file} is not the summary of a training run")
    return summary


def _accuracy(metrics: Metrics) -> Accuracy | None:
    value, items = metrics.get("accuracy", math.nan), metrics.get("items", 0)
    return Accuracy(value, int(items)) if 0 <= value <= 1 and items >= 1 else None


def _without_prefix(prefix: str, values: Mapping[str, float]) -> Metrics:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _before(step: int, lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.step < step]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(checkpoint: Path) -> int:
    ending = checkpoint.name.removeprefix("checkpoint-")
    return int(ending) if ending.isdecimal() else -1
