"""A run by evolution strategies with a table in place of an engine; as a script FOLDER SIZE, one of its processes."""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from fakes import TableGenerator, nearness, tiny_llama_config
from transformers import AutoTokenizer, LlamaForCausalLM

from svf_rl.quickstart import model_path
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.svf import SVFConfig
from svf_rl.training.evolution import EvolutionTrainer
from svf_rl.training.run_context import leave_process_group


def evolve(folder: Path, size: int) -> None:
    """Train with `size` sequences in this process, and save."""
    tokenizer = AutoTokenizer.from_pretrained(model_path(), padding_side="left")
    torch.manual_seed(7)
    model = LlamaForCausalLM(tiny_llama_config(tokenizer)).eval()
    args = SVFReinforceConfig(
        output_dir=str(folder), use_cpu=True, report_to="none", objective="evolution_strategies", use_vllm=True,
        beta=0.0, num_generations=4, per_device_train_batch_size=size, max_steps=3,
        evolution_sigma=0.1, learning_rate=0.02, max_completion_length=4, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": f"How many? {i}"} for i in range(12)])
    trainer = EvolutionTrainer(
        model, nearness, args, rows, None, tokenizer, peft_config=SVFConfig(task_type="CAUSAL_LM"),
        generator=TableGenerator(tokenizer.eos_token_id, luck=0.1),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    evolve(Path(sys.argv[1]), int(sys.argv[2]))
    leave_process_group()
