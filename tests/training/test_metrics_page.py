"""`docs/reference/metrics.md` names every metric: those of a short run, and those that only other runs log."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def documented(repository: Path) -> list[str]:
    """The names in the first column of the page's tables; capitals stand for any name."""
    page = (repository / "docs/reference/metrics.md").read_text()
    return [name for cell in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(\S+?)`", cell)]


def test_every_metric_of_a_run_is_documented(
    make_trainer: Make, scripted: Make, documented: list[str], tmp_path: Path
) -> None:
    generator = scripted(logprobs=lambda prompt, completion: [-5.0] * len(completion))
    trainer = make_trainer(
        generator=generator, use_vllm=True, beta=0.1, max_steps=2, eval_items=4, eval_strategy="steps", eval_steps=1,
        output_dir=str(tmp_path),
    )  # fmt: skip
    trainer.evaluate(metric_key_prefix="base")
    trainer.train()
    logged = {key for line in (tmp_path / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    known = re.compile("|".join(re.sub("[A-Z]+", "[^/]+", name) for name in documented))
    assert {"base_accuracy", "kl", "z/up_proj/min", "update/relative_change", "train_loss"} <= logged
    assert not {key for key in logged if not known.fullmatch(re.sub("^(base|test)_", "eval_", key))}


def test_every_metric_that_the_code_adds_is_documented(repository: Path, documented: list[str]) -> None:
    added = re.compile(r"(?:add|add_mean|log_metric)\(f?\"([\w/{}]+)\"")
    files = [path for room in ("training", "rewards") for path in (repository / "svf_rl" / room).rglob("*.py")]
    names = {name for path in files for name in added.findall(path.read_text())}
    assert {"tools/outgrown_ratio", "fitness/{name}", "checks_raised/{name}", "curriculum/level"} <= names
    shapes = {name: re.compile(re.sub(r"\{\w+\}", "[^/]+", name)) for name in names}
    assert not [name for name, shape in shapes.items() if not any(map(shape.fullmatch, documented))]
