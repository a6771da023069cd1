"""Memory and steps of a trainer whose vLLM shares its weights, against one whose vLLM has whole weights of its own.

    python benchmarks/one_copy.py [--device cuda] [--shape 8b] [--out results.json]

The real trainer and its colocated engine, at several depths, with random weights and MLP weights adapted. Memory is
what both hold together once they stand, and the most that loading took (on CUDA of allocated tensors, else of the
resident set above what the imported libraries take; pages of files that are read while loading, which the system drops
at will, do not count for the most), less the cache of keys and values, which is of any size one likes.
Every run lives in a process of its own; at the greatest depth the two take turns, a step each.
"""

import gc
import os
import statistics
import tempfile
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import common
import torch
from common import (
    MLP,
    SHAPES,
    arguments,
    decompose_once,
    hardware,
    interleaved,
    peak_memory,
    random_llama,
    ratio,
    report,
    resident,
    running,
)
from datasets import Dataset
from peft import get_peft_model
from training_step import PHASES, OneStepAtATime
from transformers import AutoModelForCausalLM, AutoTokenizer

from svf_rl.quickstart import model_path
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.svf import SVFConfig
from svf_rl.training.trainer import SVFReinforceTrainer

LAYERS = {"small": (4, 8, 16), "8b": (32,)}
WEIGHTS = ("shared", "merged")


def contender(pipe: Connection, folder: str, weights: str, steps: int, device: str) -> None:
    """A process's life: sends the bytes held and their peak, then makes a step an order."""
    for library in ("deepspeed", "vllm", *(["vllm.v1.worker.cpu_worker"] if device == "cpu" else [])):
        import_module(library)  # so that it is not counted
    import_module("vllm.model_executor.models.llama")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokenizer, turns = AutoTokenizer.from_pretrained(folder, padding_side="left"), OneStepAtATime(pipe)
    rows = [{"prompt": " ".join(["How many?"] * (2 + i % 8))} for i in range(256)]
    with tempfile.TemporaryDirectory() as output:
        args = SVFReinforceConfig(
            output_dir=output,
            use_cpu=device == "cpu",
            per_device_train_batch_size=16,
            num_generations=8,
            max_steps=max(1, steps),
            learning_rate=1e-6,
            max_completion_length=64,
            use_vllm=True,
            vllm_weights=weights,
            vllm_enforce_eager=device == "cpu",
            vllm_max_model_length=256,
            vllm_gpu_memory_utilization=0.3,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        )
        gc.collect()
        before = 0 if device == "cuda" else resident()
        with peak_memory(device, mapped=False) as peak:
            model = get_peft_model(
                AutoModelForCausalLM.from_pretrained(folder, dtype=dtype),
                SVFConfig(target_modules=MLP, task_type="CAUSAL_LM"),
            )
            trainer = SVFReinforceTrainer(
                model,
                lambda completions, **_: [float(i % 2) for i in range(len(completions))],
                args,
                Dataset.from_list(rows),
                processing_class=tokenizer,
                callbacks=[turns],
            )
            gc.collect()
            most = peak()
        runner = trainer.generator.llm.llm_engine.model_executor.driver_worker.model_runner
        storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in _tensors(runner.kv_caches))}
        cache = sum(storages.values())
        held = torch.cuda.memory_allocated() if device == "cuda" else resident() - before
        found = {"held": held, "peak": most, "cache": cache}
        if steps:
            turns.phases = found  # sent before the first step
            trainer.train()
            found = None  # the answer to the last order
        pipe.send(found)


def _tensors(nested: Any) -> list[torch.Tensor]:
    if isinstance(nested, torch.Tensor):
        return [nested]
    return [tensor for part in nested for tensor in _tensors(part)]


def saved(folder: Path, shape: str, layers: int, device: str) -> str:
    """A random model as a folder, its factors in the cache."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    path = folder / str(layers)
    decompose_once(random_llama(SHAPES[shape].config(layers), dtype, device)).save_pretrained(path)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(path)
    gc.collect()
    torch.cuda.empty_cache()  # of a device that engines want for themselves
    return str(path)


def main() -> None:
    args = arguments(__doc__, __file__)
    # Large blocks straight from the system, so that a freed tensor leaves the resident set at once.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = str(1 << 20)
    repeats, warm_up = args.repeats or 8, 2
    memory: dict[str, dict[str, Any]] = {}
    phases: dict[str, dict[str, list[float]]] = {name: {phase: [] for phase in PHASES} for name in WEIGHTS}
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="svf-rl-benchmark-") as name:
        folder = Path(name)
        os.environ["SVF_RL_CACHE"] = str(folder / "factors")
        steps = repeats + warm_up + 1

        def step(weights: str) -> None:
            for phase, seconds in (orders[weights]("step") or {}).items():
                if phase in PHASES:
                    phases[weights][phase].append(seconds)

        for layers in LAYERS[args.shape]:
            path, memory[str(layers)] = saved(folder, args.shape, layers, args.device), {}
            for weights in WEIGHTS:
                # a GPU, which nobody else uses, has no room for both at once: there the last depth is timed here
                timed = args.device == "cuda" and layers == LAYERS[args.shape][-1]
                life = {weights: (path, weights, steps if timed else 0, args.device)}
                with running(contender, life, memory[str(layers)]) as orders:
                    print(layers, weights, memory[str(layers)][weights], flush=True)
                    if timed:
                        times[weights] = [common.seconds(partial(step, weights)) for _ in range(steps)][warm_up + 1 :]
                        print(times[weights], phases[weights], flush=True)
        if args.device == "cpu":
            with running(contender, {weights: (path, weights, steps, args.device) for weights in WEIGHTS}) as orders:
                for weights in WEIGHTS:
                    for _ in range(warm_up):
                        step(weights)
                times = interleaved({weights: partial(step, weights) for weights in WEIGHTS}, repeats)
    result = {
        "hardware": hardware(args.device),
        "shape": args.shape,
        "memory": memory,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "phases": {name: {p: statistics.median(v[-repeats:]) for p, v in phases[name].items()} for name in WEIGHTS},
        "step_ratio": ratio(times, "shared", "merged"),
    }
    own = {
        layers: {weights: {what: of[what] - of["cache"] for what in ("held", "peak")} for weights, of in found.items()}
        for layers, found in memory.items()
    }
    rows = [
        {"layers": layers, "weights": weights}
        | {f"{what}, MiB": f"{size / 2**20:.0f}" for what, size in found[weights].items()}
        | {"held / merged": f"{found[weights]['held'] / found['merged']['held']:.2f}"}
        for layers, found in own.items()
        for weights in WEIGHTS
    ]
    report(result, rows, args.out)
    print(result["seconds"], result["phases"], result["step_ratio"])


if __name__ == "__main__":
    main()
