"""Models on the bundled weights, engines and prompts."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fakes import adapted_model
from peft import PeftConfig, PeftModel

from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig


def _rng_states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.fixture(scope="session")
def bf16_build() -> tuple[ColocatedVLLMGenerator, Any, Any]:
    """A second engine, with the states of the process's generators before and after it was built."""
    torch.manual_seed(1234)
    random.seed(5)
    np.random.seed(6)
    before = _rng_states()
    engine = ColocatedVLLMGenerator(
        str(model_path()), dtype=torch.bfloat16, seed=0, device="cpu", max_model_len=256, max_num_seqs=64,
        enforce_eager=True,
    )  # fmt: skip
    return engine, before, _rng_states()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def engine_of_both_types(request: pytest.FixtureRequest) -> tuple[ColocatedVLLMGenerator, torch.dtype]:
    """An engine and its type."""
    if request.param == torch.float32:
        return request.getfixturevalue("vllm_engine"), torch.float32
    return request.getfixturevalue("bf16_build")[0], torch.bfloat16


@pytest.fixture
def adapted() -> Callable[..., PeftModel]:
    """`adapted(config, dtype)`: the bundled model with an adapter whose trained values are all away from the start."""

    def build(config: PeftConfig | None = None, dtype: torch.dtype = torch.float32, seed: int = 0) -> PeftModel:
        config = config or SVFConfig(target_modules="mlp+attention", task_type="CAUSAL_LM")
        return adapted_model(config, seed, by=0.2, dtype=dtype)

    return build
