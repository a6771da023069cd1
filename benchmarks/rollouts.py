"""Tokens/s of a vLLM engine whose weights came through a sync, against the untouched engine.

    python benchmarks/rollouts.py [--device cuda] [--shape 8b] [--out results.json]

Three engines over the same model generate the same number of tokens in turns: the one that training uses, after a sync
of an SVF model with `z` near 1; the same without a sync; and vLLM as it comes, which on some CPUs repacks its weights
for other kernels, so that nothing can be synced into them.
"""

import os
import shutil
import statistics
import tempfile
from contextlib import nullcontext
from functools import partial
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from common import (
    MLP,
    SHAPES,
    Shape,
    arguments,
    decompose_once,
    hardware,
    interleaved,
    ratio,
    report,
    running,
    saved_model,
)
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from svf_rl.generation.sampling import Sampling
from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig, svf_layers

HIDDEN_512 = Shape(hidden=512, intermediate=1408, layers=4, heads=8, kv_heads=8, vocabulary=4096)
CONTENDERS = ["synced", "not synced", "vLLM as it comes"]
SEQUENCES, PROMPT, COMPLETION = 64, 32, 48


class RepackedVLLM(ColocatedVLLMGenerator):
    """vLLM as it comes. It shows an empty model, or the constructor would refuse weights that cannot be synced."""

    def __init__(self, *args: Any, **kwargs: Any):
        with patch("svf_rl.generation.vllm.colocated.plain_cpu_weights", nullcontext):
            super().__init__(*args, **kwargs)

    @property
    def model(self) -> nn.Module:
        return nn.Module()


def contender(pipe: Connection, name: str, folder: str, dtype: torch.dtype, device: str) -> None:
    """A process's life: an engine that generates once an order."""
    kind = RepackedVLLM if name == "vLLM as it comes" else ColocatedVLLMGenerator
    engine = kind(
        folder, dtype=dtype, seed=0, device=device, max_model_len=256, max_num_seqs=SEQUENCES, enforce_eager=True
    )
    generator = torch.Generator().manual_seed(0)
    if name == "synced":
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        model = get_peft_model(decompose_once(base), SVFConfig(target_modules=MLP))
        for layer in svf_layers(model).values():
            z = layer.svf_z["default"].weight
            z.data += 0.02 * torch.randn(z.shape, generator=generator)
        engine.sync(model)
    prompts = torch.randint(5, 400, (SEQUENCES, PROMPT), generator=generator.manual_seed(1)).tolist()
    sampling = Sampling(max_tokens=COMPLETION, extra={"ignore_eos": True})
    pipe.send("ready")
    while pipe.recv() is not None:
        completions = engine.generate(prompts, sampling, range(SEQUENCES))
        pipe.send(sum(len(completion.token_ids) for completion in completions))


def measure(folder: str, title: str, dtype: torch.dtype, device: str, repeats: int) -> dict[str, Any]:
    """Tokens/s of the three engines over the model in `folder`, and the ratio of the synced one to each other."""
    with running(contender, {name: (name, folder, dtype, device) for name in CONTENDERS}) as orders:
        times = interleaved({name: partial(order, "generate") for name, order in orders.items()}, repeats)
    return {
        "model": title,
        "tokens_per_second": {n: SEQUENCES * COMPLETION / statistics.median(t) for n, t in times.items()},
        "ratios": {other: ratio(times, other, "synced") for other in CONTENDERS[1:]},
    }


def main() -> None:
    args = arguments(__doc__, __file__)
    repeats = args.repeats or 15
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    os.environ["SVF_RL_CACHE"] = cache = tempfile.mkdtemp(prefix="svf-rl-benchmark-")
    measurements = []
    if args.shape == "small":
        measurements.append(measure(str(model_path()), "quickstart", dtype, args.device, repeats))
    shape = HIDDEN_512 if args.shape == "small" else SHAPES[args.shape]
    with tempfile.TemporaryDirectory() as folder:
        saved_model(folder, shape.config(), dtype)
        title = f"{shape.layers} layers, hidden {shape.hidden}"
        measurements.append(measure(folder, title, dtype, args.device, repeats))
    shutil.rmtree(cache)
    result = {"hardware": hardware(args.device), "shape": args.shape, "repeats": repeats, "engines": measurements}
    rows = [
        {"model": m["model"]}
        | {f"{name} (tokens/s)": f"{value:.0f}" for name, value in m["tokens_per_second"].items()}
        | {f"synced / {name}": f"{value:.3f}" for name, value in m["ratios"].items()}
        for m in measurements
    ]
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
