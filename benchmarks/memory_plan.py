"""The peak memory of an update against what `svf-rl plan` says of it.

    python benchmarks/memory_plan.py [--device cuda] [--shape 8b] [--out results.json]

Models of two depths are trained for one update by the real trainer, with and without gradient checkpointing, each in a
fresh process; completions of a fixed length take the place of rollouts. What libraries and the interpreter take is the
same in all of them, so that differences are compared: of the peaks of the resident set (on CUDA: of allocated
tensors), and of the plans. Depth changes weights, factors and activations together; checkpointing and packing change
activations alone.
"""

import gc
import os
import shutil
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import yaml
from common import (
    MLP,
    SHAPES,
    arguments,
    decompose_once,
    hardware,
    peak_memory,
    random_llama,
    report,
    resident,
    running,
)
from datasets import Dataset
from transformers import AutoTokenizer

from svf_rl.generation import Completion, SyncReport
from svf_rl.memory.plan import Machine, MemoryPlan
from svf_rl.quickstart import model_path
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.settings.recipe import load_recipe
from svf_rl.svf import SVFConfig
from svf_rl.training.trainer import SVFReinforceTrainer

LAYERS = {"small": (4, 12), "8b": (4, 8)}
BATCH = {
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 192,
    "beta": 0.1,
    "learning_rate": 1e-3,
    "optim": "adamw_torch",
    "max_steps": 1,
}
# by name: index of the depth, gradient checkpointing, whether prompts are packed with their completions
RUNS = {
    "shallow": (0, False, True),
    "deep": (1, False, True),
    "shallow, checkpointed": (0, True, True),
    "deep, checkpointed": (1, True, True),
    "deep, padded": (1, False, False),
}
PAIRS = [
    ("deep", "shallow"),
    ("deep, checkpointed", "shallow, checkpointed"),
    ("deep", "deep, checkpointed"),
    ("deep, padded", "deep, checkpointed"),
]


class WholeCompletions:
    """CompletionGenerator that never end early: every completion has all its tokens."""

    stale = False

    def __init__(self) -> None:
        self.longest_prompt = 0

    def generate(
        self, prompts: Sequence[list[int]], sampling: Any, seeds: Sequence[int], progress: bool = False
    ) -> list[Completion]:
        self.longest_prompt = max(map(len, prompts))
        return [Completion([10 + seed % 100] * sampling.max_tokens, None, True) for seed in seeds]

    def sync(self, model: Any, everything: bool = False) -> SyncReport:
        return SyncReport()


def contender(pipe: Connection, shape: str, layers: int, checkpointing: bool, packed: bool, device: str) -> None:
    """A process's life: load, then one update; sends its peak in bytes, weights included, and the longest prompt."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = decompose_once(random_llama(SHAPES[shape].config(layers), dtype, device))
    tokenizer = AutoTokenizer.from_pretrained(str(model_path()), padding_side="left")
    generator = WholeCompletions()
    # of different lengths, as prompts are: padding takes an attention mask
    rows = [{"prompt": " ".join(["How many?"] * (60 + i))} for i in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SVFReinforceTrainer(
            model,
            lambda completions, **_: [float(i % 2) for i in range(len(completions))],
            SVFReinforceConfig(
                output_dir=folder,
                use_cpu=device == "cpu",
                gradient_checkpointing=checkpointing,
                train_packing="prompt" if packed else "none",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
                **BATCH,
            ),
            Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=SVFConfig(target_modules=MLP, task_type="CAUSAL_LM"),
            generator=generator,
        )
        gc.collect()
        pipe.send("ready")
        if pipe.recv() is None:
            return
        start = torch.cuda.memory_allocated() if device == "cuda" else resident()
        with peak_memory(device) as peak:
            trainer.train()
            found = start + peak()
    pipe.send((found, generator.longest_prompt))
    pipe.recv()


def planned(folder: Path, shape: str, layers: int, checkpointing: bool, packed: bool, prompt: int, dtype: str) -> int:
    """Bytes that the plan gives one GPU at the peak of an update, the allowance for CUDA apart."""
    SHAPES[shape].config(layers).save_pretrained(folder)
    values = {
        "model_name_or_path": str(folder), "dtype": dtype, "task": "quickstart", "use_vllm": False,
        "gradient_checkpointing": checkpointing, "train_packing": "prompt" if packed else "none", **BATCH,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    plan = MemoryPlan(load_recipe(folder / "recipe.yaml", gpus=1), Machine(1, 1, 10**12), prompt=prompt)
    each = plan.gpu(plan.run)
    assert each.activations is not None
    return sum(each.held.values()) + each.activations


def main() -> None:
    args = arguments(__doc__, __file__)
    dtype = "bfloat16" if args.device == "cuda" else "float32"
    # Large blocks straight from the system, so that a freed tensor leaves the resident set at once.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = str(1 << 20)
    folder = Path(tempfile.mkdtemp(prefix="svf-rl-benchmark-"))
    os.environ["SVF_RL_CACHE"] = str(folder / "factors")
    measured, plans = {}, {}
    try:
        for name, (depth, checkpointing, packed) in RUNS.items():
            layers = LAYERS[args.shape][depth]
            with running(contender, {name: (args.shape, layers, checkpointing, packed, args.device)}) as orders:
                measured[name], prompt = orders[name]("train")
            plans[name] = planned(folder, args.shape, layers, checkpointing, packed, prompt, dtype)
            print(f"{name}: measured {measured[name] / 2**20:.0f} MiB, planned {plans[name] / 2**20:.0f}", flush=True)
    finally:
        shutil.rmtree(folder)
    rows, pairs = [], []
    for more, less in PAIRS:
        found, said = measured[more] - measured[less], plans[more] - plans[less]
        pairs.append({"pair": [more, less], "measured_bytes": found, "planned_bytes": said, "ratio": said / found})
        rows.append(
            {
                "difference": f"{more} − {less}",
                "measured (MiB)": f"{found / 2**20:.0f}",
                "planned (MiB)": f"{said / 2**20:.0f}",
                "planned / measured": f"{said / found:.3f}",
            }
        )
    result = {
        "hardware": hardware(args.device), "shape": args.shape, "layers": LAYERS[args.shape],
        "measured_bytes": measured, "planned_bytes": plans, "pairs": pairs,
    }  # fmt: skip
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
