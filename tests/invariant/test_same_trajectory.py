"""However an update is spread over processes, shards and micro-batches, it is the same update.

Completions are recorded once, from a real vLLM, and replayed through `accelerate launch` to every way of training.
"""

from pathlib import Path
from typing import Any

import pytest
from launched import HALVES, TOLERANCE, UPDATES, train

IN_PARTS = ["--gradient_accumulation_steps", "2", "--gradient_checkpointing", "true"]
PADDED = ["--train_packing", "none"]
QUARTERS = ["--per_device_train_batch_size", "8", *IN_PARTS]

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("config", "settings"),
    [
        pytest.param("cpu", [*HALVES, *IN_PARTS], id="one process in parts", marks=pytest.mark.slow),
        pytest.param("cpu_ddp", HALVES, id="DDP", marks=pytest.mark.slow),
        pytest.param("cpu_ddp", QUARTERS, id="DDP in parts", marks=pytest.mark.slow),
        pytest.param("cpu_ddp", [*HALVES, *PADDED], id="DDP, padded", marks=pytest.mark.slow),
        pytest.param("cpu_zero2", HALVES, id="ZeRO-2", marks=pytest.mark.slow),
        pytest.param("cpu_zero2", QUARTERS, id="ZeRO-2 in parts", marks=pytest.mark.slow),
        pytest.param("cpu_zero3", HALVES, id="ZeRO-3", marks=pytest.mark.slow),
        pytest.param("cpu_zero3", QUARTERS, id="ZeRO-3 in parts", marks=pytest.mark.slow),
        pytest.param("cpu_zero3", [*QUARTERS, *PADDED], id="ZeRO-3 in parts, padded", marks=pytest.mark.slow),
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
    if "zero" in config:
        assert run["gradient_buffer"] == len(run["z"][-1])
