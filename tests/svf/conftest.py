"""Small random models for the tests of the adapter, and what is done to them again and again."""

from collections.abc import Callable

import pytest
import torch
from fakes import SIZES
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from svf_rl.svf import svf_layers


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_llama() -> Callable[..., PreTrainedModel]:
    """`make_llama(seed=0, **config)`: two layers, hidden size 32; the same seed gives the same weights."""

    def make(seed: int = 0, **overrides: object) -> PreTrainedModel:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(LlamaConfig(**{**SIZES, **overrides})).eval()

    return make


@pytest.fixture
def llama(make_llama: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return make_llama()


@pytest.fixture
def ids() -> Tensor:
    """Token ids (2, 8)."""
    return torch.randint(3, 64, (2, 8), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def logits(ids: Tensor) -> Callable[[nn.Module], Tensor]:
    """`logits(model)`: (2, 8, vocabulary), without gradient."""

    @torch.no_grad()
    def run(model: nn.Module) -> Tensor:
        return model(input_ids=ids).logits

    return run


@pytest.fixture
def perturb() -> Callable[..., nn.Module]:
    """`perturb(model, adapter="default", seed=0)`: z = 1 + 0.2·noise, as if trained; returns the model."""

    @torch.no_grad()
    def run(model: nn.Module, adapter: str = "default", seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for layer in svf_layers(model).values():
            if adapter in layer.svf_z:
                z = layer.svf_z[adapter].weight
                z.add_(0.2 * torch.randn(z.shape, generator=generator))
        return model

    return run
