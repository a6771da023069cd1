"""One vLLM over two processes: each holds half of every weight, and both give the answers of the whole model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, LlamaConfig

from svf_rl.errors import SVFError
from svf_rl.generation.vllm.tensor_parallel import EngineRanks, check_divides, check_processes, find_undivided_part
from svf_rl.quickstart import model_path


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.distributed
def test_two_processes_are_one_engine(even_model: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("shared_engine.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(script), str(even_model), str(tmp_path)], capture_output=True, text=True, timeout=550,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "leaked" not in done.stderr
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["wrong weights"] == []
        for update in found["updates"]:
            assert update["other tokens"] == 0
            assert update["tokens"] > 60
            assert update["near ties"] < 0.05 * update["tokens"]
            assert update["log p"] < 1e-3
        assert found["sampled"] == 12
        assert found["sampled alike"]
        assert "300 tokens, of 256 that fit" in found["error"]
        assert found["processes after the end"] == 2


def test_an_engine_of_one_process_takes_what_it_is_given() -> None:
    items, own = EngineRanks(1).gather(["a", "b"])
    assert items[own] == ["a", "b"]


@pytest.mark.parametrize(
    ("size", "processes", "named"),
    [
        (2, 1, "start more"),
        (2, 3, r"\(2\) does not divide the number of processes \(3\)"),
        (4, 2, r"\(4\) does not divide the number of processes \(2\)"),
        (0, 2, "at least 1"),
    ],
)
def test_processes_that_are_no_whole_engines(size: int, processes: int, named: str) -> None:
    with pytest.raises(SVFError, match=named):
        check_processes(size, processes)


@pytest.mark.parametrize(("size", "processes"), [(1, 1), (1, 3), (2, 2), (2, 6), (8, 16)])
def test_processes_that_are_whole_engines(size: int, processes: int) -> None:
    check_processes(size, processes)


@pytest.mark.parametrize(
    ("size", "changes", "part"),
    [
        (2, {}, None),
        (8, {}, None),  # two key-value heads on four processes each
        (3, {}, "8 attention heads"),
        (4, {"num_attention_heads": 12, "num_key_value_heads": 6}, "6 key-value heads"),
        (4, {"intermediate_size": 510}, "510 MLP columns"),
        (
            5,
            {"num_attention_heads": 10, "num_key_value_heads": 5, "intermediate_size": 500},
            "448 tokens of the padded vocabulary",
        ),
        (8, {"vocab_size": 401}, None),  # vLLM pads it to 448
    ],
)
def test_what_of_a_model_cannot_be_shared_out(size: int, changes: dict[str, int], part: str | None) -> None:
    shape = {"vocab_size": 448, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 512, **changes}
    config = LlamaConfig(**shape, hidden_size=32 * shape["num_attention_heads"])
    assert find_undivided_part(config, size) == part


def test_the_bundled_model_has_three_heads() -> None:
    with pytest.raises(SVFError, match="does not divide the model's 3 attention heads: change it"):
        check_divides(AutoConfig.from_pretrained(model_path()), 2)
