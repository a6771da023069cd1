"""A small random base model in a folder, and experts of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import save_adapter, tiny_llama_config
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_base(seed=0, dtype=torch.float32, **config)`: two layers and the bundled tokenizer; its folder."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())

    def make(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Path:
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("models") / "small"
        LlamaForCausalLM(tiny_llama_config(tokenizer, **overrides)).to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def base(make_base: Callable[..., Path]) -> Path:
    return make_base()


@pytest.fixture
def make_expert(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """`make_expert(name, seed=1, size=0.2, on=base, dtype="auto", **SVFConfig)`: z = start + size·noise; its folder."""

    def make(name: str, seed: int = 1, size: float = 0.2, on: Path = base, dtype: str = "auto", **config: Any) -> Path:
        save_adapter(tmp_path / name, SVFConfig(task_type="CAUSAL_LM", **config), seed, size, base=on, dtype=dtype)
        return tmp_path / name

    return make


@pytest.fixture
def make_lora(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """`make_lora(name, **LoraConfig)`: as if trained; its folder."""

    def make(name: str, **config: Any) -> Path:
        torch.manual_seed(3)
        options = {"r": 4, "target_modules": ["up_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
        get_peft_model(load(base), LoraConfig(**{**options, **config})).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def logits() -> Callable[[nn.Module], torch.Tensor]:
    """`logits(model)`: of fixed token ids (2, 8), without gradient."""
    ids = torch.randint(3, 400, (2, 8), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def run(model: nn.Module) -> torch.Tensor:
        return model(input_ids=ids).logits

    return run


def load(folder: Path, adapter: Path | None = None, dtype: str = "auto") -> nn.Module:
    """The model in `folder`, with `adapter` on it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()


@pytest.fixture
def loaded() -> Callable[..., nn.Module]:
    return load


@pytest.fixture
def write_summary() -> Callable[..., None]:
    """`write_summary(folder, **changes)`: the summary of a run of the quickstart."""

    def write(folder: Path, **changes: Any) -> None:
        summary = {
            "recipe": {"model_name_or_path": "quickstart", "dtype": "float32", "task": "quickstart", "skill": "math",
                       "output_dir": "/somewhere/runs/sums", "learning_rate": 0.01, "max_completion_length": 8},
            "seed": 0, "base_accuracy": 0.5, "accuracy": 0.75, "items": 100, "updates": 30,
            "best_checkpoint": "checkpoint-20", "packages": {"torch": "2.13.0"},
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps({**summary, **changes}))

    return write
