"""Signals, and `--resume` as it is typed."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes import read_metrics, wait_until

import svf_rl.train
from svf_rl.cli import main
from svf_rl.storage.locks import hold_folder

SMALL = [
    "--use_vllm", "false", "--max_steps", "4", "--eval_steps", "2", "--save_steps", "2", "--train_items", "32",
    "--validation_items", "4", "--test_items", "4", "--per_device_train_batch_size", "8",
    "--max_completion_length", "24", "--report_to", "none", "--disable_tqdm",
]  # fmt: skip

# ---- what a process does at a signal ---------------------------------------------------------------------------------

WORK = """
import sys, time
from svf_rl.errors import one_line_errors
from svf_rl.training import run_context

run_context._SAME_REQUEST_SECONDS = 0.3
stop = run_context.StopRequest()
with one_line_errors() as outcome, stop.listening():
    print("loads", flush=True)
    if sys.argv[1] == "loads":
        time.sleep(30)
    with stop.waits_for_step():
        print("trains", flush=True)
        until = time.monotonic() + float(sys.argv[2])
        while time.monotonic() < until:
            time.sleep(0.01)
        print("update over", flush=True)
sys.exit(outcome.status)
"""


def work(phase: str, seconds: float = 0.5, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, phase, str(seconds)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert process.stdout is not None
    while process.stdout.readline().strip() != phase:
        assert process.poll() is None
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_update_under_way_is_finished(number: signal.Signals) -> None:
    process = work("trains", TORCHELASTIC_RUN_ID="some")
    process.send_signal(number)
    process.send_signal(number)  # from the launcher too
    printed, said = process.communicate(timeout=20)
    assert process.returncode == 75
    assert printed == "update over\n"
    (line,) = [line for line in said.splitlines() if line.startswith("stopped by ")]
    assert line.startswith(f"stopped by {'Ctrl-C' if number == signal.SIGINT else number.name} ")
    assert (len(said.split()) == len(line.split())) == (number != signal.SIGINT)  # which is answered at once


def test_ctrl_c_says_what_follows_and_a_second_one_ends_it_at_once() -> None:
    process = work("trains", 30)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline() == "\n"
    assert "with a checkpoint after the step under way; Ctrl-C once more" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT


def test_the_death_of_the_launcher_is_no_second_signal(tmp_path: Path) -> None:
    """However long after Ctrl-C it comes."""
    (tmp_path / "work.py").write_text(WORK)
    start = f"exec >{tmp_path}/log 2>&1; ACCELERATE_MIXED_PRECISION=no {sys.executable} {tmp_path}/work.py trains 2; :"
    launcher = subprocess.Popen(["sh", "-c", start], start_new_session=True)
    wait_until(lambda: (tmp_path / "log").is_file() and "trains" in (tmp_path / "log").read_text(), 60)
    (child,) = psutil.Process(launcher.pid).children()
    child.send_signal(signal.SIGINT)
    time.sleep(0.6)
    launcher.kill()
    launcher.wait(10)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 30)
    assert "update over\nstopped by Ctrl-C" in (tmp_path / "log").read_text().replace("ends at once\n", "")


def test_a_second_signal_ends_it_at_once() -> None:
    process = work("trains", 30)
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.6)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM


def test_where_there_is_no_update_to_wait_for_it_ends_at_once() -> None:
    process = work("loads")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 75
    assert said.count("\n") == 1


def test_one_process_of_several_speaks() -> None:
    process = work("loads", RANK="1")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 75


# ---- real runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(repository: Path) -> str:
    return str(repository / "recipes/quickstart.yaml")


@pytest.fixture(scope="module")
def whole(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert (
        main(["train", recipe, *SMALL, "--output_dir", str(output), "--resume"]) == 0
    )  # nothing there: it begins anew
    return output


def assert_same(whole: Path, other: Path) -> None:
    name = "adapter_model.safetensors"
    assert (whole / name).read_bytes() == (other / name).read_bytes()
    assert any(line.get("grad_norm") for line in read_metrics(whole))
    assert read_metrics(whole) == read_metrics(other)
    expected, found = (json.loads((folder / "summary.json").read_text()) for folder in (whole, other))
    for key in ("accuracy", "base_accuracy", "items", "updates", "best_checkpoint", "rows"):
        assert expected[key] == found[key]
    assert expected["seconds"].keys() == found["seconds"].keys()
    assert "resume_from_checkpoint" not in found["recipe"]


@pytest.fixture
def copied(whole: Path, tmp_path: Path, recipe: str) -> tuple[Path, Callable[..., int]]:
    """A copy of that folder to be damaged, and `train(*overrides)`, which goes on in it."""
    output = tmp_path / "run"
    subprocess.run(["cp", "-r", whole, output], check=True)
    return output, lambda *overrides: main(["train", recipe, *SMALL, "--output_dir", str(output), *overrides])


def test_a_run_that_has_ended_is_left_alone(copied: Any, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, train = copied
    assert train("--resume") == 0
    assert "has ended after 4 steps: nothing is left to do" in capsys.readouterr().out
    assert (output / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("left", ["adapter_model.safetensors", "README.md"])
def test_killed_while_the_adapter_was_saved_or_evaluated(copied: Any, whole: Path, left: str) -> None:
    output, train = copied
    (output / "summary.json").unlink()
    (output / left).write_bytes((output / left).read_bytes()[:100])
    assert train("--resume") == 0
    assert_same(whole, output)


def test_a_checkpoint_is_hashed_once_at_resume(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    output, train = copied
    (output / "summary.json").unlink()
    hashed, digest = Counter[str](), hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        hashed[str(Path(file.name).relative_to(output))] += 1
        return digest(file, name)

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", counted)
        assert train("--resume") == 0
    assert hashed["checkpoint-4/adapter_model.safetensors"] == 1
    assert set(hashed.values()) == {1}


def test_the_last_checkpoint_is_torn(copied: Any, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, train = copied
    (output / "summary.json").unlink()
    (output / "checkpoint-4/optimizer.pt").write_bytes(b"torn")
    assert train("--resume_from_checkpoint", "true") == 0
    assert "resuming after step 2" in capsys.readouterr().out
    assert_same(whole, output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "--learning_rate", "2e-2"], "learning_rate: 0.01 there, 0.02 here"),
        (["--resume", "--per_device_train_batch_size", "16"], "8 sequences a step"),
        (["--resume_from_checkpoint", "elsewhere"], "elsewhere is not a complete checkpoint"),
        (["--resume", "--resume_from_checkpoint", "auto"], "give one of them"),
    ],
)
def test_what_cannot_be_gone_on_with(
    copied: Any, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output, train = copied
    before = sorted(path.name for path in output.iterdir())
    assert train(*arguments) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert sorted(path.name for path in output.iterdir()) == before


def test_another_recipe_is_not_answered_with_the_result_of_a_run_that_left_no_checkpoints(
    copied: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    output, train = copied
    for folder in output.glob("checkpoint-*"):
        shutil.rmtree(folder)
    assert train("--resume", "--seed", "0") == 0  # what it is without being said
    assert "nothing is left to do" in capsys.readouterr().out
    assert train("--resume", "--beta", "0.5") == 1
    assert "has ended, and was made with other settings (beta: " in capsys.readouterr().err


def test_a_run_is_not_replaced_unless_that_is_said(copied: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether it has ended or not: the three ways on are named, and all is as it was."""
    output, train = copied
    for state in ("a finished run", "a run that has not ended"):
        before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
        assert train() == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert f"holds {state}" in line
        assert all(way in line for way in ("--resume ", "--output_dir ", "--overwrite_output_dir "))
        assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
        (output / "summary.json").unlink(missing_ok=True)
    assert train("--dry-run") == 0
    assert "note: " in (said := capsys.readouterr().out)
    assert "--overwrite_output_dir removes it" in said
    assert train("--resume", "--overwrite_output_dir") == 1
    assert "give one of them" in capsys.readouterr().err


def test_overwriting_removes_the_run_and_nothing_else(copied: Any) -> None:
    output, train = copied
    (output / "notes.txt").write_text("mine")
    (output / "runs/mine").mkdir(parents=True)
    (output / "runs/mine/events.txt").write_text("mine")
    (output / "merges.txt").write_text("of another tokenizer")
    steps = ["--max_steps", "1", "--eval_strategy", "no", "--load_best_model_at_end", "false"]
    assert train("--overwrite_output_dir", *steps) == 0
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-1"]
    assert not (output / "merges.txt").exists()
    assert json.loads((output / "summary.json").read_text())["updates"] == 1
    assert {path.name for path in output.rglob("*.txt")} == {"notes.txt", "events.txt"}


def test_what_cannot_be_loaded_leaves_the_run_that_was_to_be_overwritten(copied: Any) -> None:
    output, train = copied
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert train("--overwrite_output_dir", "--target_modules", "[nosuch]") == 1
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_true_needs_a_checkpoint(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--output_dir", str(tmp_path / "new"), "--resume_from_checkpoint", "true"]
    assert main(["train", recipe, *SMALL, *own]) == 1
    assert "holds no checkpoint to resume from" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_one_run_at_a_time_in_a_folder(
    copied: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, train = copied
    monkeypatch.setattr(svf_rl.train, "hold_folder", lambda folder, seconds: hold_folder(folder))
    with hold_folder(output):
        assert train("--overwrite_output_dir") == 1
    assert "another process is writing" in capsys.readouterr().err


def test_ctrl_c_before_the_first_step_keeps_the_folder(
    whole: Path, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here in the evaluation of the base model, by a reward that presses it once."""
    (tmp_path / "press.py").write_text(
        "import os, pathlib, signal\nfrom svf_rl.rewards import load_reward\n\nnumeric = load_reward('numeric')\n\n\n"
        "def press(**given):\n    here = pathlib.Path(__file__).with_suffix('.pressed')\n    if not here.exists():\n"
        "        here.touch()\n        os.kill(os.getpid(), signal.SIGINT)\n    return numeric(**given)\n"
    )
    own = [*SMALL, "--output_dir", str(tmp_path / "run"), "--rewards", f"{tmp_path}/press.py:press"]
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        assert main(["train", recipe, *own]) == 75
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "stopped by Ctrl-C outside the steps: --resume resumes" in capsys.readouterr().err
    assert (tmp_path / "run").is_dir()
    assert main(["train", recipe, *own]) == 1
    assert "holds a run that has not ended" in capsys.readouterr().err
    assert main(["train", recipe, *own, "--resume"]) == 0
    name = "adapter_model.safetensors"
    assert (whole / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGUSR1))]
)
def test_the_launcher_gets_the_signal(
    number: signal.Signals, whole: Path, recipe: str, repository: Path, tmp_path: Path
) -> None:
    """`accelerate launch` dies of it and tells its process nothing; the process stops as if it had been told. Ctrl-C
    comes to both. The run has no checkpoint yet and gets one."""
    output, log = tmp_path / "run", tmp_path / "log"
    said = f"stopped by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'} "
    with log.open("w") as file:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml",
             "svf_rl/train.py", recipe, *SMALL, "--output_dir", str(output)],
            cwd=repository, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    wait_until(lambda: (output / "metrics.jsonl").is_file() and any(line["step"] for line in read_metrics(output)), 400)
    if number == signal.SIGINT:
        os.killpg(launcher.pid, number)
    else:
        launcher.send_signal(number)
    launcher.wait(60)
    wait_until(lambda: said in log.read_text(), 120)
    with hold_folder(output, seconds=60):  # the process has ended
        assert log.read_text().count(said) == 1
        assert not [noise for noise in ("Triton", "real_accelerator", "pin_memory") if noise in log.read_text()]
        # the launcher prints a traceback of its own at Ctrl-C, before or after; ours would begin in train.py
        assert not re.findall(r'File ".*svf_rl/train(ing/run)?\.py"', log.read_text())
    assert main(["train", recipe, *SMALL, "--output_dir", str(output), "--resume"]) == 0
    assert_same(whole, output)
