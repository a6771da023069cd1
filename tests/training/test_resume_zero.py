"""DeepSpeed: two processes that share the optimizer's state (ZeRO-2), and the model too (ZeRO-3), go on to the bit."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launched_run import LaunchedRun, assert_same
from safetensors.torch import load_file

from svf_rl.quickstart import model_path

UPDATES = 12
RUN = [
    "--max_steps", str(UPDATES), "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2",
    "--lr_scheduler_type", "linear", "--max_completion_length", "24", "--train_items", "64", "--eval_steps", "4",
    "--save_steps", "4", "--validation_items", "16", "--test_items", "16", "--vllm_max_model_length", "128",
    "--log_completions", "--num_completions_to_print", "1", "--save_total_limit", "3", "--report_to", "none",
]  # fmt: skip
ADAPTER = "adapter_model.safetensors"

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.distributed, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module", params=["cpu_zero2", "cpu_zero3"])
def config(request: Any) -> str:
    return request.param


@pytest.fixture(scope="module")
def start(config: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LaunchedRun]:
    """`start(folder)`: training into it, begun or gone on with."""
    logs = tmp_path_factory.mktemp("logs")
    counter = iter(range(100))

    def launch(output: Path, *settings: str, config: str = config) -> LaunchedRun:
        log = logs / str(next(counter))
        return LaunchedRun(config, output, log, [*RUN, *settings])

    return launch


@pytest.fixture(scope="module")
def whole(start: Callable[..., LaunchedRun], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run = start(output)
    assert run.process.wait(900) == 0, run.said()[-4000:]
    return output


def killed(run: LaunchedRun, update: int) -> None:
    assert run.wait_for(lambda: run.update() >= update, 900), run.said()[-4000:]
    run.kill()


def test_stopped_and_killed(whole: Path, start: Callable[..., LaunchedRun], tmp_path: Path) -> None:
    output = tmp_path / "run"
    run = start(output)
    assert run.wait_for(lambda: run.update() >= 2, 900), run.said()[-4000:]
    os.kill(run.workers()[-1], signal.SIGTERM)
    printed = run.wait(300)
    assert printed.count("--resume resumes from") == 1
    assert printed.count("stopped by") == 1
    killed(start(output), 6)
    run = start(output)
    assert run.wait_for(run.writes, 900), run.said()[-4000:]
    run.kill()
    run = start(output)
    assert run.process.wait(900) == 0, run.said()[-4000:]
    assert "resuming after step" in run.said()
    assert_same(whole, output)


def test_nothing_frozen_is_written(whole: Path, config: str) -> None:
    """The model is tied: its embedding has a second name, by which DeepSpeed would write it."""
    folder = whole / f"checkpoint-{UPDATES}"
    trained = load_file(folder / ADAPTER)
    names = {name.removesuffix(".weight") for name in trained if "svf_z" in name}
    states = sorted((folder / f"global_step{UPDATES}").glob("*model_states.pt"))
    assert len(states) == (1 if config == "cpu_zero2" else 2)
    for path in states:
        module = torch.load(path, weights_only=False)["module"]
        assert {name.removesuffix(".default.weight") for name in module} == names
    weights = sum(path.stat().st_size for path in Path(model_path()).glob("*.safetensors"))
    values = sum(value.numel() * value.element_size() for value in trained.values())
    shares = sum(path.stat().st_size for path in (folder / f"global_step{UPDATES}").iterdir())
    assert 3 * values < shares < 3 * values + 80_000 < weights  # z and two moments of it, and what says so


def test_the_best_update_is_what_is_saved(whole: Path) -> None:
    summary = (whole / "summary.json").read_text()
    best = next(path for path in whole.glob("checkpoint-*") if f'"{path.name}"' in summary)
    assert (whole / ADAPTER).read_bytes() == (best / ADAPTER).read_bytes()


def test_a_torn_share_is_passed_over(whole: Path, start: Callable[..., LaunchedRun], tmp_path: Path) -> None:
    output = copy_before_the_end(whole, tmp_path)
    share = next((output / f"checkpoint-{UPDATES}/global_step{UPDATES}").glob("zero_pp_rank_1*optim_states.pt"))
    share.write_bytes(share.read_bytes()[:-100])
    run = start(output)
    assert run.process.wait(900) == 0, run.said()[-4000:]
    assert f"skipped: {output / f'checkpoint-{UPDATES}'} is not a complete checkpoint" in run.said()
    assert "resuming after step 8" in run.said()
    assert_same(whole, output)


@pytest.mark.parametrize("case", ["without DeepSpeed", "one process"])
def test_what_it_cannot_go_on_with(
    whole: Path, start: Callable[..., LaunchedRun], tmp_path: Path, config: str, case: str
) -> None:
    output = copy_before_the_end(whole, tmp_path)
    before = sorted(path.name for path in output.iterdir())
    if case == "without DeepSpeed":
        run, message = start(output, config="cpu_ddp"), f"was written under DeepSpeed ZeRO-{config[-1]}, and this is no"
    else:
        run = start(output, "--per_device_train_batch_size", "16", config="cpu")
        message = "each with its part of the optimizer's state"
    printed = run.wait(600)
    assert run.process.returncode == 1
    assert any(line.startswith("error: ") and message in line for line in printed.splitlines()), printed[-3000:]
    assert sorted(path.name for path in output.iterdir()) == before


REWARD = """
def broken(completions, trainer_state, **_):
    sign = [1.0 if index % 2 else -1.0 for index in range(len(completions))]
    return [3e38 * one for one in sign] if trainer_state.global_step == 2 else sign
"""


def test_a_gradient_that_is_not_finite_ends_it(start: Callable[..., LaunchedRun], tmp_path: Path) -> None:
    """DeepSpeed skips such an update by itself, and goes on."""
    (tmp_path / "reward.py").write_text(REWARD)
    run = start(tmp_path / "run", "--rewards", f"{tmp_path}/reward.py:broken", "--save_steps", "2", "--eval_steps", "2")
    printed = run.wait(600)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert errors, printed[-3000:]
    assert "the gradient of step 3 is not finite" in errors[0]
    assert f"--resume resumes from {tmp_path / 'run/checkpoint-2'}" in errors[0]


def copy_before_the_end(whole: Path, folder: Path) -> Path:
    output = folder / "run"
    shutil.copytree(whole, output)
    (output / "summary.json").unlink()
    return output
