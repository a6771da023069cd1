"""A run in which the environment of every other prompt fails; as a script FOLDER, one of two processes, each with one
prompt a step."""

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from episode_parts import Counter, Scripted
from fakes import tiny_llama_config
from transformers import AutoTokenizer, LlamaForCausalLM

from svf_rl.quickstart import model_path
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.svf import SVFConfig
from svf_rl.training.run_context import leave_process_group
from svf_rl.training.trainer import SVFReinforceTrainer


class Fails(Counter):
    def reset(self, fails: bool, **_: Any) -> None:
        if fails:
            raise RuntimeError("no world")
        super().reset()


def train(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path(), padding_side="left")
    torch.manual_seed(7)
    args = SVFReinforceConfig(
        output_dir=str(folder), use_cpu=True, report_to="none", use_vllm=True, beta=0.1, num_generations=2,
        per_device_train_batch_size=2, max_steps=2, max_completion_length=60, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    rows = [{"prompt": [{"role": "user", "content": f"What is {i}?"}], "fails": i == 1} for i in range(2)]
    SVFReinforceTrainer(
        LlamaForCausalLM(tiny_llama_config(tokenizer)).eval(), [], args, Dataset.from_list(rows),
        processing_class=tokenizer, peft_config=SVFConfig(task_type="CAUSAL_LM"), generator=Scripted(tokenizer),
        environment_factory=Fails,
    ).train()  # fmt: skip


if __name__ == "__main__":
    train(Path(sys.argv[1]))
    leave_process_group()
