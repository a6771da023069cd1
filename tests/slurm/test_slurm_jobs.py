"""Jobs of `slurm/train.slurm` on a real SLURM of two nodes."""

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from cluster import ENDED, Cluster, Job
from fakes import wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

# A few updates without vLLM: seconds of work, after half a minute of start-up for two processes on two cores.
SMALL = {
    "use_vllm": "false",
    "max_steps": "2",
    "eval_steps": "2",
    "save_steps": "2",
    "train_items": "64",
    "validation_items": "8",
    "test_items": "8",
    "per_device_train_batch_size": "8",
    "max_completion_length": "16",
}
DDP = "accelerate_configs/cpu_ddp.yaml"
ZERO3 = "accelerate_configs/cpu_zero3.yaml"
LAUNCHER = "svf_rl.launch.slurm_node"
RANK = "svf_rl.train"


class Submission:
    """Submits the script as a user does, from the repository, with a factor cache and an output folder of its own."""

    def __init__(self, cluster: Cluster, repository: Path, folder: Path) -> None:
        self.cluster = cluster
        self.repository = repository
        self.output = folder / "runs" / "job"
        self.cache = folder / "cache"

    def submit(
        self,
        *overrides: str,
        recipe: str = "recipes/quickstart.yaml",
        config: str | None = DDP,
        options: Sequence[str] = ("--nodes=2",),
        script_options: Sequence[str] = (),
        **environment: str,
    ) -> str:
        given = {**SMALL, "output_dir": str(self.output)}
        keys = [word for key, value in given.items() for word in (f"--{key}", value)]
        return self.cluster.submit(
            *(*options, "slurm/train.slurm", *script_options, recipe, *([config] if config else [])),
            *("--", *keys, *overrides),
            cwd=self.repository,
            environment={
                "PATH": f"{Path(sys.executable).parent}:{self.cluster.environment['PATH']}",
                "PYTHONPATH": str(self.repository),
                "OMP_NUM_THREADS": "1",
                "SVF_RL_CACHE": str(self.cache),
                "TORCH_EXTENSIONS_DIR": str(self.cluster.folder / "torch_extensions"),
                **environment,
            },
        )

    def wait(self, job: str, timeout: float = 800) -> Job:
        ended = self.cluster.wait(job, timeout)
        assert self.cluster.processes() == [], "processes of the job are left"
        assert list(self.output.parent.glob("**/.slurm-*")) == []
        assert list(self.cache.glob(".slurm-*")) == []
        return ended

    def updates(self) -> list[int]:
        """The updates that the run has logged, as they stand in its file of metrics."""
        log = self.output / "metrics.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [line["step"] for line in lines if "reward" in line]


@pytest.fixture
def job(cluster: Cluster, repository: Path, tmp_path: Path) -> Submission:
    return Submission(cluster, repository, tmp_path)


def updates_written(job: Submission, number: str, at_least: int) -> None:
    """Wait until the job has logged so many updates."""

    def far_enough() -> bool:
        assert job.cluster.facts(number)["JobState"] not in ENDED, job.cluster.job_log(number)[-4000:]
        return len(job.updates()) >= at_least

    wait_until(far_enough, 500)


@pytest.mark.distributed
@pytest.mark.parametrize("config", [DDP])
def test_two_nodes_train_one_adapter(job: Submission, config: str) -> None:
    ended = job.wait(job.submit(config=config))
    assert (ended.state, ended.status) == ("COMPLETED", 0), ended.log[-4000:]
    assert "8 × 2 (processes) × 1 (accumulated)" in ended.log
    assert ended.log.count("9 matrices, 0 of them cached before") == 1  # decomposed once, before training
    # torch's agent on one node may log that the other's, which keeps the store, has left before it
    said = [line for line in ended.log.splitlines() if line.strip() and "torch/distributed/elastic/agent" not in line]
    assert "test accuracy" in said[-1]
    summary = json.loads((job.output / "summary.json").read_text())
    assert summary["updates"] == 2
    assert (job.output / "adapter_model.safetensors").is_file()


@pytest.mark.vllm
@pytest.mark.distributed
@pytest.mark.parametrize("config", [ZERO3, DDP])
def test_two_nodes_with_a_vllm_on_each(job: Submission, config: str) -> None:
    ended = job.wait(job.submit("--use_vllm", "--vllm_enforce_eager", config=config), timeout=1500)
    assert (ended.state, ended.status) == ("COMPLETED", 0), ended.log[-4000:]
    assert json.loads((job.output / "summary.json").read_text())["updates"] == 2


@pytest.mark.vllm
def test_a_server_on_the_last_node(job: Submission) -> None:
    ended = job.wait(
        job.submit("--use_vllm", "--vllm_enforce_eager", config=None, script_options=("--rollout-nodes", "1")),
        timeout=1500,
    )
    assert (ended.state, ended.status) == ("COMPLETED", 0), ended.log[-4000:]
    assert "on node0 with 1 process(es) a node" in ended.log
    assert "servers on node1" in ended.log
    assert json.loads((job.output / "summary.json").read_text())["updates"] == 2


def test_one_node_needs_no_config(job: Submission) -> None:
    ended = job.wait(job.submit(config=None, options=("--nodes=1",)))
    assert ended.state == "COMPLETED", ended.log[-4000:]
    assert "accelerate_configs/cpu.yaml" in ended.log


# --- requeue


LONG = ("--max_steps", "60", "--eval_steps", "60", "--save_steps", "60")


@pytest.mark.distributed
def test_a_signalled_job_writes_a_checkpoint_is_requeued_and_goes_on(job: Submission, cluster: Cluster) -> None:
    number = job.submit(*LONG)
    updates_written(job, number, 3)
    cluster.run("scancel", "--batch", "--signal=USR1", number)  # as SLURM does before the time limit
    cluster.wait_for_log(number, "a checkpoint is written; back into the queue for run 2", timeout=200)
    ended = job.wait(number)
    assert (ended.state, ended.restarts) == ("COMPLETED", 1), ended.log[-4000:]
    assert json.loads((job.output / "summary.json").read_text())["updates"] == 60
    assert job.updates() == list(range(1, 61))  # none twice, none left out


@pytest.mark.distributed
def test_a_job_that_is_signalled_in_its_warm_up_goes_on_too(job: Submission, cluster: Cluster) -> None:
    number = job.submit(*LONG, "--warm_up_steps", "400", config=None, options=("--nodes=1",))
    log = job.output / "warm_up/metrics.jsonl"
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) >= 3, 500)
    cluster.run("scancel", "--batch", "--signal=USR1", number)
    cluster.wait_for_log(number, "a checkpoint is written; back into the queue for run 2", timeout=200)
    cluster.run("scancel", number)
    assert job.wait(number).restarts == 1


@pytest.mark.distributed
def test_a_time_limit_costs_no_more_than_a_requeue(job: Submission, cluster: Cluster) -> None:
    """SLURM's own signal, from a limit of five minutes that no run of this length fits into."""
    number = job.submit(*LONG, "--max_steps", "100000", options=("--nodes=2", "--time=5", "--signal=B:USR1@60"))
    cluster.wait_for_log(number, "a checkpoint is written; back into the queue for run 2", timeout=500)
    stopped_after = job.updates()[-1]
    updates_written(job, number, stopped_after + 3)
    cluster.run("scancel", number)
    assert job.wait(number).restarts == 1
    assert job.updates() == list(range(1, job.updates()[-1] + 1))


@pytest.mark.distributed
def test_a_job_stopped_before_its_first_update_is_not_requeued_for_ever(job: Submission, cluster: Cluster) -> None:
    number = job.submit(*LONG)
    wait_until(lambda: len(cluster.processes(command=RANK)) >= 2, 500)
    cluster.run("scancel", "--batch", "--signal=USR1", number)
    ended = job.wait(number)
    assert (ended.state, ended.restarts) == ("FAILED", 0)
    assert ended.last_line.startswith("error: stopped before ")
    assert ended.last_line.endswith(": give the job more time (--time)")


# --- bad ends


@pytest.mark.distributed
def test_a_killed_rank_ends_the_job_at_once_and_the_last_line_says_which(job: Submission, cluster: Cluster) -> None:
    number = job.submit(*LONG, "--max_steps", "2000")
    updates_written(job, number, 2)
    [rank] = cluster.processes(node="node1", command=RANK)
    killed = time.monotonic()
    rank.send_signal(signal.SIGKILL)
    ended = job.wait(number)
    assert time.monotonic() - killed < 30
    assert (ended.state, ended.status) == ("FAILED", 1)
    assert ended.last_line.startswith("error: rank 1 on node1 was killed by SIGKILL")


@pytest.mark.distributed
def test_a_killed_launcher_ends_the_job_too(job: Submission, cluster: Cluster) -> None:
    number = job.submit(*LONG, "--max_steps", "2000")
    updates_written(job, number, 1)
    [launcher] = [p for p in cluster.processes(node="node1", command=LAUNCHER) if p.children()]
    launcher.send_signal(signal.SIGKILL)
    ended = job.wait(number)
    assert ended.state == "FAILED"
    assert ended.last_line == "error: node1: task 1: Killed"


@pytest.mark.distributed
def test_a_cancelled_job_leaves_nothing_behind(job: Submission, cluster: Cluster) -> None:
    number = job.submit(*LONG, "--max_steps", "2000")
    updates_written(job, number, 1)
    cluster.run("scancel", number)
    assert job.wait(number).state == "CANCELLED"


def test_a_bad_recipe_is_the_last_line(job: Submission) -> None:
    ended = job.wait(job.submit("--learning_rat", "1e-3"))
    assert (ended.state, ended.status) == ("FAILED", 1)
    assert ended.last_line == "error: unknown recipe key 'learning_rat'; the nearest one is 'learning_rate'"
    assert not job.output.exists()


@pytest.mark.distributed
def test_what_only_training_finds_out_is_the_last_line_too(job: Submission, tmp_path: Path) -> None:
    model = tmp_path / "model"
    from svf_rl.quickstart import model_path

    shutil.copytree(model_path(), model)
    (model / "tokenizer.json").unlink()
    ended = job.wait(job.submit("--model_name_or_path", str(model)))
    assert (ended.state, ended.status) == ("FAILED", 1)
    assert ended.last_line.startswith(f"error: no tokenizer in {model}")


def test_a_config_for_one_process_on_two_nodes_is_refused(job: Submission) -> None:
    ended = job.wait(job.submit(config="accelerate_configs/cpu.yaml"))
    assert ended.status == 1
    assert ended.last_line.startswith("error: accelerate_configs/cpu.yaml is for one process, and 2 nodes × 1 are 2")


def test_a_config_for_gpus_on_nodes_without_is_refused(job: Submission) -> None:
    ended = job.wait(job.submit(config="accelerate_configs/multi_gpu.yaml"))
    assert "trains on GPUs and this node has none" in ended.last_line


def test_a_cache_that_the_other_node_does_not_see(job: Submission, cluster: Cluster) -> None:
    if not cluster.has_private_folder:
        pytest.skip("a folder that node1 does not share needs root and unshare")
    cache = cluster.private_folder / "cache"
    ended = job.wait(job.submit(SVF_RL_CACHE=str(cache)))
    assert ended.status == 1
    assert ended.last_line.startswith(f"error: node1 does not see what the job's first node wrote to {cache}")


def test_a_port_in_use(job: Submission) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = job.wait(job.submit(SVF_RL_PORT=str(port)))
    assert ended.last_line == f"error: port {port} of node0 is in use: set SVF_RL_PORT to a free one"


# --- the user's environment


def test_options_of_srun_reach_every_step_that_computes(job: Submission, tmp_path: Path) -> None:
    """As those of a container would; here a program that SLURM runs before each task."""
    prolog = tmp_path / "before each task.sh"
    prolog.write_text(f'#!/bin/sh\n: >"{tmp_path}/step-$SLURM_STEP_ID"\necho export SVF_RL_SEEN=$SLURM_STEP_ID\n')
    prolog.chmod(0o755)
    ended = job.wait(job.submit(config=None, options=("--nodes=1",), SVF_RL_SRUN_OPTIONS=f"--task-prolog='{prolog}'"))
    assert ended.state == "COMPLETED", ended.log[-4000:]
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-0", "step-1"]  # decompose, train


def test_the_setup_file_is_read_first(job: Submission, tmp_path: Path) -> None:
    setup = tmp_path / "setup.sh"
    setup.write_text(
        f"export PATH={Path(sys.executable).parent}:$PATH\nexport SETUP_WAS_READ=1\necho $UNSET_VARIABLE set up\n"
    )
    path = os.environ["PATH"].replace(str(Path(sys.executable).parent), "")
    ended = job.wait(job.submit("--seed", "x", PATH=f"{path}:/usr/sbin", SVF_RL_SLURM_SETUP=str(setup)))
    assert "set up" in ended.log
    assert ended.last_line.startswith("error: ")
    assert "seed" in ended.last_line
