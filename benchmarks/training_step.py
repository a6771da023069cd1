"""A whole training step of the quickstart with SVF against the same step with LoRA.

    python benchmarks/training_step.py [--device cuda] [--out results.json]

A step is rollouts by vLLM, rewards, the update, the sync of the weights, and the metrics, with the settings of
`recipes/quickstart.yaml`. Each trainer lives in a process of its own; they take turns, one step each. The learning rate
is so small that both policies stay the base model, and so draw the same completions; the sync happens all the same.
The first steps, which fill caches, are not counted.
"""

import os
import statistics
import tempfile
from multiprocessing.connection import Connection
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from common import MLP, arguments, hardware, interleaved, ratio, report, running
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from svf_rl.quickstart import make_rows, model_path
from svf_rl.rewards import load_reward
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.svf import SVFConfig
from svf_rl.training.trainer import SVFReinforceTrainer

ADAPTERS = {
    "svf": lambda: SVFConfig(target_modules=MLP, task_type="CAUSAL_LM"),
    "lora": lambda: LoraConfig(r=8, lora_alpha=16, target_modules=MLP, task_type="CAUSAL_LM"),
}
PHASES = ("rollout", "reward", "sync", "update")


class OneStepAtATime(TrainerCallback):
    """Before every step, report the phases of the last one and wait for an order."""

    def __init__(self, pipe: Connection):
        self._pipe, self.phases = pipe, None

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._pipe.send(self.phases)
        self._pipe.recv()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.phases = {name: logs[f"time/{name}"] for name in PHASES if logs and f"time/{name}" in logs}


def contender(pipe: Connection, adapter: str, steps: int, device: str) -> None:
    """A process's life: a trainer that makes one step an order."""
    path = str(model_path())
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in make_rows("math", "train", 2048)]
    with tempfile.TemporaryDirectory() as folder:
        args = SVFReinforceConfig(
            output_dir=folder,
            use_cpu=device == "cpu",
            per_device_train_batch_size=64,
            num_generations=4,
            max_steps=steps,
            learning_rate=1e-6,
            beta=0.1,
            max_grad_norm=1.0,
            max_completion_length=48,
            use_vllm=True,
            vllm_enforce_eager=True,
            vllm_max_model_length=256,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        )
        trainer = SVFReinforceTrainer(
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
            load_reward("numeric"),
            args,
            Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[OneStepAtATime(pipe)],
            peft_config=ADAPTERS[adapter](),
        )
        trainer.train()
    pipe.send(None)  # the answer to the last order


def main() -> None:
    args = arguments(__doc__, __file__)
    repeats, warm_up = args.repeats or 20, 2
    phases: dict[str, dict[str, list[float]]] = {name: {phase: [] for phase in PHASES} for name in ADAPTERS}
    with running(contender, {name: (name, repeats + warm_up + 1, args.device) for name in ADAPTERS}) as orders:

        def step(name: str) -> None:
            for phase, seconds in (orders[name]("step") or {}).items():
                phases[name][phase].append(seconds)

        for name in ADAPTERS:
            for _ in range(warm_up):
                step(name)
        times = interleaved({name: lambda name=name: step(name) for name in ADAPTERS}, repeats)
    result = {
        "hardware": hardware(args.device),
        "repeats": repeats,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "phases": {name: {p: statistics.median(v[-repeats:]) for p, v in phases[name].items()} for name in ADAPTERS},
        "ratio": ratio(times, "svf", "lora"),
    }
    rows = [
        {"adapter": name, "step (s)": f"{result['seconds'][name]:.3f}"}
        | {f"{phase} (s)": f"{result['phases'][name][phase]:.3f}" for phase in PHASES}
        | {"svf / lora": f"{result['ratio']:.3f}" if name == "svf" else ""}
        for name in ADAPTERS
    ]
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
