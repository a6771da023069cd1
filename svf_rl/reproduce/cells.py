"""A cell: one training run, one evaluation or one seed's adaptation, made once and kept with what decided it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.evaluation.base_model import BaseModel, find_base_model
from svf_rl.evaluation.text_windows import Window, read_windows
from svf_rl.reproduce.kept import check_kept, narrow, replaced
from svf_rl.storage.json_files import read_json
from svf_rl.storage.same_settings import difference
from svf_rl.tasks import TaskOptions


@dataclass(frozen=True)
class Cell:
    """
    Args:
        name (`str`): also the name of its files.
        kind (`str`): `"training"`, `"evaluation"`, `"adaptation"`, `"changes"` (what training moved) or `"text"` (the
            log-likelihood of one); the last two are made by adapter, as evaluations are.
        folder (`Path`): where it writes.
        settings (`dict`): what decides its result, as JSON holds it.
        command (`list[str]`): what makes it; a process of its own.
        needs (`tuple[str, ...]`, *optional*): the cells that come before it.
        spec (`dict`, *optional*): what the command reads from [`record_path`].
    """

    name: str
    kind: Literal["training", "evaluation", "adaptation", "changes", "text"]
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
    Whether the cell was made to its end, with these settings (or more than these ask for) and of the adapters that are
    there now. Cells other than training runs only add what is missing.

    Raises:
        SVFError: what is there was made with other settings.
    """
    lost = "trains the run again from its start" if cell.kind == "training" else f"goes on with what {cell.folder} has"
    there = read_result(record_path(out, cell.name), f"remove it, and the same command {lost}").get("settings", {})
    check_kept(cell.kind, cell.folder, there, cell.settings)
    if not there or not cell.result.is_file() or difference(narrow(cell.kind, there, cell.settings), cell.settings):
        return False
    return cell.kind == "training" or not replaced(cell.kind, cell.spec)


def read_result(path: Path, remedy: str = "remove it, and the same command makes it again") -> dict[str, Any]:
    """What a call has written to `path`; nothing where there is no file. Raises `SVFError` for one that is damaged."""
    return read_json(path, remedy, missing_ok=True)


def evaluation_arguments(spec: Mapping[str, Any]) -> EvaluationArguments:
    """Greedy answers of the model of a cell to the items of a task: `task` names it, as in `quickstart:choice`, and
    `options` are its [`TaskOptions`]; `model` holds the [`ModelArguments`], `evaluation` the [`EvaluationSettings`]."""
    model = spec["model"]
    return EvaluationArguments(
        model=model["model_name_or_path"],
        tasks=[spec["task"]],
        adapters=list(spec.get("adapters", {}).values()),
        options=TaskOptions(**spec["options"]),
        reward=spec.get("reward"),
        out=spec["out"],
        max_tokens=spec.get("max_tokens"),
        dtype=model["dtype"],
        trust_remote_code=model["trust_remote_code"],
        chat_template_kwargs=dict(spec["chat_template_kwargs"]),
        **spec["evaluation"],
    )


def find_windows(spec: Mapping[str, Any]) -> tuple[BaseModel, list[Window]]:
    """The base model of a cell of kind `"text"`, without weights, and what it is to read. Raises `SVFError` for a text
    that cannot be read or is too short, and windows that do not fit."""
    base = find_base_model(text_arguments(spec))
    return base, read_windows(Path(spec["file"]), base.tokenizer, spec["window"], spec["limit"], base.positions)


def text_arguments(spec: Mapping[str, Any]) -> EvaluationArguments:
    """The same as [`evaluation_arguments`] for a cell of kind `"text"`, which has no task and no answers."""
    return evaluation_arguments({"task": "text", "options": {}, "chat_template_kwargs": {}, **spec})
