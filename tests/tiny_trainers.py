"""A tiny model, scripted completions, and a trainer around them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedGenerator, tiny_llama_config


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The tokenizer of the bundled model."""
    from transformers import AutoTokenizer

    from svf_rl.quickstart import model_path

    return AutoTokenizer.from_pretrained(model_path(), padding_side="left")


@pytest.fixture
def tiny_llama(tokenizer: Any) -> Callable[..., Any]:
    """`tiny_llama(tied=True)`: a random Llama of 2 layers with opinions of its own."""

    def build(tied: bool = True) -> Any:
        import torch
        from transformers import LlamaForCausalLM

        torch.manual_seed(7)
        return LlamaForCausalLM(tiny_llama_config(tokenizer, tie_word_embeddings=tied)).eval()

    return build


@pytest.fixture
def scripted(tokenizer: Any) -> Callable[..., ScriptedGenerator]:
    """`scripted(longest=6)`: new [`ScriptedGenerator`]."""
    return lambda **options: ScriptedGenerator(tokenizer.eos_token_id, **options)


def plus_minus(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """+1 or −1 by the parity of the tokens' sum."""
    return [1.0 if sum(ids) % 2 else -1.0 for ids in completion_ids]


@pytest.fixture
def parity_reward() -> Callable[..., list[float]]:
    """[`plus_minus`]"""
    return plus_minus


@pytest.fixture
def make_trainer(tiny_llama: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """`make_trainer(generator=…, **settings)`: a trainer of one update of plain SGD on 16 prompts of different lengths,
    without KL, clipping or decay, unless the settings say otherwise."""
    runs = iter(range(100))

    def build(
        model: Any = None,
        reward: Any = plus_minus,
        peft_config: Any = None,
        generator: Any = None,
        eval_items: int = 0,
        callbacks: Any = None,
        trainer_class: Any = None,
        train_rows: Any = None,
        **settings: Any,
    ) -> Any:
        from datasets import Dataset

        from svf_rl.settings.config import SVFReinforceConfig
        from svf_rl.svf import SVFConfig
        from svf_rl.training.trainer import SVFReinforceTrainer

        defaults: dict[str, Any] = {
            "output_dir": str(tmp_path / f"run{next(runs)}"), "use_cpu": True, "report_to": "none",
            "per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 1, "max_completion_length": 6,
            "save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False, "learning_rate": 0.1,
            "optim": "sgd", "max_grad_norm": 0.0, "beta": 0.0, "advantage": "none",
        }  # fmt: skip
        rows = [{"prompt": " ".join(["How many?"] * (1 + i % 5)) + f" {i}", "item": i} for i in range(32)]
        return (trainer_class or SVFReinforceTrainer)(
            tiny_llama() if model is None else model,
            reward,
            SVFReinforceConfig(**{**defaults, **settings}),
            Dataset.from_list(rows[:16]) if train_rows is None else train_rows,
            Dataset.from_list(rows[16 : 16 + eval_items]) if eval_items else None,
            tokenizer,
            peft_config=SVFConfig(task_type="CAUSAL_LM") if peft_config is None else peft_config or None,
            generator=generator,
            callbacks=callbacks,
        )

    return build


@pytest.fixture
def z_of() -> Callable[[Any], dict[str, Any]]:
    """`z_of(trainer)`: a copy of every trained vector, by the name of the weight it scales."""

    def read(trainer: Any) -> dict[str, Any]:
        from svf_rl.svf import svf_layers

        layers = svf_layers(trainer.accelerator.unwrap_model(trainer.model).get_base_model())
        return {f"{n}.weight": layer.svf_z["default"].weight.detach().clone() for n, layer in layers.items()}

    return read
