"""`write_run`: run folders made in no time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_runs import RECIPE, jsonl, metrics, write_adapter


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """`write_run(name, updates=10, finished=True, z=…, recipe=…, after=0.75)`: a folder of a run."""

    def write(
        name: str,
        updates: int = 10,
        finished: bool = True,
        adapter: dict[str, torch.Tensor] | None = None,
        after: float = 0.75,
        config: dict[str, Any] | None = None,
        **recipe: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        lines = metrics(updates)
        if finished:
            lines.append({"step": updates, "train_runtime": 9.0, "train_loss": 0.1})
            lines.append({"step": updates, "test_accuracy": after, "test_items": 200.0, "time/test": 1.0})
            write_adapter(folder, adapter, config)
            raw = {**RECIPE, **recipe}
            summary = {
                "recipe": raw, "seed": raw["seed"], "base_accuracy": 0.5, "accuracy": after, "items": 200,
                "updates": updates, "best_checkpoint": f"checkpoint-{updates // 5 * 5}", "git_commit": None,
                "seconds": {"load": 0.5, "train": 12.25}, "packages": {"torch": "2.13.0"}, "warnings": [],
            }  # fmt: skip
            (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "metrics.jsonl").write_text(jsonl(lines))
        return folder

    return write
