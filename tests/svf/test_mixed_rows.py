"""An adapter of its own for each row of a batch (`adapter_names`), as LoRA has it."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedModel

from svf_rl.errors import SVFError
from svf_rl.svf import SVFConfig

ROWS = ["b", "__base__", "a", "attention", "b"]


@pytest.fixture
def model(llama: PreTrainedModel) -> PeftModel:
    """With the adapters `a` and `b`, and `attention` on other layers."""
    moved = {"init": "random", "init_std": 0.3, "task_type": "CAUSAL_LM"}
    torch.manual_seed(3)
    model = get_peft_model(llama, SVFConfig(**moved), adapter_name="a")
    model.add_adapter("b", SVFConfig(parameterization="sigmoid", **moved))
    model.add_adapter("attention", SVFConfig(target_modules="attention", **moved))
    return model.eval()


@pytest.fixture
def rows(ids: Tensor) -> Tensor:
    return ids.repeat(3, 1)[: len(ROWS)]


@torch.no_grad()
def _alone(model: PeftModel, name: str, rows: Tensor) -> Tensor:
    if name == "__base__":
        with model.disable_adapter():
            return model(input_ids=rows).logits
    model.set_adapter(name)
    return model(input_ids=rows).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_is_that_of_its_adapter_alone(model: PeftModel, rows: Tensor, dtype: torch.dtype) -> None:
    model.to(dtype)
    expected = {name: _alone(model, name, rows) for name in set(ROWS)}
    with torch.no_grad():
        mixed = model(input_ids=rows, adapter_names=ROWS).logits
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    for row, name in enumerate(ROWS):
        torch.testing.assert_close(mixed[row], expected[name][row], **close)
    assert not torch.allclose(expected["a"], expected["b"], atol=1e-2)
    model.set_adapter("a")
    assert torch.equal(model(input_ids=rows).logits, expected["a"])  # nothing of it stays


def test_generation_follows_each_row(model: PeftModel, rows: Tensor) -> None:
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    for beams in (1, 3):
        mixed = model.generate(input_ids=rows, adapter_names=ROWS, num_beams=beams, **options)
        for row, name in enumerate(ROWS):
            if name != "__base__":
                model.set_adapter(name)
                assert torch.equal(model.generate(input_ids=rows, num_beams=beams, **options)[row], mixed[row])


def test_an_encoder_reads_each_row_once_for_all_beams() -> None:
    torch.manual_seed(0)
    sizes = {
        f"{part}_{what}": value
        for part in ("encoder", "decoder")
        for what, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    }
    base = BartForConditionalGeneration(BartConfig(vocab_size=40, d_model=16, max_position_embeddings=32, **sizes))
    config = SVFConfig(target_modules=["fc1", "fc2", "q_proj"], init="random", init_std=0.5, task_type="SEQ_2_SEQ_LM")
    model = get_peft_model(base, config, adapter_name="a").eval()
    rows = torch.arange(4, 16).view(2, 6)
    options = {"max_new_tokens": 6, "num_beams": 2, "do_sample": False}
    expected = model.generate(input_ids=rows, **options)
    mixed = model.generate(input_ids=rows, adapter_names=["a", "a"], **options)
    assert torch.equal(mixed, expected)


def test_what_cannot_be_chosen_is_said(model: PeftModel, rows: Tensor) -> None:
    with pytest.raises(ValueError, match="there is no adapter 'nosuch'; there are: a, b, attention"):
        model(input_ids=rows, adapter_names=["nosuch", *ROWS[1:]])
    with pytest.raises(ValueError, match="one adapter for each of 5 rows, not 2"):
        model(input_ids=rows, adapter_names=["a", "b"])
    with pytest.raises(SVFError, match="alora_offsets are for adapters of LoRA"):
        model(input_ids=rows, alora_offsets=[1] * 5)
    with pytest.raises(ValueError, match=r"call eval\(\) first"):
        model.train()(input_ids=rows, adapter_names=ROWS)
    model.eval().merge_adapter(["a"])
    with pytest.raises(ValueError, match="unmerge_adapter"):
        model(input_ids=rows, adapter_names=ROWS)
