"""A cell: one training run, one evaluation or one seed's adaptation, made once and kept with what decided it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from svf_rl.errors import SVFError
from svf_rl.evaluation.folder import disk_errors, write_json


@dataclass(frozen=True)
class Cell:
    """
    Args:
        name (`str`): also the name of its files.
        kind (`str`): `"training"`, `"evaluation"` or `"adaptation"`.
        folder (`Path`): where it writes.
        settings (`dict`): what decides its result, as JSON holds it.
        command (`list[str]`): what makes it; a process of its own.
        needs (`tuple[str, ...]`, *optional*): the cells that come before it.
        spec (`dict`, *optional*): what the command reads from [`record_path`].
    """

    name: str
    kind: Literal["training", "evaluation", "adaptation"]
    folder: Path
    settings: dict[str, Any]
    command: list[str]
    needs: tuple[str, ...] = ()
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def result(self) -> Path:
        """The file that is written last."""
        return self.folder / "summary.json"


def record_path(out: Path, name: str) -> Path:
    """What a cell was made with, or is being made with."""
    return out / "cells" / f"{name}.json"


def log_path(out: Path, name: str) -> Path:
    """What a cell's process printed."""
    return out / "logs" / f"{name}.log"


def is_done(cell: Cell, out: Path) -> bool:
    """
    Whether the cell was made to its end, with these settings.

    A training run that was made with others is an error. Evaluations and adaptations check each of their records
    themselves and only add what is missing.

    Raises:
        SVFError: the training run there has other settings.
    """
    record = read_json(record_path(out, cell.name))
    if record is None or not cell.result.is_file():
        return False
    changed = difference(record.get("settings"), cell.settings)
    if changed and cell.kind == "training":
        raise SVFError(
            f"{cell.folder} was made with other settings ({changed}): remove that folder to train it anew, or give "
            "another --out"
        )
    return not changed


def begin(cell: Cell, out: Path) -> None:
    """Write down what the cell is made with, and take away what an interrupted run has left, but for the checkpoints of
    a training run with the same settings: it goes on from the last."""
    left = read_json(record_path(out, cell.name)) or {}
    with disk_errors(out):
        if cell.kind == "training" and difference(left.get("settings"), cell.settings):
            shutil.rmtree(cell.folder, ignore_errors=True)
        cell.result.unlink(missing_ok=True)
        for path in (record_path(out, cell.name), log_path(out, cell.name)):
            path.parent.mkdir(parents=True, exist_ok=True)
    write_json(record_path(out, cell.name), {"kind": cell.kind, "settings": cell.settings, "spec": cell.spec})


def end(cell: Cell, out: Path, seconds: float) -> None:
    """Add how long the cell took."""
    record = read_json(record_path(out, cell.name)) or {}
    write_json(record_path(out, cell.name), {**record, "seconds": round(seconds, 1)})


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a file; `None` without a file. Raises `SVFError` for one that is damaged."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SVFError(f"{path} is damaged: remove it, and the same command makes it anew") from error
    if not isinstance(content, dict):
        raise SVFError(f"{path} is damaged: remove it, and the same command makes it anew")
    return content


def as_json(values: Any) -> Any:
    """The values as they come back from a JSON file."""
    return json.loads(json.dumps(values, default=str))


def difference(there: Any, here: Any, name: str = "") -> str:
    """The first setting in which two nested mappings differ, in words; empty where they agree."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*here, *there]:
            if found := difference(there.get(key), here.get(key), str(key)):
                return found
        return ""
    return "" if there == here else f"{name}: {_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
