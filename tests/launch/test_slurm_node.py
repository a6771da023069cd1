"""The launcher of one node: what it makes of the end of a process."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.launch.slurm_node import explain_end, keep_stderr_tail, launch_arguments, main, wait_until_visible


def test_accelerate_gets_the_jobs_numbers_and_the_run_always_resumes() -> None:
    known = argparse.Namespace(
        nodes=2, processes=8, address="first", port=15001, config="c.yaml", recipe=["r.yaml", "--seed", "1"]
    )
    words = " ".join(launch_arguments(known, "1"))
    assert (
        "--num_machines 2 --num_processes 16 --machine_rank 1 --main_process_ip first --main_process_port 15001"
        in words
    )
    assert words.endswith("--module svf_rl.train r.yaml --seed 1 --resume")


@pytest.mark.parametrize(
    ("status", "tail", "asked", "text"),
    [
        (-9, ["error: something"], False, "rank 3 on n was killed by SIGKILL (by the kernel, if memory ran out)"),
        (-11, [], False, "rank 3 on n was killed by SIGSEGV"),
        (1, ["warning", "error: bad key", "more noise"], False, "error: bad key"),
        (1, ["[rank3]: ValueError: mine", "[rank4]: KeyError: another's"], False,
         "rank 3 on n ended with exit status 1: [rank3]: ValueError: mine"),
        (1, ["torch.OutOfMemoryError: CUDA out of memory."], False,
         "rank 3 on n ended with exit status 1: torch.OutOfMemoryError: CUDA out of memory."),
        (7, ["nothing that says why"], False, "rank 3 on n ended with exit status 7"),
        (-signal.SIGUSR1, [], True, "stopped before training began: give the job more time (--time)"),
        (-signal.SIGUSR1, [], False, "rank 3 on n was killed by SIGUSR1"),
    ],
)  # fmt: skip
def test_the_reason_is_one_line(status: int, tail: list[str], asked: bool, text: str) -> None:
    got = explain_end(3, status, "n", tail, asked)
    assert (got.text, got.stopped, got.certain) == (text, False, True)


def test_a_run_that_stopped_after_a_checkpoint_did_not_fail() -> None:
    assert explain_end(0, 75, "n", ["stopped by SIGUSR1"], True).stopped


def test_a_lost_peer_is_no_reason_where_there_is_another() -> None:
    tail = ["[rank0]: RuntimeError: [gloo] Connection closed by peer [127.0.0.1]:1"]
    assert not explain_end(0, 1, "n", tail, False).certain


def test_a_file_that_does_not_show_up(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    wait_until_visible([tmp_path / "there"], "node1", within=0)
    with pytest.raises(
        SVFError, match=f"node1 does not see what the job's first node wrote to {tmp_path}: put output_dir"
    ):
        wait_until_visible([tmp_path / "there", tmp_path / "missing"], "node1", within=0)


def test_standard_error_is_kept_and_still_written(capfd: pytest.CaptureFixture[str]) -> None:
    script = r"import sys; sys.stderr.write('10%\r20%\rdone\nerror: ä\nrest')"
    with keep_stderr_tail() as tail:
        subprocess.run([sys.executable, "-c", script], check=True)
    assert list(tail) == ["done", "error: ä", "rest"]
    assert capfd.readouterr().err == "10%\r20%\rdone\nerror: ä\nrest"


def test_only_the_last_lines_are_kept() -> None:
    with keep_stderr_tail(lines=2) as tail:
        os.write(2, b"1\n2\n3")
    assert list(tail) == ["2", "3"]


@pytest.mark.distributed
def test_the_launcher_ends_with_the_line_of_its_process(repository: Path, tmp_path: Path) -> None:
    """A real `accelerate launch` of one process, with a recipe that is refused."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "svf_rl.launch.slurm_node", "--nodes", "1", "--processes", "1"),
            *("--address", "localhost", "--port", "0", "--job-folder", str(tmp_path)),
            *(str(repository / "accelerate_configs" / "cpu.yaml"), str(tmp_path / "none.yaml")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1] == f"failed: error: recipe {tmp_path}/none.yaml cannot be read: No such file or directory"
    assert list(tmp_path.iterdir()) == [tmp_path / "launcher.this node"]


def test_main_refuses_what_is_not_visible(tmp_path: Path, monkeypatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("svf_rl.launch.slurm_node.VISIBLE_WITHIN", 0.0)
    given = ["--nodes", "1", "--processes", "1", "--address", "a", "--port", "1", "--job-folder", str(tmp_path / "no")]
    assert main([*given, "config.yaml", "recipe.yaml"]) == 1
    assert capfd.readouterr().err.startswith("failed: error: this node does not see")
