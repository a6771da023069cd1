"""What `svf-rl eval` left in its folder: the graded completions of each model on each task."""

import json
from dataclasses import dataclass
from pathlib import Path

from svf_rl.errors import SVFError
from svf_rl.evaluation.records import Answers, Record, read_records
from svf_rl.evaluation.summary import Result, summarize
from svf_rl.report.samples import Sample
from svf_rl.storage.json_files import read_json


@dataclass(frozen=True)
class EvaluationFolder:
    """Task by task the figures of each model and all its completions; an evaluation that was interrupted is not
    `finished`."""

    name: str
    finished: bool
    graded: list[tuple[Result, list[Sample]]]


def is_evaluation(path: Path) -> bool:
    """Whether `svf-rl eval` made this folder."""
    try:
        return read_json(path / "settings.json", "", missing_ok=True).get("kind") == "svf-rl evaluation"
    except SVFError:  # damaged: read_run says what is missing
        return False


def read_evaluation(path: Path, name: str | None = None) -> EvaluationFolder:
    """
    Read the folder of an evaluation, of an unfinished one too.

    Raises:
        SVFError: nothing was graded yet, or a file is damaged.
    """
    settings = path / "settings.json"
    graded = []
    for run, asked in read_json(settings, "evaluate again", {"runs": dict})["runs"].items():
        if not isinstance(asked, dict) or "task" not in asked:
            raise SVFError(f"{settings} is damaged ({run} has no task): evaluate again")
        if records := read_records(path / f"{run}.jsonl"):
            result = summarize(run.rpartition("/")[0], str(asked["task"]), "accuracy", Answers(records), [])
            graded.append((result, [_sample(record) for record in records]))
    if not graded:
        raise SVFError(f"{path} holds no graded completions yet: wait for the first batch")
    tasks = [result.task for result, _ in graded]
    graded.sort(key=lambda one: tasks.index(one[0].task))
    return EvaluationFolder(name or path.resolve().name, (path / "summary.json").is_file(), graded)


def _sample(record: Record) -> Sample:
    reference = record.reference
    notes = {
        "expected": reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False),
        "taken for the answer": "nothing" if record.extracted is None else str(record.extracted),
        "because": str(record.reason),
    }
    return Sample(record.correct, record.prompt, record.completion, notes)
