"""What `slurm/train.slurm` refuses before SLURM has a part in it."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch


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
        (("--nodes=2", "a.yaml"), "unknown option --nodes=2: options of sbatch go before the script"),
        (
            ("--print", "--nodes", "two", "a.yaml"),
            "--print needs the numbers of --nodes and --gpus-per-node, not 'two'",
        ),
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


def printed(repository: Path, *arguments: str, **environment: str) -> list[str]:
    """What `--print` says in place of submitting: the commands of the steps."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "slurm/train.slurm", "--print", *arguments], cwd=repository, capture_output=True, text=True,
        timeout=300, env={**os.environ, "PATH": path, "PYTHONPATH": str(repository), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith("#")]


def test_print_says_what_each_step_would_run_and_makes_nothing(repository: Path, tmp_path: Path) -> None:
    decompose, train = printed(
        repository, "--nodes=2", "recipes/quickstart.yaml", "accelerate_configs/cpu_ddp.yaml", "--", "--seed", "3",
        "--output_dir", str(tmp_path / "run"), SVF_RL_CACHE=str(tmp_path / "cache"),
        SVF_RL_SRUN_OPTIONS="--container-image='/images/my svf.sqsh' --container-mounts=/scratch",
        NCCL_SOCKET_IFNAME="ib0",
    )  # fmt: skip
    words = [shlex.split(line) for line in (decompose, train)]
    for step in words:
        assert step[0] == "srun"
        assert {"--container-image=/images/my svf.sqsh", "--container-mounts=/scratch"} <= set(step)
    assert words[0][words[0].index("svf-rl") + 1] == "decompose"
    assert "--nodelist=NODE1" in words[0]
    assert "--nodelist=NODE1,NODE2" in words[1]
    start = words[1].index("python")  # that of the container, and not of this machine
    assert words[1][start : start + 3] == ["python", "-m", "svf_rl.launch.slurm_node"]
    assert words[1][-5:] == ["recipes/quickstart.yaml", "--seed", "3", "--output_dir", str(tmp_path / "run")]
    assert list(tmp_path.iterdir()) == []


def test_print_says_where_servers_would_run(repository: Path, tmp_path: Path) -> None:
    _, serve, train = printed(
        repository, "--nodes=3", "--rollout-nodes", "1", "recipes/quickstart.yaml", "accelerate_configs/cpu_ddp.yaml",
        SVF_RL_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert "--nodelist=NODE3" in shlex.split(serve)
    words = shlex.split(train)
    assert "--nodelist=NODE1,NODE2" in words
    assert words[words.index("--vllm_server_base_url") + 1].startswith("http://NODE3:")


@pytest.mark.skipif(torch.version.cuda is not None, reason="says what happens with a torch for the CPU")
def test_a_torch_for_the_cpu_is_found_before_anything_is_submitted(repository: Path, tmp_path: Path) -> None:
    asked = ("--print", "--nodes", "2", "--gpus-per-node", "8", "recipes/llama3_math.yaml")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    message = refusal(repository, *asked, PATH=path, PYTHONPATH=str(repository))
    assert "is built for the CPU, and each node has 8 GPU(s)" in message
    assert "make install EXTRA=cuda" in message


def test_the_script_names_no_cluster(repository: Path) -> None:
    head = [
        line for line in (repository / "slurm" / "train.slurm").read_text().splitlines() if line.startswith("#SBATCH")
    ]
    assert head
    assert not [
        line for line in head if any(word in line for word in ("partition", "account", "qos", "nodelist", "mem"))
    ]
