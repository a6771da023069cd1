"""An engine that ends, as each does when Python collects it, takes nothing along that others use."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch

from svf_rl.generation.sampling import Sampling
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.quickstart import model_path

pytestmark = pytest.mark.vllm

BEFORE_AND_AFTER = f"""
import gc
import os
import torch
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.generation.sampling import Sampling

def answer():
    engine = ColocatedVLLMGenerator({str(model_path())!r}, dtype=torch.float32, seed=0, device="cpu", max_model_len=64,
                           max_num_seqs=2, enforce_eager=True)
    return engine.generate([[1, 4, 5]], Sampling(4, temperature=0.0), [0])[0].token_ids

if __name__ == "__main__":
    connect = torch.distributed.init_process_group
    def watch(*args, **kwargs):
        assert os.environ["MASTER_PORT"] == "0", "a port that was free may be taken before it is bound"
        return connect(*args, **kwargs)
    torch.distributed.init_process_group = watch
    first = answer()
    torch.distributed.init_process_group = connect
    gc.collect()
    print("kept" if torch.distributed.is_initialized() else "ended")
    torch.distributed.init_process_group("gloo", init_method="tcp://localhost:0", rank=0, world_size=1)
    assert answer() == first
    gc.collect()
    print("kept" if torch.distributed.is_initialized() else "ended")
    torch.distributed.all_reduce(torch.ones(1))
    torch.distributed.destroy_process_group()
"""


def test_the_engines_beside_it_go_on(vllm_engine: ColocatedVLLMGenerator, prompts: list[list[int]]) -> None:
    greedy = Sampling(16, temperature=0.0)
    before = vllm_engine.generate(prompts, greedy, range(len(prompts)))
    other = ColocatedVLLMGenerator(
        str(model_path()), dtype=torch.float32, seed=0, device="cpu", max_model_len=64, max_num_seqs=2,
        enforce_eager=True,
    )  # fmt: skip
    gone = weakref.ref(other.model)
    del other
    gc.collect()
    assert gone() is None
    assert vllm_engine.generate(prompts, greedy, range(len(prompts))) == before


def test_the_last_ends_the_process_groups_unless_they_were_there_before_it() -> None:
    done = subprocess.run([sys.executable, "-c", BEFORE_AND_AFTER], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line for line in done.stdout.splitlines() if line in ("ended", "kept")] == ["ended", "kept"]
