"""Saved adapters of the bundled model."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def save_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`save_adapter("svf", by=0.1, seed=0)`: a folder with an SVF or LoRA adapter whose values were moved at random."""

    def save(kind: str, by: float, seed: int = 0, name: str | None = None) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        from svf_rl.quickstart import model_path
        from svf_rl.svf import SVFConfig

        torch.manual_seed(seed)
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        config = SVFConfig(target_modules="mlp", task_type="CAUSAL_LM") if kind == "svf" else lora
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += by * torch.randn(parameter.shape)
        folder = tmp_path_factory.mktemp("adapters") / (name or kind)
        model.save_pretrained(folder)
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
