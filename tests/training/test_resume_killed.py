"""Training is killed at random moments and goes on each time: the run comes out as if nothing had happened."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from svf_rl.training.callbacks import TIMING

KILLS, UPDATES = 20, 150
RUN = [
    "recipes/quickstart.yaml", "--max_steps", str(UPDATES), "--per_device_train_batch_size", "8",
    "--gradient_accumulation_steps", "2", "--steps_per_generation", "4", "--max_completion_length", "24",
    "--train_items", "64", "--eval_steps", "5", "--save_steps", "5", "--validation_items", "16", "--test_items", "32",
    "--log_completions", "--num_completions_to_print", "1", "--vllm_max_model_length", "128",
]  # fmt: skip


class Attempt:
    """`accelerate launch … svf_rl/train.py … --resume`."""

    def __init__(self, repository: Path, config: str, output: Path, log: Path):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        launcher = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            f"accelerate_configs/{config}.yaml",
        ]
        self._log, self._output = log, output
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [
                    *launcher,
                    "--main_process_port",
                    str(port),
                    "svf_rl/train.py",
                    *RUN,
                    "--output_dir",
                    str(output),
                    "--resume",
                ],
                cwd=repository,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(repository)},
            )

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def trains(self) -> bool:
        """Whether its progress bar is there."""
        return f"/{UPDATES} [" in self.said()

    def update(self) -> int:
        """The last one it has logged."""
        path = self._output / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        return max((json.loads(line)["step"] for line in lines if line.endswith(b"\n")), default=0)

    def writes(self) -> bool:
        """Whether a checkpoint is being written, or removed."""
        return any(self._output.glob(".checkpoint-*"))

    def wait_for(self, what: Any, seconds: float = 300) -> None:
        until = time.monotonic() + seconds
        while not what() and self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)

    def kill(self) -> None:
        """The training processes and their launcher; torchrun gives each a session of its own."""
        ps = ["ps", "-o", "pid=", "--ppid", str(self.process.pid)]
        workers = [int(pid) for pid in subprocess.run(ps, capture_output=True, text=True).stdout.split()]
        for pid in (*workers, self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def outcome(output: Path) -> dict[str, Any]:
    """All that must be the same, bit for bit."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((output / "summary.json").read_text())
    return {
        "metrics": [{k: v for k, v in line.items() if not k.startswith(TIMING)} for line in lines],
        "adapter": (output / "adapter_model.safetensors").read_bytes(),
        "completions": {p.name: pd.read_parquet(p).to_json() for p in sorted((output / "completions").iterdir())},
        "summary": {k: summary[k] for k in ("accuracy", "base_accuracy", "updates", "best_checkpoint", "rows")},
        "checkpoints": sorted(path.name for path in output.glob("checkpoint-*")),
    }


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("config", ["cpu", pytest.param("cpu_ddp", marks=pytest.mark.distributed)])
def test_killed_at_random_moments(config: str, repository: Path, tmp_path: Path) -> None:
    whole = Attempt(repository, config, tmp_path / "whole", tmp_path / "whole.log")
    assert whole.process.wait() == 0, whole.said()[-3000:]
    draw, moments = random.Random(f"{config} 0"), []
    for number in range(KILLS):
        attempt = Attempt(repository, config, tmp_path / "killed", tmp_path / f"{number}.log")
        kind, delay = draw.choice(["start", "training", "training", "training", "writing", "writing"]), 0.0
        if kind == "start":
            delay = draw.uniform(1, 20)
        else:
            attempt.wait_for(attempt.trains)
        if kind == "training":
            until, delay = attempt.update() + draw.randint(0, 12), draw.uniform(0, 0.6)
            attempt.wait_for(lambda attempt=attempt, until=until: attempt.update() >= until)
        elif kind == "writing":
            for _ in range(draw.randint(0, 2)):
                attempt.wait_for(attempt.writes)
                attempt.wait_for(lambda attempt=attempt: not attempt.writes())
            attempt.wait_for(attempt.writes)
            delay = draw.uniform(0, 0.04)
        time.sleep(delay)
        assert attempt.process.poll() is None, attempt.said()[-3000:]
        attempt.kill()
        left = sorted(path.name for path in (tmp_path / "killed").glob("*checkpoint-*"))
        moments.append(f"{number + 1}: {kind}, {delay:.3f} s, update {attempt.update()}, {', '.join(left)}")
        print(moments[-1], flush=True)
    last = Attempt(repository, config, tmp_path / "killed", tmp_path / "last.log")
    assert last.process.wait() == 0, last.said()[-3000:]
    expected, found = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert expected["adapter"] == found["adapter"]
    assert expected["metrics"] == found["metrics"]
    assert expected == found
    assert any(".partial" in moment for moment in moments)  # in the middle of writing, too
    assert not list((tmp_path / "killed").glob(".checkpoint-*"))
