"""Several runs in one process: each as if it were alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import read_metrics, wait_until
from safetensors.torch import load_file

from svf_rl.errors import SVFError
from svf_rl.quickstart import make_rows
from svf_rl.train import run

pytestmark = pytest.mark.vllm
SMALL = ["--max_steps", "4", "--eval_steps", "2", "--save_steps", "2", "--validation_items", "16", "--test_items", "32",
         "--per_device_train_batch_size", "16", "--disable_tqdm"]  # fmt: skip


def assert_alike(alone: Path, together: Path) -> None:
    """But for the last bits of the engine's log-probabilities, which depend on the batch."""
    expected, found = (load_file(folder / "adapter_model.safetensors") for folder in (alone, together))
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=1e-6)
    lines = [read_metrics(folder) for folder in (alone, together)]
    assert [line.keys() for line in lines[0]] == [line.keys() for line in lines[1]]
    for key in ("step", "reward", "num_tokens", "base_accuracy", "eval_accuracy", "test_accuracy"):
        assert [line.get(key) for line in lines[0]] == [line.get(key) for line in lines[1]], key


def test_each_run_is_what_it_is_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run("quickstart", [*SMALL, "--seeds", "[0, 3]", "--output_dir", str(tmp_path / "both")])
    printed = capfd.readouterr().out
    for seed in ("0", "3"):
        run("quickstart", [*SMALL, "--seed", seed, "--output_dir", str(tmp_path / seed)])
        assert_alike(tmp_path / seed, tmp_path / "both" / f"seed{seed}")
    assert read_metrics(tmp_path / "0") != read_metrics(tmp_path / "3")
    assert "runs:           seed0, seed3 (each in a folder of" in printed
    assert "2 runs: accuracy" in printed
    # one that has ended is left alone, and resumes by itself too
    run("quickstart", [*SMALL, "--seeds", "[0, 3]", "--output_dir", str(tmp_path / "both"),
                       "--resume_from_checkpoint", "auto"])  # fmt: skip
    assert capfd.readouterr().out.count("has ended after 4 steps: nothing is left to do") == 2


def test_runs_of_other_rates_lengths_and_skills(tmp_path: Path) -> None:
    """So that one accumulates, one ends before the other, and they do not evaluate together."""
    changes = [{"learning_rate": 0.003, "max_steps": 2}, {"skill": "choice", "gradient_accumulation_steps": 2}]
    run("quickstart", [*SMALL, "--runs", json.dumps(changes), "--output_dir", str(tmp_path / "both")])
    for name, change in zip(("learning_rate=0.003,max_steps=2", "skill=choice,gradient_accumulation_steps=2"), changes,
                            strict=True):  # fmt: skip
        own = [text for key, value in change.items() for text in (f"--{key}", str(value))]
        run("quickstart", [*SMALL, *own, "--output_dir", str(tmp_path / name)])
        assert_alike(tmp_path / name, tmp_path / "both" / name)


def test_evolution_strategies_too(tmp_path: Path) -> None:
    settings = [*SMALL, "--objective", "evolution_strategies", "--beta", "0", "--num_generations", "4"]
    run("quickstart", [*settings, "--seeds", "[0, 1]", "--output_dir", str(tmp_path / "both")])
    run("quickstart", [*settings, "--seed", "1", "--output_dir", str(tmp_path / "1")])
    assert_alike(tmp_path / "1", tmp_path / "both" / "seed1")


def test_a_run_that_fails_is_named_and_the_others_end(tmp_path: Path) -> None:
    data, mended, reward = tmp_path / "data.jsonl", tmp_path / "mended", tmp_path / "reward.py"
    data.write_text("\n".join(json.dumps(row) for row in make_rows("math", "train", 64)))
    reward.write_text(
        "from pathlib import Path\n"
        "def strict(completions, **kwargs):\n"
        f"    assert Path({str(mended)!r}).exists()\n"
        "    return [1.0] * len(completions)\n"
    )
    changes = [{"seed": 1}, {"rewards": ["numeric", f"{reward}:strict"]}]
    arguments = [*SMALL, "--runs", json.dumps(changes), "--output_dir", str(tmp_path / "both")]
    with pytest.raises(SVFError, match=r"1 of 2 runs in .* have failed .*'strict' raised AssertionError"):
        run("quickstart", arguments)
    assert (tmp_path / "both" / "seed1" / "summary.json").is_file()
    mended.touch()
    run("quickstart", [*arguments, "--resume_from_checkpoint", "auto"])
    assert len(list((tmp_path / "both").glob("*/summary.json"))) == 2


@pytest.mark.slow
def test_a_signal_stops_all_of_them_and_resume_goes_on(repository: Path, tmp_path: Path) -> None:
    steps = ["--max_steps", "6", "--save_steps", "6", "--eval_steps", "6", "--save_total_limit", "1"]
    settings = [*SMALL, *steps, "--load_best_model_at_end", "false", "--resume_from_checkpoint", "auto",
                "--seeds", "[0, 1]", "--output_dir"]  # fmt: skip
    command = [sys.executable, "svf_rl/train.py", "recipes/quickstart.yaml", *settings]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository), "PYTHONUNBUFFERED": "1"}
    output, log = tmp_path / "stopped", tmp_path / "log"

    def lines(seed: int) -> int:
        folder = output / f"seed{seed}"
        return sum("reward" in line for line in read_metrics(folder)) if (folder / "metrics.jsonl").is_file() else 0

    with log.open("w") as file:
        begun = subprocess.Popen([*command, str(output)], cwd=repository, env=env, stdout=file, stderr=file)
        wait_until(lambda: begun.poll() is not None or lines(0) >= 2, 300)
        begun.send_signal(signal.SIGTERM)
        assert begun.wait(120) == 75, log.read_text()
    assert "stopped by SIGTERM: --resume resumes the runs in" in log.read_text()
    assert all(any((output / f"seed{seed}").glob("checkpoint-*")) for seed in (0, 1))
    for folder in (output, tmp_path / "whole"):
        run("quickstart", [*settings, str(folder)])
    for seed in ("seed0", "seed1"):
        assert_alike(tmp_path / "whole" / seed, output / seed)
