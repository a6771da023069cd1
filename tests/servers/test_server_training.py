"""`svf_rl/train.py` with rollouts from a vLLM server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import refused_command
from safetensors.torch import load_file
from server_process import Server

from svf_rl.train import main

pytestmark = pytest.mark.vllm
SMALL = (
    "--max_steps 3 --validation_items 16 --test_items 32 --per_device_train_batch_size 16 --eval_strategy no "
    "--save_strategy no --load_best_model_at_end false --vllm_max_model_length 256 --disable_tqdm"
).split()


def train(repository: Path, output: Path, *options: str, processes: int = 1) -> list[dict]:
    """The lines of `metrics.jsonl` of a small run of the quickstart, in processes of its own."""
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    arguments = [sys.executable, *launch, "svf_rl/train.py", "recipes/quickstart.yaml", *SMALL, *options]
    done = subprocess.run(
        [*arguments, "--output_dir", str(output)],
        cwd=repository,
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return metrics_lines(output)


def metrics_lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def trained(output: Path) -> torch.Tensor:
    tensors = load_file(output / "adapter_model.safetensors")
    return torch.cat([value for name, value in sorted(tensors.items()) if "svf_z" in name])


@pytest.mark.parametrize("kind", ["server", "rows_server"])
def test_a_run_with_a_server_sends_z_alone(
    repository: Path, request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    url = request.getfixturevalue(kind).url
    own = ["--vllm_mode", "server", "--vllm_server_base_url", url, "--output_dir", str(tmp_path / "server")]
    assert main([str(repository / "recipes/quickstart.yaml"), *SMALL, *own]) == 0
    lines = metrics_lines(tmp_path / "server")
    sent = [line["sync/bytes"] for line in lines if "sync/bytes" in line]
    assert sent
    names = 200 if kind == "server" else 300  # for a row that of the layout too
    assert max(sent) < 4 * 864 * 4 / 3 + names
    assert (trained(tmp_path / "server") - 1).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["server", "rows_server"])
def test_a_run_learns_from_a_server_as_from_a_colocated_engine(
    repository: Path, request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    url = request.getfixturevalue(kind).url
    ours = train(repository, tmp_path / "server", "--vllm_mode", "server", "--vllm_server_base_url", url)
    theirs = train(repository, tmp_path / "colocated")
    a, b = trained(tmp_path / "server"), trained(tmp_path / "colocated")
    torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
    rewards = [[line["reward"] for line in run if "reward" in line] for run in (ours, theirs)]
    assert len(rewards[0]) == 3
    assert rewards[0] == pytest.approx(rewards[1], abs=0.1)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_share_two_servers(
    repository: Path, server: Server, second_server: Server, tmp_path: Path
) -> None:
    mode = ("--vllm_mode", "server", "--vllm_server_base_url")
    half = ("--per_device_train_batch_size", "8")
    train(repository, tmp_path / "two", *mode, f"{server.url},{second_server.url}", *half, processes=2)
    train(repository, tmp_path / "one", *mode, server.url)
    torch.testing.assert_close(trained(tmp_path / "two"), trained(tmp_path / "one"), rtol=0, atol=2e-3)


def test_a_run_without_a_server_ends_in_one_line_and_leaves_nothing(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--vllm_mode", "server", "--vllm_server_base_url", "http://127.0.0.1:9", "--vllm_server_timeout", "0.5"]
    recipe = str(repository / "recipes/quickstart.yaml")
    line = refused_command(capsys, "train", recipe, *options, "--output_dir", "run")
    assert "no vLLM server answers at http://127.0.0.1:9" in line
