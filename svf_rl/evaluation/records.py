"""One line of JSON for each graded completion, written as it goes, read back after whatever ended the run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from svf_rl.storage.disk_errors import RESUMES, disk_errors
from svf_rl.storage.files import write_file
from svf_rl.storage.json_files import read_json_lines


@dataclass(frozen=True)
class Record:
    """A graded completion."""

    index: int  # the item's row in the task
    sample: int  # which of the item's completions
    prompt: str  # what the model read, template and all
    completion: str  # what it wrote, up to the stop string
    reference: Any  # the right answer, as the verifier got it
    extracted: str | None  # what was taken for the answer
    correct: bool | None  # `None` when not scorable
    score: float | None  # between 0 and 1 for verifiers; a reward function's own value
    reason: str
    infrastructure: bool  # the check itself failed; the next call makes this completion again
    tokens: int  # of the completion, end-of-sequence token or stop string included
    finished: bool  # whether it ended by itself, and was not cut off at the limit
    messages: list[dict[str, Any]] | None = None  # of an episode: all that was said, the prompt included

    @property
    def key(self) -> tuple[int, int]:
        return self.index, self.sample

    def line(self) -> str:
        """As JSON, with the end of the line. Unpaired surrogates, which UTF-8 cannot hold, are escaped."""
        values = {name: value for name, value in vars(self).items() if name != "messages" or value is not None}
        text = json.dumps(values, ensure_ascii=False, default=str)
        return text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"


@dataclass(frozen=True)
class Answers:
    """What one model wrote for the items of a task."""

    records: list[Record]  # sorted by item and sample
    seconds: float = 0.0  # that this call took for them, weight sync and grading included
    reused: int = 0  # how many of them an earlier call had made


def read_records(path: Path) -> list[Record]:
    """The records of a file (none without one), less a torn last line, which a run leaves that is killed while it
    writes. Raises `SVFError` for any other line that is damaged."""
    return read_json_lines(path, _read)


def _read(values: dict[str, Any]) -> Record:
    names = [f.name for f in fields(Record) if f.name != "messages"]
    return Record(**{name: values[name] for name in names}, messages=values.get("messages"))


def append_records(path: Path, records: Sequence[Record]) -> None:
    """Write behind the last line, and hand it to the system at once. Raises `SVFError` where the disk takes no more."""
    with disk_errors(path, RESUMES):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(record.line() for record in records))


def mend(path: Path) -> list[Record]:
    """The records of a file that are kept, after all else was taken out of it: a torn last line, and completions whose
    check failed by itself."""
    content = path.read_bytes() if path.is_file() else b""
    if content and not content.endswith(b"\n"):
        with disk_errors(path, RESUMES), path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
    records = read_records(path)
    kept = [record for record in records if not record.infrastructure]
    if len(kept) < len(records):
        write_file(path, "".join(record.line() for record in kept), RESUMES)
    return kept
