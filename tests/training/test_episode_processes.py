"""Episodes of several processes, which take different numbers of turns."""

import os
import subprocess
import sys
from pathlib import Path

import failing_process
import pytest
from fakes import read_metrics
from launched_run import LaunchedRun

SHORT = [
    "--max_steps", "3", "--model_name_or_path", "quickstart-tools", "--skill", "tools", "--tools",
    "svf_rl.quickstart.tool_skill:calc", "--per_device_train_batch_size", "8", "--max_completion_length", "64",
    "--train_items", "64", "--validation_items", "2", "--test_items", "17", "--eval_strategy", "no",
    "--save_strategy", "no", "--load_best_model_at_end", "false",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["transformers", pytest.param("one vLLM over both", marks=pytest.mark.vllm)])
def test_two_processes(engine: str, tmp_path: Path, even_tool_model: Path) -> None:
    own = {
        "transformers": ["--use_vllm", "false"],
        "one vLLM over both": ["--vllm_tensor_parallel_size", "2", "--model_name_or_path", str(even_tool_model)],
    }[engine]
    run = LaunchedRun("cpu_ddp", tmp_path / "run", tmp_path / "run.log", [*SHORT, *own])
    said = run.wait(800)
    assert run.process.returncode == 0, said[-3000:]
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "reward" in line] == [1, 2, 3]
    assert all(0 < line["tools/call_frequency"] < 1.5 for line in lines if "reward" in line)
    assert next(line["base_items"] for line in lines if "base_items" in line) == 17


@pytest.mark.distributed
def test_where_all_environments_of_one_process_fail_both_go_on_in_step(tmp_path: Path, repository: Path) -> None:
    """It has no log-probabilities of a generator, which the other compares with its own, all together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    folders = os.pathsep.join([str(repository), str(repository / "tests"), str(repository / "tests/training")])
    done = subprocess.run(
        [*command, failing_process.__file__, str(tmp_path)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": folders, "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in read_metrics(tmp_path) if "reward" in line]
    assert [line["environments/failure_frequency"] for line in lines] == [0.5, 0.5]
    assert all(line["sampling/logp_difference"] > 0 and line["sampling/importance_weight"] > 0 for line in lines)
