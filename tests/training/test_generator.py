"""Which generator the settings give, and which they cannot."""

from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model
from transformers import AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig

from svf_rl.errors import SVFError
from svf_rl.generation.transformers_generator import TransformersGenerator
from svf_rl.quickstart import model_path
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.svf import SVFConfig
from svf_rl.training.generator import build_generator


def test_a_model_that_zero_3_shares_out_cannot_generate_by_itself(tmp_path: Path, tokenizer: Any) -> None:
    pytest.importorskip("deepspeed")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_path()), SVFConfig(task_type="CAUSAL_LM"))
    args = SVFReinforceConfig(output_dir=str(tmp_path), use_vllm=False, use_cpu=True)
    assert isinstance(build_generator(model, args, "cpu", [2], tokenizer), TransformersGenerator)
    settings = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})  # as TrainingArguments makes it under ZeRO-3
    with pytest.raises(SVFError, match=r"use_vllm=False cannot generate .* set use_vllm=True"):
        build_generator(model, args, "cpu", [2], tokenizer)
    del settings


def test_one_vllm_over_two_processes_needs_both(tmp_path: Path, tokenizer: Any) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_path()), SVFConfig(task_type="CAUSAL_LM"))
    args = SVFReinforceConfig(output_dir=str(tmp_path), use_vllm=True, use_cpu=True, vllm_tensor_parallel_size=3)
    with pytest.raises(SVFError, match="does not divide the model's 256 MLP columns"):
        build_generator(model, args, "cpu", [2], tokenizer)
