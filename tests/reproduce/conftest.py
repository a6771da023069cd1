"""Comparisons small enough for a test."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"


SMALL = {
        "model": "quickstart",
        "seeds": [0],
        "training": {
            "test_items": 8, "validation_items": 8, "eval_steps": 2, "save_steps": 2,
            "per_device_train_batch_size": 16,
        },
        "experts": {
            "math": {"recipe": str(QUICKSTART), "skill": "math"},
            "code": {"recipe": str(QUICKSTART), "skill": "code"},
        },
        "unseen": {"exam": {"task": "exam"}},
        "few_shot": {"shots": 2, "population": 4, "generations": 1, "samples": 1},
        "evaluation": {"enforce_eager": True, "limit": 12},
}  # fmt: skip


@pytest.fixture
def write_comparison(tmp_path: Path) -> Callable[..., Path]:
    """Writes the small comparison, with other values for some keys (`None`: without the key), and returns the file."""

    def write(max_steps: int = 2, **changes: object) -> Path:
        values = {key: value for key, value in {**SMALL, **changes}.items() if value is not None}
        values["training"] = {**values["training"], "max_steps": max_steps}
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write
