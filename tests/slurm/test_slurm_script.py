"""What `slurm/train.slurm` refuses before SLURM has a part in it."""

import os
import subprocess
from pathlib import Path

import pytest


def refusal(repository: Path, *arguments: str, **environment: str) -> str:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    done = subprocess.run(
        ["bash", "slurm/train.slurm", *arguments],
        cwd=repository,
        env={**outside, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "usage: sbatch --nodes=N"),
        (("a.yaml", "b.yaml", "c.yaml"), "usage: sbatch --nodes=N"),
        (("a.yaml", "--seed", "1"), "unknown option --seed: overrides of the recipe go after --"),
        (("--rollout-nodes",), "usage: sbatch"),
        (("--rollout-nodes", "two", "a.yaml"), "--rollout-nodes must be a whole number, not 'two'"),
        (("a.yaml",), "this is a batch script: start it with sbatch"),
    ],
)
def test_bad_arguments(repository: Path, arguments: tuple[str, ...], message: str) -> None:
    assert refusal(repository, *arguments).startswith(f"error: {message}")


def test_a_setup_file_that_is_not_there(repository: Path, tmp_path: Path) -> None:
    inside = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node0"}
    message = refusal(repository, "a.yaml", SVF_RL_SLURM_SETUP=str(tmp_path / "none.sh"), **inside)
    assert message == f"error: SVF_RL_SLURM_SETUP names {tmp_path}/none.sh, which cannot be read\n"


def test_nothing_is_left_in_the_temporary_folder(repository: Path, tmp_path: Path) -> None:
    refusal(repository, TMPDIR=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_script_names_no_cluster(repository: Path) -> None:
    head = [
        line for line in (repository / "slurm" / "train.slurm").read_text().splitlines() if line.startswith("#SBATCH")
    ]
    assert head
    assert not [
        line for line in head if any(word in line for word in ("partition", "account", "qos", "nodelist", "mem"))
    ]
