"""Bringing a vLLM server up to date: `z` alone against a full push of every adapted matrix.

    python benchmarks/server_sync.py [--device cuda] [--shape 8b] [--out results.json]

Both go over the same HTTP channel to the same server, in turns. The full push is this package's own, one matrix at a
time; TRL's push over NCCL exists on CUDA alone and is another thing. Beside seconds and bytes: what a training process
does (packing `z`, or rebuilding and encoding matrices) is in them, and so is the work of the server's workers.
"""

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import torch
from common import (
    MLP,
    SHAPES,
    arguments,
    decompose_once,
    hardware,
    interleaved,
    random_llama,
    report,
    saved_model,
    serving,
)
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from svf_rl.generation.server.generator import VLLMServersGenerator
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig, svf_layers

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "quickstart.yaml"


def served(model: str, dtype: str) -> list[str]:
    """The command of a server of whole weights, which alone takes a full push."""
    options = ["--model_name_or_path", model, "--dtype", dtype, "--vllm_max_model_length", "256"]
    return ["svf_rl.cli", "serve", str(RECIPE), *options, "--vllm_weights", "merged"]


def measure(name: str, model: PeftModel, url: str, dtype: str, repeats: int) -> dict[str, Any]:
    """One row: both ways in turns, each time with other values."""
    draws = torch.Generator().manual_seed(0)
    seen: dict[str, Any] = {}

    def syncing(way: str, generator: VLLMServersGenerator) -> Callable[[], None]:
        def sync() -> None:
            for layer in svf_layers(model).values():
                z = layer.svf_z["default"].weight
                z.data = 1 + 0.05 * torch.randn(z.shape, generator=draws).to(z)
            seen[way] = generator.sync(model)

        return sync

    ways = {
        "z": VLLMServersGenerator([url], dtype=dtype),
        "full": VLLMServersGenerator([url], dtype=dtype, full_push=True),
    }
    times = interleaved({way: syncing(way, generator) for way, generator in ways.items()}, repeats)
    seconds = {way: statistics.median(values) for way, values in times.items()}
    return {
        "model": name,
        "dtype": dtype,
        "matrices": len(svf_layers(model)),
        "trained_values": sum(layer.svf_factors.s.numel() for layer in svf_layers(model).values()),
        "seconds": seconds,
        "bytes": {way: result.bytes for way, result in seen.items()},
        "full_over_z": statistics.median(a / b for a, b in zip(times["full"], times["z"], strict=True)),
    }


def main() -> None:
    args = arguments(__doc__, __file__)
    repeats = args.repeats or 5
    os.environ["SVF_RL_CACHE"] = cache = tempfile.mkdtemp(prefix="svf-rl-benchmark-")
    rows, port = [], 8731
    if args.shape == "small":
        with serving(served("quickstart", "float32"), port) as url:
            base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
            model = get_peft_model(base, SVFConfig(target_modules="mlp"))
            rows.append(measure("quickstart", model, url, "float32", repeats))
            print(rows[-1], flush=True)
    depths = [4, 8] if args.shape == "small" else [SHAPES[args.shape].layers]
    for layers in depths:
        with tempfile.TemporaryDirectory() as folder:
            saved_model(folder, SHAPES[args.shape].config(layers), torch.bfloat16)
            with serving(served(folder, "bfloat16"), port) as url:
                base = random_llama(SHAPES[args.shape].config(layers), torch.bfloat16, args.device)
                model = get_peft_model(decompose_once(base), SVFConfig(target_modules=MLP))
                name = f"{layers} layers, hidden {SHAPES[args.shape].hidden}"
                rows.append(measure(name, model, url, "bfloat16", repeats))
                print(rows[-1], flush=True)
    shutil.rmtree(cache)
    table = [
        {
            "model": f"{row['model']}, {row['dtype']}",
            "trained values": f"{row['trained_values']:,}",
            "sent (kB): z": f"{row['bytes']['z'] / 1e3:.1f}",
            "full": f"{row['bytes']['full'] / 1e3:,.0f}",
            "seconds: z": f"{row['seconds']['z']:.2f}",
            "full ": f"{row['seconds']['full']:.2f}",
            "full / z": f"{row['full_over_z']:.2f}",
        }
        for row in rows
    ]
    report({"hardware": hardware(args.device), "repeats": repeats, "rows": rows}, table, args.out)


if __name__ == "__main__":
    main()
