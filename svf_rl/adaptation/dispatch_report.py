"""What a dispatch says in numbers and lines: by class, in all and against the base model."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from svf_rl.adaptation.dispatch import Dispatched, Pass
from svf_rl.adaptation.strategies import Classified
from svf_rl.evaluation.adapters import BASE
from svf_rl.evaluation.items import TaskItems
from svf_rl.evaluation.records import Answers, Record
from svf_rl.evaluation.summary import Result, summarize
from svf_rl.evaluation.table import table
from svf_rl.metrics.statistics import Estimate, estimate_share
from svf_rl.storage.files import write_file
from svf_rl.text_table import aligned

DISPATCH = "dispatch"


@dataclass(frozen=True)
class Share:
    """The prompts of one class. `accuracy` is `None` where nothing was graded."""

    label: str | None
    expert: str
    prompts: int
    accuracy: Estimate | None


@dataclass(frozen=True)
class DispatchReport:
    """
    Args:
        results (`list[Result]`): the base model and dispatch on the items of a task; empty for prompts of a file.
        shares (`list[Share]`): class by class, the most frequent first.
        first ([`Pass`]), second ([`Pass`]): what classifying and answering took.
        folder (`Path`): where the answers are.
    """

    results: list[Result]
    shares: list[Share]
    first: Pass
    second: Pass
    folder: Path

    def __str__(self) -> str:
        rows = []
        for share in self.shares:
            row = {"class": share.label or "unreadable", "expert": share.expert, "prompts": str(share.prompts)}
            if (found := share.accuracy) is not None:
                row |= {"accuracy": f"{found.value:.3f}", "95 %": f"{found.low:.3f}-{found.high:.3f}"}
            rows.append(row)
        passes = [
            {"pass": name, "seconds": f"{one.seconds:.2f}", "weight syncs": str(one.syncs)}
            for name, one in (("first (classes)", self.first), ("second (answers)", self.second))
        ]
        parts = [table(self.results)] if self.results else []
        parts += [aligned(rows, left=("class", "expert")), aligned(passes, left=("pass",))]
        return "\n\n".join([*parts, f"answers: {self.folder}"])


def report(dispatched: Dispatched, items: TaskItems, base: Answers | None, folder: Path) -> DispatchReport:
    """The figures of a dispatch; `base` is `None` without verdicts."""
    results: list[Result] = []
    if base is not None:
        answers = Answers(dispatched.answers, dispatched.first.seconds + dispatched.second.seconds, reused=0)
        results = [
            summarize(BASE, items.name, items.metric, base),
            summarize(DISPATCH, items.name, items.metric, answers, base=base),
        ]
    verdicts: dict[tuple[str | None, str], list[bool | None]] = {}
    for classified, expert, record in zip(dispatched.classes, dispatched.experts, dispatched.answers, strict=True):
        verdicts.setdefault((classified.label, expert or BASE), []).append(record.correct)
    shares = [Share(*key, len(found), _estimate(found)) for key, found in verdicts.items()]
    shares.sort(key=lambda share: -share.prompts)
    return DispatchReport(results, shares, dispatched.first, dispatched.second, folder)


def _estimate(verdicts: Sequence[bool | None]) -> Estimate | None:
    scorable = len(verdicts) - verdicts.count(None)
    return estimate_share(verdicts.count(True) / scorable, scorable) if scorable else None


def write_dispatched(path: Path, dispatched: Dispatched) -> None:
    """A line for each answer, with its class, the expert that gave it, and what the classifier said; the whole file or
    nothing."""
    lines = [_line(*row) for row in zip(dispatched.answers, dispatched.classes, dispatched.experts, strict=True)]
    write_file(path, "".join(lines))


def _line(record: Record, classified: Classified, expert: str | None) -> str:
    said = classified.text if classified.logprobs is None else dict(classified.logprobs)
    extra = {"class": classified.label, "expert": expert or BASE, "classification": said}
    return json.dumps({**asdict(record), **extra}, ensure_ascii=False, default=str) + "\n"
