"""`replay.py`, through `accelerate launch`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
UPDATES, SEQUENCES = 20, 32
TOLERANCE = 1e-5

WHOLE = ["--per_device_train_batch_size", "32"]
HALVES = ["--per_device_train_batch_size", "16"]


def train(config: str, mode: str, completions: Path, out: Path, *settings: str) -> dict[str, Any]:
    """The trajectory of one run through `accelerate launch`."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml",
        "tests/invariant/replay.py", mode, str(completions), str(out),
        "--max_steps", str(UPDATES), "--eval_strategy", "no", "--save_strategy", "no", "--report_to", "none",
        "--load_best_model_at_end", "false", *settings,
    ]  # fmt: skip
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=800, env={**os.environ, **own}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())
