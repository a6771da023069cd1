"""Train the quickstart for some updates on the completions of a live vLLM, which are recorded, or on recorded ones;
write its losses, its `z` by update and the values of DeepSpeed's buffer.

accelerate launch --config_file CONFIG tests/invariant/replay.py record|replay COMPLETIONS OUT [--key value ...]
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from transformers import TrainerCallback

from svf_rl.generation import Completion, CompletionGenerator, Sampling, SyncReport
from svf_rl.models.loading import load_adapted, load_tokenizer
from svf_rl.settings.dry_run import load_rewards
from svf_rl.settings.recipe import load_recipe
from svf_rl.svf.layer import svf_layers
from svf_rl.svf.sharding import gather_parameters
from svf_rl.tasks import find_task
from svf_rl.training.run_context import leave_process_group
from svf_rl.training.trainer import SVFReinforceTrainer


class Recording:
    """Completions by seed, which says where in the run they belong, with the prompt that they are of."""

    stale = False

    def __init__(self, path: Path, source: CompletionGenerator | None) -> None:
        self.path, self.source = path, source
        self.seen: dict[str, Any] = {} if source else json.loads(path.read_text())

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int], progress: bool = False
    ) -> list[Completion]:
        if self.source is None:
            entries = [self.seen[str(seed)] for seed in seeds]
            assert [prompt for prompt, *_ in entries] == list(prompts)
            return [Completion(tokens, logprobs, finished) for _, tokens, logprobs, finished in entries]
        completions = self.source.generate(prompts, sampling, seeds)
        for prompt, seed, c in zip(prompts, seeds, completions, strict=True):
            self.seen[str(seed)] = [list(prompt), c.token_ids, c.logprobs, c.finished]
        return completions

    def write(self) -> None:
        """Put the completions of all processes into the file; all of them call it together."""
        parts = gather_object([self.seen])
        if PartialState().is_main_process:
            self.path.write_text(json.dumps({seed: entry for part in parts for seed, entry in part.items()}))

    def loglikelihood(self, prompts: Sequence[list[int]], continuations: Sequence[list[int]]) -> list[list[float]]:
        raise NotImplementedError

    def sync(self, model: nn.Module, everything: bool = False) -> SyncReport:
        return SyncReport() if self.source is None else self.source.sync(model, everything)


class Trajectory(TrainerCallback):
    """`z` after every update, and the logged losses."""

    def __init__(self) -> None:
        self.z: list[list[float]] = []
        self.losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        parts = []
        for layer in svf_layers(model).values():
            with gather_parameters(layer.svf_z.parameters()):
                parts.append(layer.svf_z["default"].weight.detach().clone())
        self.z.append(torch.cat(parts).tolist())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def main(mode: str, completions: Path, out: Path, overrides: list[str]) -> None:
    recipe = load_recipe("recipes/quickstart.yaml", ["--output_dir", str(out) + ".run", *overrides])
    source = None
    if mode == "record":
        from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator

        source = ColocatedVLLMGenerator(
            recipe.model.location, dtype=torch.float32, seed=0, device="cpu", max_model_len=256, enforce_eager=True,
            tensor_parallel_size=recipe.training.vllm_tensor_parallel_size,
        )  # fmt: skip
    generator = Recording(completions, source)
    task = find_task(recipe.data.task)
    rewards = load_rewards(recipe.data)
    model = load_adapted(recipe.model, recipe.adapter)
    trajectory = Trajectory()
    trainer = SVFReinforceTrainer(
        model, list(rewards), recipe.training, task.load(recipe.data)["train"], None, load_tokenizer(recipe.model),
        callbacks=[trajectory], generator=generator,
    )  # fmt: skip
    trainer.train()
    if trainer.is_world_process_zero():
        found = {"z": trajectory.z, "losses": trajectory.losses}
        if trainer.is_deepspeed_enabled:
            found["gradient_buffer"] = trainer.model_wrapped.optimizer.reduce_bucket_size
        out.write_text(json.dumps(found))
    if source:
        generator.write()
    leave_process_group()


if __name__ == "__main__":
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
