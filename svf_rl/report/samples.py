"""A few completions of a run with their verdicts: from the files that TRL keeps when the recipe says so."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from svf_rl.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Sample:
    """A completion and its verdict: `None` when it could not be scored. Of a conversation, `prompt` has the turns after
    their roles; `notes` hold what else is known, such as each reward."""

    correct: bool | None
    prompt: str
    completion: str
    notes: dict[str, str]


def read_last_completions(run: RunFolder) -> tuple[int, list[Sample]] | None:
    """
    The completions of the last step that kept them (`log_completions: true` in the recipe), and that step.

    A file that cannot be read (of the moment at which a run was killed) is passed over. `None` without such files.
    """
    for rows in read_completions(run):
        rewards = [name for name in run.rewards if name in rows[0]]
        return int(rows[0]["step"]), [_sample(row, rewards, run.correct_threshold) for row in rows]
    return None


def read_completions(run: RunFolder, columns: Sequence[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    """The rows of every step that kept its completions, the last step first, with those of `columns` that they have
    (all by default)."""
    import pyarrow
    from pyarrow import parquet

    for path in sorted(run.path.glob("completions/completions_*.parquet"), reverse=True):
        try:
            names = parquet.read_schema(path).names
            wanted = [name for name in names if columns is None or name in columns]
            rows = parquet.read_table(path, columns=wanted).to_pylist()
        except (OSError, pyarrow.ArrowException):
            continue
        if rows and {"step", "prompt", "completion"} <= set(names):
            yield rows


def pick(samples: Iterable[Sample], each: int) -> list[Sample]:
    """At most `each` right ones, then at most as many wrong ones and ones without a verdict, of different prompts as
    far as there are; always the first, so that nobody chose them."""
    chosen: list[Sample] = []
    every = list(samples)
    for verdict in (True, False, None):
        these = [sample for sample in every if sample.correct is verdict]
        first = {sample.prompt: sample for sample in reversed(these)}
        chosen += sorted(these, key=lambda sample: first[sample.prompt] is not sample)[:each]
    return chosen


def _sample(row: Mapping[str, Any], rewards: Sequence[str], threshold: float) -> Sample:
    values = {name: math.nan if row[name] is None else float(row[name]) for name in rewards}
    first = next(iter(values.values()), math.nan)
    notes = {f"reward {name}": "none" if math.isnan(value) else f"{value:.4g}" for name, value in values.items()}
    return Sample(
        None if math.isnan(first) else first >= threshold, _text(row["prompt"]), _text(row["completion"], True), notes
    )


def _text(turns: Any, completion: bool = False) -> str:
    """A text, or the turns of a conversation; of a completion its only turn without a role."""
    if not isinstance(turns, list):
        return str(turns)
    contents = [(str(turn.get("role", "")), str(turn.get("content", ""))) for turn in turns]
    if completion and len(contents) == 1:
        return contents[0][1]
    return "\n".join(f"[{role}] {content}" for role, content in contents)
