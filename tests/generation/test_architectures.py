"""Architectures with rollouts from transformers and vLLM, an update of a server, and a merge: all as the model says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SIZES, refusal
from transformers import LlamaConfig, LlamaForCausalLM

from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.generation.vllm.cpu import cpu_length
from svf_rl.quickstart import model_path

pytestmark = pytest.mark.vllm


def measure(repository: Path, out: Path, *names: str) -> dict[str, dict[str, Any]]:
    """The cells of these architectures, each in a process with a vLLM of its own."""
    command = [sys.executable, str(repository / "benchmarks" / "architectures.py"), "--out", str(out), "--only", *names]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(repository)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())["architectures"]


# fused experts under other names than in the files
@pytest.mark.parametrize("names", [["qwen3_moe"], pytest.param([], marks=pytest.mark.slow)], ids=["one", "all"])
@pytest.mark.timeout(3600)
def test_every_cell_agrees_with_the_model_or_is_refused(names: list[str], repository: Path, tmp_path: Path) -> None:
    published = json.loads((repository / "benchmarks" / "results" / "architectures.json").read_text())["architectures"]
    names = names or list(published)
    for name, cells in measure(repository, tmp_path / "out.json", *names).items():
        for cell, value in cells.items():
            if isinstance(published[name][cell], str):
                # the rest may list names in any order
                assert str(value)[:80] == published[name][cell][:80], f"{name}, {cell}"
            else:
                assert value < max(1e-3, 1.5 * published[name][cell]), f"{name}, {cell}"


def test_without_a_length_the_cpu_takes_what_the_model_allows_and_at_most_4096(tmp_path: Path) -> None:
    for positions, expected in ((8192, 4096), (64, 64)):
        config = LlamaConfig(**{**SIZES, "max_position_embeddings": positions})
        LlamaForCausalLM(config).save_pretrained(tmp_path / str(positions))
        assert cpu_length(str(tmp_path / str(positions)), None, False) == expected


def test_an_engine_that_does_not_start_says_why_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["NoSuchForCausalLM"]}))
    settings: dict[str, Any] = {"dtype": torch.float32, "seed": 0, "device": "cpu", "enforce_eager": True}
    line = refusal(ColocatedVLLMGenerator, str(model_path()), max_model_len=10**6, **settings)
    assert line.startswith(f"vLLM does not start with {model_path()}: ")
    assert "1000000" in line
    assert "NoSuchForCausalLM" in refusal(ColocatedVLLMGenerator, str(tmp_path), max_model_len=64, **settings)
