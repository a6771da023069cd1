"""Saved adapters of the bundled model."""

from collections.abc import Callable
from pathlib import Path

import fakes
import pytest
from peft import LoraConfig


@pytest.fixture(scope="session")
def save_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`save_adapter("svf", by=0.1, seed=0)`: a folder with an SVF or LoRA adapter whose values were moved at random."""

    def save(kind: str, by: float, seed: int = 0, name: str | None = None) -> Path:
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        folder = tmp_path_factory.mktemp("adapters") / (name or kind)
        fakes.save_adapter(folder, lora if kind == "lora" else None, seed, by)
        return folder

    return save


@pytest.fixture(scope="session")
def svf_adapter(save_adapter: Callable[..., Path]) -> Path:
    """An SVF adapter on the MLPs."""
    return save_adapter("svf", by=0.15)


@pytest.fixture(scope="session")
def lora_adapter(save_adapter: Callable[..., Path]) -> Path:
    """A LoRA adapter on the attention, which the SVF adapter leaves alone."""
    return save_adapter("lora", by=0.15)
