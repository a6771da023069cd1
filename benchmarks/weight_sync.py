"""Bringing a colocated vLLM up to date: this package's sync against TRL's merge-and-push.

    python benchmarks/weight_sync.py [--device cuda] [--shape 8b] [--out results.json]

Both push the same SVF model into the same engine, in turns: seconds, bytes pushed, and the peak of the memory that
tensors take during one sync, above what was there before it, in units of the largest adapted matrix in fp32. Models of
several depths show what grows with the number of layers. Both rebuild each matrix by the same function, whose seconds
stand beside those of one matrix product in fp32, which rounds less exactly.
"""

import gc
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from accelerate import Accelerator
from common import (
    MLP,
    SHAPES,
    arguments,
    decompose_once,
    hardware,
    interleaved,
    random_llama,
    ratio,
    report,
    saved_model,
)
from peft import PeftModel, get_peft_model
from torch import nn
from torch.profiler import ProfilerActivity, profile
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration

from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.svf import SVFConfig, SVFLinear, svf_layers


def trl_sync(model: PeftModel, engine: ColocatedVLLMGenerator, accelerator: Accelerator) -> Callable[[], None]:
    """TRL's own path. Its constructor would build a second engine, so the object is made without it and given what
    `sync_weights` reads."""
    generation = object.__new__(VLLMGeneration)
    generation.model, generation.llm, generation.accelerator = model, engine.llm, accelerator
    generation._dist = DistributedBackend(accelerator)
    generation.mode, generation.enable_sleep_mode = "colocate", False
    return generation.sync_weights


def bytes_loaded(module: nn.Module, sync: Callable[[], Any]) -> int:
    """Bytes handed to `module.load_weights` during `sync`."""
    total, original = 0, module.load_weights

    def counting(weights: Any) -> Any:
        nonlocal total
        weights = list(weights)
        total += sum(w.numel() * w.element_size() for _, w in weights)
        return original(weights)

    module.load_weights = counting
    try:
        sync()
    finally:
        del module.load_weights
    return total


def peak_of_tensors(sync: Callable[[], Any], device: str) -> int:
    """Bytes of tensors at the peak of `sync`, above those at its start."""
    if device == "cuda":
        torch.cuda.synchronize()
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        sync()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - start
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        sync()
    used = peak = 0
    events = profiler.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        used += event.nbytes()
        peak = max(peak, used)
    return peak


@torch.no_grad()
def one_product(layer: SVFLinear) -> torch.Tensor:
    """`W'` by one product in fp32, without any repair."""
    f, delta = layer.svf_factors, layer.svf_factors.s * (layer.multiplier("default") - 1)
    return torch.addmm(layer.base_weight().float(), f.U * delta, f.Vt.float()).to(f.U.dtype)


def measure(shape: str, layers: int, dtype_name: str, device: str, repeats: int) -> dict[str, Any]:
    """One row, in a process of its own: one engine, one SVF model away from `z = 1`, both syncs in turns."""
    dtype = getattr(torch, dtype_name)
    with tempfile.TemporaryDirectory() as folder:
        saved_model(folder, SHAPES[shape].config(layers), dtype, device)
        if device == "cuda":  # vLLM measures what is free
            gc.collect()
            torch.cuda.empty_cache()
        engine = ColocatedVLLMGenerator(
            folder, dtype=dtype, seed=0, device=device, max_model_len=256, max_num_seqs=8, enforce_eager=True
        )
    base = random_llama(SHAPES[shape].config(layers), dtype, device)
    model = get_peft_model(decompose_once(base), SVFConfig(target_modules=MLP))
    generator = torch.Generator().manual_seed(0)
    for layer in svf_layers(model).values():
        z = layer.svf_z["default"].weight
        z.data += 0.05 * torch.randn(z.shape, generator=generator).to(z.device)
    syncs = {"ours": lambda: engine.sync(model), "trl": trl_sync(model, engine, Accelerator(cpu=device == "cpu"))}
    times = interleaved(syncs, repeats)
    first = {name.rpartition(".")[2]: layer for name, layer in list(svf_layers(model).items())[: len(MLP)]}
    rebuilds = {kind: layer.merged_weight for kind, layer in first.items()}
    products = {f"{kind}, one product": partial(one_product, layer) for kind, layer in first.items()}
    matrix = 4 * max(layer.in_features * layer.out_features for layer in svf_layers(model).values())
    return {
        "layers": layers,
        "dtype": dtype_name,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "ratio": ratio(times, "ours", "trl"),
        "matrix_seconds": {
            name: statistics.median(values) for name, values in interleaved(rebuilds | products, repeats).items()
        },
        "bytes_pushed": {name: bytes_loaded(engine.model, sync) for name, sync in syncs.items()},
        "peak_matrices_fp32": {name: peak_of_tensors(sync, device) / matrix for name, sync in syncs.items()},
    }


def main() -> None:
    args = arguments(__doc__, __file__)
    repeats = args.repeats or 5
    os.environ["SVF_RL_CACHE"] = cache = tempfile.mkdtemp(prefix="svf-rl-benchmark-")
    dtypes = ["bfloat16", "float32"] if args.shape == "small" else ["bfloat16"]
    depths = [4, 8, 16] if args.shape == "small" else [32, 16]
    measurements = []
    # An engine cannot be taken down within its process, so each has one of its own.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for dtype in dtypes:
            for layers in depths:
                call = pool.submit(measure, args.shape, layers, dtype, args.device, repeats)
                measurements.append(call.result())
                print(measurements[-1], flush=True)
                result = {
                    "hardware": hardware(args.device), "shape": args.shape, "repeats": repeats, "syncs": measurements,
                }  # fmt: skip
                report(result, [row(m) for m in measurements], args.out)
    shutil.rmtree(cache)


def row(m: dict[str, Any]) -> dict[str, str]:
    return {
        "model": f"{m['layers']} layers, {m['dtype']}",
        "ours (s)": f"{m['seconds']['ours']:.2f}",
        "TRL (s)": f"{m['seconds']['trl']:.2f}",
        "ours / TRL": f"{m['ratio']:.2f}",
        "ours pushed (MB)": f"{m['bytes_pushed']['ours'] / 1e6:.0f}",
        "TRL pushed (MB)": f"{m['bytes_pushed']['trl'] / 1e6:.0f}",
        "ours peak (matrices)": f"{m['peak_matrices_fp32']['ours']:.2f}",
        "TRL peak (matrices)": f"{m['peak_matrices_fp32']['trl']:.2f}",
    }


if __name__ == "__main__":
    main()
