"""What `svf-rl eval` left in its folder: the graded completions of each model on each task."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.metrics.statistics import Interval, bootstrap, wilson
from svf_rl.report.samples import Sample

_KIND = "svf-rl evaluation"


@dataclass(frozen=True)
class Graded:
    """
    One model on one task.

    Args:
        model (`str`): `base`, or the adapter.
        task (`str`): the task.
        items (`int`): items asked.
        accuracy (`float`, *optional*): mean over the items of the share of right completions.
        interval (`tuple`, *optional*): 95 %: Wilson's with one completion an item, else a bootstrap over the items.
        tokens (`float`): of a completion, on average.
        cut_off (`float`): share of the completions that ended at the limit.
        not_scorable (`int`): completions without a verdict, which do not count.
        samples (`list[Sample]`): all completions.
    """

    model: str
    task: str
    items: int
    accuracy: float | None
    interval: Interval | None
    tokens: float
    cut_off: float
    not_scorable: int
    samples: list[Sample]


@dataclass(frozen=True)
class EvaluationFolder:
    """The results of a folder; an evaluation that was interrupted is not `finished`."""

    path: Path
    name: str
    finished: bool
    results: list[Graded]


def is_evaluation(path: Path) -> bool:
    """Whether `svf-rl eval` made this folder."""
    try:
        settings = json.loads((path / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.get("kind") == _KIND


def read_evaluation(path: Path, name: str | None = None) -> EvaluationFolder:
    """
    Read the folder of an evaluation, of an unfinished one too.

    Raises:
        SVFError: nothing was graded yet, or a file is damaged.
    """
    try:
        runs = json.loads((path / "settings.json").read_text(encoding="utf-8"))["runs"]
        tasks = {run: str(settings["task"]) for run, settings in runs.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SVFError(f"{path / 'settings.json'} is damaged: evaluate again") from error
    results = []
    for run, task in tasks.items():
        records = _read_records(path / f"{run}.jsonl")
        if records:
            results.append(_graded(run.rpartition("/")[0], task, records))
    if not results:
        raise SVFError(f"{path} holds no graded completions yet: wait for the first batch")
    results.sort(key=lambda result: list(tasks.values()).index(result.task))
    return EvaluationFolder(path, name or path.resolve().name, (path / "summary.json").is_file(), results)


def _graded(model: str, task: str, records: Sequence[dict[str, Any]]) -> Graded:
    verdicts: dict[int, list[bool]] = defaultdict(list)
    for record in records:
        if record["correct"] is not None:
            verdicts[record["index"]].append(record["correct"])
    shares = [sum(found) / len(found) for found in verdicts.values()]
    interval = None
    items = len({record["index"] for record in records})
    if shares:
        interval = wilson(round(sum(shares)), len(shares)) if len(records) == items else bootstrap(shares)
    return Graded(
        model=model,
        task=task,
        items=items,
        accuracy=sum(shares) / len(shares) if shares else None,
        interval=interval,
        tokens=sum(record["tokens"] for record in records) / len(records),
        cut_off=sum(not record["finished"] for record in records) / len(records),
        not_scorable=sum(record["correct"] is None for record in records),
        samples=[_sample(record) for record in records],
    )


def _read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of the file less a torn last one; none without a file."""
    if not path.is_file():
        return []
    records = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            records.append({key: record[key] for key in _FIELDS})
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines) or line.endswith(b"\n"):
                raise SVFError(f"{path}, line {number} is damaged: remove that line, or the file") from error
    return records


_FIELDS = ("index", "prompt", "completion", "reference", "extracted", "correct", "reason", "tokens", "finished")


def _sample(record: dict[str, Any]) -> Sample:
    reference = record["reference"]
    notes = {
        "expected": reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False),
        "taken for the answer": "nothing" if record["extracted"] is None else str(record["extracted"]),
        "because": str(record["reason"]),
    }
    return Sample(record["correct"], record["prompt"], record["completion"], notes)
