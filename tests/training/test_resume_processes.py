"""Two processes stop together and go on together, and one goes on where two were."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import child_processes, free_port, read_metrics
from safetensors.torch import load_file

SMALL = [
    "recipes/quickstart.yaml", "--use_vllm", "false", "--max_steps", "6", "--eval_steps", "6", "--save_steps", "2",
    "--train_items", "64", "--validation_items", "4", "--test_items", "4", "--max_completion_length", "24",
    "--report_to", "none", "--load_best_model_at_end", "false", "--save_total_limit", "9", "--resume",
]  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture
def start(repository: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """`start("run", config="cpu_ddp", size=8)`: training into that folder, begun or gone on with."""

    def launch(name: str, *overrides: str, config: str = "cpu_ddp", size: int = 8) -> subprocess.Popen[str]:
        launcher = ["-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml"]
        own = ["--per_device_train_batch_size", str(size), "--output_dir", str(tmp_path / name), *overrides]
        return subprocess.Popen(
            [sys.executable, *launcher, "--main_process_port", str(free_port()), "svf_rl/train.py", *SMALL, *own],
            cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(repository)},
        )  # fmt: skip

    return launch


def finished(process: subprocess.Popen[str]) -> str:
    printed = process.communicate(timeout=500)[0]
    assert process.returncode == 0, printed[-4000:]
    return printed


def test_a_signal_to_one_of_two_stops_both_after_the_same_update(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    finished(start("whole"))
    process = start("cut")
    while not list((tmp_path / "cut").glob("checkpoint-2")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(child_processes(process.pid)[-1], signal.SIGUSR1)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 1  # accelerate's own; it names that of its processes:
    assert "exitcode  : 75" in printed
    assert printed.count("--resume resumes from") == 1
    assert not (tmp_path / "cut/summary.json").exists()
    assert "resuming after step" in finished(start("cut"))
    assert any(line.get("grad_norm") for line in read_metrics(tmp_path / "whole"))
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "cut")
    name = "adapter_model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_one_process_goes_on_where_two_were(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """Not to the bit: sums are of other parts. Greedy, since the model's own rollouts are seeded by batches."""
    greedy = ["--temperature", "0", "--num_generations", "1", "--advantage", "batch_mean", "--learning_rate", "1e-3"]
    finished(start("run", *greedy))
    name = "adapter_model.safetensors"
    expected = load_file(tmp_path / "run" / name)
    (tmp_path / "run/summary.json").unlink()
    for later in ("checkpoint-4", "checkpoint-6"):
        shutil.rmtree(tmp_path / "run" / later, ignore_errors=True)
    assert "resuming after step 2" in finished(start("run", *greedy, config="cpu", size=16))
    found = load_file(tmp_path / "run" / name)
    for key in (key for key in expected if "svf_z" in key):
        assert not torch.equal(expected[key], torch.ones_like(expected[key]))
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-5)
