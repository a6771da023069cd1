"""What `report_to` names is begun before anything is logged, and goes on with one run."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import TensorBoardCallback

from svf_rl.settings.config import SVFReinforceConfig

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


def test_a_reporter_is_shown_no_secret_of_a_server_address(tmp_path: Path) -> None:
    address = "https://user:sesame-1@gpu.example:8000/v1?api_key=sesame-2&tier=a"
    args = SVFReinforceConfig(
        output_dir=str(tmp_path), use_cpu=True, use_vllm=True, vllm_mode="server", vllm_server_base_url=[address],
        hub_token="sesame-3", generation_kwargs={"extra": "hf_sesame4sesame4"},
    )  # fmt: skip
    args.logging_dir = None
    callback = TensorBoardCallback(SummaryWriter(str(tmp_path / "logs")))
    callback.on_train_begin(args, TrainerState(is_world_process_zero=True), TrainerControl())
    callback.tb_writer.close()
    (events,) = (tmp_path / "logs").glob("events.*")
    written = events.read_bytes()
    assert b"gpu.example" in written
    assert b"sesame" not in written
    assert "sesame" not in str(args.to_dict())  # what wandb and trackio are given
    assert args.server_urls == [address]


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
