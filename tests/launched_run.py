"""A training run in processes of its own: started, watched and killed from outside, and what it leaves behind."""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from fakes import child_processes, free_port, read_metrics

REPOSITORY = Path(__file__).resolve().parent.parent


class LaunchedRun:
    """
    `accelerate launch … svf_rl/train.py recipes/quickstart.yaml … --resume`, under way.

    Args:
        config (`str`): One of `accelerate_configs/`.
        output (`Path`): Output folder of the run.
        log (`Path`): What it prints goes there.
        settings (`Sequence[str]`): Overrides of the recipe, `--max_steps` among them.
        environment (`str`): Variables besides those of this process.
    """

    def __init__(self, config: str, output: Path, log: Path, settings: Sequence[str], **environment: str):
        launcher = ["-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml"]
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
        if "zero" not in config:  # with it accelerate leaves DeepSpeed out; without it some launchers look for GPUs
            own["ACCELERATE_USE_CPU"] = "true"
        self.log, self.output = log, output
        self._updates = settings[list(settings).index("--max_steps") + 1]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, *launcher, "--main_process_port", str(free_port()), "svf_rl/train.py"),
                    *("recipes/quickstart.yaml", *settings, "--output_dir", str(output), "--resume"),
                ],
                cwd=REPOSITORY,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **own, **environment},
            )

        atexit.register(self.kill)  # where a test fails before its end

    def said(self) -> str:
        """All that was printed until now."""
        return self.log.read_text(errors="replace")

    def trains(self) -> bool:
        """Whether its progress bar is there."""
        return f"/{self._updates} [" in self.said()

    def update(self) -> int:
        """The last one it has logged."""
        path = self.output / "metrics.jsonl"
        if not path.is_file():
            return 0
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            lines = file.read().splitlines(keepends=True)[-5:]
        return max((json.loads(line)["step"] for line in lines if line[:1] == b"{" and line[-1:] == b"\n"), default=0)

    def writes(self) -> bool:
        """Whether a checkpoint is being written, or removed."""
        return any(self.output.glob(".checkpoint-*"))

    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait_for(self, what: Callable[[], bool], seconds: float = 300, every: float = 0.002) -> bool:
        """Whether it came true before the run ended or the seconds were over."""
        until = time.monotonic() + seconds
        while not what():
            if self.ended() or time.monotonic() > until:
                return False
            time.sleep(every)
        return True

    def wait(self, seconds: float) -> str:
        """Its end: what it printed. A run that takes longer is killed, and the test has failed."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self.said()

    def workers(self) -> list[int]:
        """The training processes; torchrun gives each a session of its own."""
        return child_processes(self.process.pid)

    def kill(self) -> None:
        """The training processes and their launcher, by SIGKILL."""
        if self.ended():
            return
        for pid in (*self.workers(), self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def outcome(output: Path) -> dict[str, Any]:
    """All that must be the same, bit for bit, of a run that was interrupted and one that was not."""
    summary = json.loads((output / "summary.json").read_text())
    return {
        "metrics": read_metrics(output),
        "adapter": (output / "adapter_model.safetensors").read_bytes(),
        "completions": {p.name: pd.read_parquet(p).to_json() for p in sorted(output.glob("completions/*"))},
        "summary": {k: summary[k] for k in ("accuracy", "base_accuracy", "updates", "best_checkpoint", "rows")},
        "checkpoints": sorted(path.name for path in output.glob("checkpoint-*")),
    }


def assert_same(whole: Path, interrupted: Path) -> None:
    """Adapter, metrics but for seconds, tables of completions, and which checkpoints are left."""
    expected, found = outcome(whole), outcome(interrupted)
    assert expected["adapter"] == found["adapter"]
    assert expected["metrics"] == found["metrics"]
    assert expected == found
