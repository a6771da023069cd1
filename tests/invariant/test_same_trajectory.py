"""However an update is spread over processes, shards and micro-batches, it is the same update.

Completions are recorded once, from a real vLLM, and replayed through `accelerate launch` to every way of training.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
UPDATES, SEQUENCES = 20, 32
TOLERANCE = 1e-5

WHOLE = ["--per_device_train_batch_size", "32"]
HALVES = ["--per_device_train_batch_size", "16"]
IN_PARTS = ["--gradient_accumulation_steps", "2", "--gradient_checkpointing", "true"]
QUARTERS = ["--per_device_train_batch_size", "8", *IN_PARTS]

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]


def train(config: str, mode: str, completions: Path, out: Path, *settings: str) -> dict[str, Any]:
    """The trajectory of one run through `accelerate launch`."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml",
        "tests/invariant/replay.py", mode, str(completions), str(out),
        "--max_steps", str(UPDATES), "--eval_strategy", "no", "--save_strategy", "no", "--report_to", "none",
        "--load_best_model_at_end", "false", *settings,
    ]  # fmt: skip
    # DeepSpeed builds a C++ extension at its first start. In the cache of the user the lock of a start that was killed
    # would have this one wait for ever.
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "TORCH_EXTENSIONS_DIR": str(completions.parent)}
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=800, env={**os.environ, **own}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Completions of one process with a live vLLM, and what it made of them."""
    folder = tmp_path_factory.mktemp("recorded")
    completions = folder / "completions.json"
    return completions, train("cpu", "record", completions, folder / "out.json", *WHOLE)


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("config", "settings"),
    [
        pytest.param("cpu", [*HALVES, *IN_PARTS], id="one process in parts", marks=pytest.mark.slow),
        pytest.param("cpu_ddp", HALVES, id="DDP"),
        pytest.param("cpu_ddp", QUARTERS, id="DDP in parts", marks=pytest.mark.slow),
        pytest.param("cpu_zero2", HALVES, id="ZeRO-2", marks=pytest.mark.slow),
        pytest.param("cpu_zero2", QUARTERS, id="ZeRO-2 in parts", marks=pytest.mark.slow),
        pytest.param("cpu_zero3", HALVES, id="ZeRO-3"),
        pytest.param("cpu_zero3", QUARTERS, id="ZeRO-3 in parts", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_losses_and_z_are_those_of_one_process(
    recorded: tuple[Path, dict[str, Any]], tmp_path: Path, config: str, settings: list[str]
) -> None:
    completions, one = recorded
    run = train(config, "replay", completions, tmp_path / "out.json", *settings)
    assert len(run["losses"]) == len(one["losses"]) == UPDATES
    assert run["losses"] == pytest.approx(one["losses"], abs=TOLERANCE)
    for update, (z, expected) in enumerate(zip(run["z"], one["z"], strict=True), start=1):
        assert z == pytest.approx(expected, abs=TOLERANCE), f"z after update {update}"
    assert max(abs(value - 1) for value in one["z"][-1]) > 0.05  # there was something to differ in
