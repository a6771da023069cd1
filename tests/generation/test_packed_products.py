"""Weights that vLLM packs for a CPU, and those that must stay as they are."""

import pytest
import torch
from torch.nn import functional as F

from svf_rl.generation.vllm.cpu import plain_cpu_weights

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_are_packed_for_an_engine_of_its_own_alone(dtype: torch.dtype) -> None:
    from svf_rl.generation.vllm.factored.linear import packed_product

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=generator).to(dtype)
    part = torch.randn(5, 200, generator=generator).to(dtype)[:, 30:94]  # as of a product for several matrices
    with plain_cpu_weights():
        assert packed_product(weight) is None
    product = packed_product(weight)
    if dtype == torch.float32:  # half precision is packed where the CPU has instructions for it
        assert product is not None
    if product is not None:
        torch.testing.assert_close(product(part), F.linear(part, weight), rtol=2e-2, atol=1e-4)
    assert weight.shape == (96, 64)
