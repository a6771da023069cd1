"""What `report_to` names is begun before anything is logged, and goes on with one run."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

Make = Callable[..., Any]


class Reporter(TrainerCallback):
    """As transformers' own callbacks are: begun by `setup`, ended with the training."""

    def __init__(self) -> None:
        self._initialized = False
        self.events: list[str] = []

    def setup(self, args: Any, state: Any, model: Any) -> None:
        self._initialized = True
        self.events.append("setup")

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not self._initialized:
            self.setup(args, state, model)

    def on_log(self, *_: Any, **__: Any) -> None:
        self.events.append("log" if self._initialized else "lost")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._initialized = False


def test_a_reporter_is_begun_before_a_reward_is_computed(make_trainer: Make, scripted: Make) -> None:
    """TRL logs the seconds of each reward to the reporter itself."""
    reporter = Reporter()

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        reporter.events.append("reward" if reporter._initialized else "lost")
        return [1.0] * len(completion_ids)

    trainer = make_trainer(reward=reward, generator=scripted(), eval_items=4, callbacks=[reporter])
    trainer.evaluate(metric_key_prefix="base")
    trainer.train()
    trainer.evaluate(metric_key_prefix="test")
    assert "lost" not in reporter.events
    assert reporter.events.count("setup") == 2  # the training ended it once


@pytest.mark.slow
def test_trackio_shows_all_of_a_run_as_one(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    import sqlite3

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    recipe = [
        "recipes/quickstart.yaml", "--use_vllm", "false", "--per_device_train_batch_size", "8", "--eval_steps", "1",
        "--max_completion_length", "8", "--validation_items", "8", "--test_items", "8", "--save_steps", "1",
        "--report_to", "trackio", "--output_dir", str(tmp_path / "sums"),
    ]  # fmt: skip
    for more in (["--max_steps", "1"], ["--max_steps", "2", "--resume"]):
        subprocess.run([sys.executable, "-m", "svf_rl.cli", "train", *recipe, *more], cwd=repository, check=True)
    logs = [sqlite3.connect(path) for path in (tmp_path / "trackio").rglob("*.db")]
    rows = [row for log in logs for row in log.execute("select run_name, metrics from metrics")]
    assert len({name for name, _ in rows}) == 1
    assert rows[0][0].startswith("sums-")
    text = " ".join(str(metrics) for _, metrics in rows)
    assert all(key in text for key in ("base_accuracy", "train/loss", "eval/accuracy", "test/accuracy"))
