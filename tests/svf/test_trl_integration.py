"""`SVFConfig` as `peft_config` of TRL's own trainers, without any of ours."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from svf_rl.svf import SVFConfig, svf_layers

# What both trainers need to run small, on the CPU and quietly.
ARGUMENTS = {
    "max_steps": 2,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(60))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def mean_token_id(completion_ids: list[list[int]], **_: object) -> list[float]:
    """A reward that differs between completions, so that there is a gradient."""
    return [float(sum(ids)) / (1 + len(ids)) for ids in completion_ids]


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that is not trained, by its name in the base model."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): value.clone()
        for name, value in model.state_dict().items()
        if ".svf_" not in name
    }


def assert_only_z_moved(model: nn.Module, base: dict[str, Tensor]) -> None:
    after = base_weights(model)
    assert after.keys() == base.keys()
    assert all(torch.equal(value, base[name]) for name, value in after.items())
    vectors = [layer.svf_z["default"].weight for layer in svf_layers(model).values()]
    assert len(vectors) == 6
    for z in vectors:
        assert z.dtype == torch.float32
        assert 1e-4 < (z - 1).abs().max() < 0.1  # two steps of Adam at 1e-2


def grpo(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path, peft_config: SVFConfig | None
) -> GRPOTrainer:
    arguments = GRPOConfig(
        str(folder),
        **ARGUMENTS,
        beta=0.1,
        use_vllm=False,
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=6,
        seed=0,
    )
    prompts = Dataset.from_dict({"prompt": [f"w{i} w{i + 1}" for i in range(8)]})
    return GRPOTrainer(
        model=model,
        reward_funcs=mean_token_id,
        args=arguments,
        train_dataset=prompts,
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def test_sft_trainer(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    base = base_weights(llama)
    arguments = SFTConfig(str(tmp_path), **ARGUMENTS, per_device_train_batch_size=4, max_length=16)
    trainer = SFTTrainer(
        model=llama,
        args=arguments,
        train_dataset=Dataset.from_dict({"text": [f"w{i} w{i + 1} w{i + 2}" for i in range(16)]}),
        processing_class=tokenizer,
        peft_config=SVFConfig(),
    )
    trainer.train()
    assert_only_z_moved(trainer.model, base)


def test_sft_trainer_with_gradient_checkpointing_and_a_saved_adapter(
    make_llama: Callable, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, logits: Callable
) -> None:
    arguments = {**ARGUMENTS, "save_strategy": "steps", "save_steps": 2}
    trainer = SFTTrainer(
        model=make_llama(),
        args=SFTConfig(str(tmp_path), **arguments, per_device_train_batch_size=4, max_length=16),
        train_dataset=Dataset.from_dict({"text": [f"w{i} w{i + 1} w{i + 2}" for i in range(16)]}),
        processing_class=tokenizer,
        peft_config=SVFConfig(),
    )
    assert trainer.args.gradient_checkpointing
    trainer.train()
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path / "checkpoint-2")
    assert torch.equal(logits(loaded.eval()), logits(trainer.model.eval()))


def test_grpo_trainer(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    base = base_weights(llama)
    trainer = grpo(llama, tokenizer, tmp_path, SVFConfig())
    trainer.train()
    assert_only_z_moved(trainer.model, base)
    first, second = (entry["kl"] for entry in trainer.state.log_history if "kl" in entry)
    assert abs(first) < 1e-10  # the reference is the base, and z was 1
    assert second > 1e-10  # a step of 0.01 in a model whose predictions are nearly uniform


def test_grpo_trainer_copies_a_trained_adapter_as_its_reference(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, perturb: Callable
) -> None:
    model = perturb(get_peft_model(llama, SVFConfig()))
    trained = [layer.svf_z["default"].weight.clone() for layer in svf_layers(model).values()]
    trainer = grpo(model, tokenizer, tmp_path, None)
    trainer.train()
    for layer, z in zip(svf_layers(trainer.model).values(), trained, strict=True):
        assert torch.equal(layer.svf_z["ref"].weight, z)
        assert not layer.svf_z["ref"].weight.requires_grad
        assert not torch.equal(layer.svf_z["default"].weight, z)
    first = next(entry["kl"] for entry in trainer.state.log_history if "kl" in entry)
    assert abs(first) < 1e-10
