"""Tokens/s of a batch in which many requests have adapters of their own, against the plain base model and vLLM's LoRA.

    python benchmarks/mixed_batches.py [--device cuda] [--shape 8b] [--out results.json]

64 requests of 32 tokens generate the same number of tokens each: by vLLM with whole weights (the base model); by a
vLLM that computes with factors, where they have 1, 8, 64 or 512 adapters, of which a batch of 64 can see 64; and by
vLLM's LoRA of rank 16 with all of as many loaded, up to 64. Base and factors also with longer completions, where
reading the prompts, which is bound by arithmetic, counts for less. Each engine lives in a process of its own; rounds
take turns.
"""

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from common import (
    MLP,
    SHAPES,
    arguments,
    hardware,
    interleaved,
    random_llama,
    ratio,
    report,
    running,
)
from one_copy import saved
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

REQUESTS, PROMPT, COMPLETION = 64, 32, 32
LENGTHS = {COMPLETION: "", 128: ", 128 tokens"}  # of completions, and how the contenders are named
ADAPTERS, LORAS, RANK = (1, 8, 64, 512), (1, 8, 64), 16
LAYERS = {"small": 4, "8b": 16}  # three engines on one card
SHARE = 0.25


def dense(folder: str, shape: str, dtype: torch.dtype, device: str) -> Callable[[int, int], int]:
    return _generates(_engine(folder, dtype, device))


def factored(folder: str, shape: str, dtype: torch.dtype, device: str) -> Callable[[int, int], int]:
    from svf_rl.generation.weights import SharedWeights, active_multipliers
    from svf_rl.svf import SVFConfig
    from svf_rl.svf.offload import offload_weights

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = get_peft_model(base, SVFConfig(target_modules=MLP, task_type="CAUSAL_LM"))
    offload_weights(model)
    engine = _engine(folder, dtype, device, shared=SharedWeights.of(model.to(device)))
    generator = torch.Generator().manual_seed(0)
    for number in range(1, max(ADAPTERS) + 1):
        multipliers = {
            name: m + 0.02 * torch.randn(m.shape, generator=generator).to(m)
            for name, m in active_multipliers(model).items()
        }
        engine.adapters.put(number, multipliers)
    return _generates(engine)


def lora(folder: str, shape: str, dtype: torch.dtype, device: str) -> Callable[[int, int], int]:
    """vLLM's own engine: of ours, it is asked as vLLM's users ask it."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    torch.manual_seed(0)
    config = LoraConfig(r=RANK, target_modules=MLP, init_lora_weights=False, task_type="CAUSAL_LM")
    saved = Path(folder) / "lora"
    get_peft_model(random_llama(SHAPES[shape].config(LAYERS[shape]), dtype, "cpu"), config).save_pretrained(saved)
    engine = LLM(
        folder, dtype=str(dtype).removeprefix("torch."), seed=0, max_model_len=256, max_num_seqs=REQUESTS,
        enforce_eager=device == "cpu", gpu_memory_utilization=SHARE, enable_lora=True, max_loras=max(LORAS),
        max_lora_rank=RANK, disable_log_stats=True, enable_chunked_prefill=device != "cpu",
    )  # fmt: skip

    def generate(adapters: int, tokens: int) -> int:
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, detokenize=False)
        engine.reset_prefix_cache()
        requests = [LoRARequest(f"lora{i % adapters}", 1 + i % adapters, str(saved)) for i in range(REQUESTS)]
        prompts = [{"prompt_token_ids": prompt} for prompt in _prompts()]
        done = engine.generate(prompts, sampling, use_tqdm=False, lora_request=requests)
        return sum(len(one.outputs[0].token_ids) for one in done)

    return generate


def _engine(folder: str, dtype: torch.dtype, device: str, **settings: Any) -> Any:
    from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator

    return ColocatedVLLMGenerator(
        folder, dtype=dtype, seed=0, device=device, max_model_len=256, max_num_seqs=REQUESTS,
        enforce_eager=device == "cpu", gpu_memory_utilization=SHARE, **settings,
    )  # fmt: skip


def _generates(engine: Any) -> Callable[[int, int], int]:
    from svf_rl.generation import Sampling

    mixed = engine.adapters is not None

    def generate(adapters: int, tokens: int) -> int:
        sampling = Sampling(max_tokens=tokens, temperature=0.0, logprobs=False, extra={"ignore_eos": True})
        # of 512 adapters, every eighth is in the batch
        numbers = (
            {"adapters": [1 + i * max(1, adapters // REQUESTS) % adapters for i in range(REQUESTS)]} if mixed else {}
        )
        done = engine.generate(_prompts(), sampling, [0] * REQUESTS, **numbers)
        return sum(len(completion.token_ids) for completion in done)

    return generate


def _prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(5, 400, (REQUESTS, PROMPT), generator=generator).tolist()


def contender(pipe: Connection, start: Callable[..., Any], *arguments: Any) -> None:
    """A process's life: an engine that generates for so many adapters so many tokens a request, once an order."""
    generate = start(*arguments)
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        pipe.send(generate(*order))


def main() -> None:
    args = arguments(__doc__, __file__)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    os.environ["SVF_RL_CACHE"] = cache = tempfile.mkdtemp(prefix="svf-rl-benchmark-")
    with tempfile.TemporaryDirectory() as name:
        folder = saved(Path(name), args.shape, LAYERS[args.shape], args.device)
        own = (folder, args.shape, dtype, args.device)
        engines = {"base": (dense, *own), "factored": (factored, *own), "LoRA": (lora, *own)}
        with running(contender, engines) as orders:
            asked: dict[str, Callable[[], Any]] = {}
            tokens: dict[str, int] = {}
            for length, suffix in LENGTHS.items():
                some = {f"base{suffix}": ("base", 1)} | {f"{n} SVF{suffix}": ("factored", n) for n in ADAPTERS}
                if length == COMPLETION:
                    some |= {f"{n} LoRA": ("LoRA", n) for n in LORAS}
                asked |= {name: partial(orders[engine], (n, length)) for name, (engine, n) in some.items()}
                tokens |= dict.fromkeys(some, REQUESTS * length)
            times = interleaved(asked, args.repeats or 7)
    shutil.rmtree(cache)
    rates = {name: tokens[name] / statistics.median(values) for name, values in times.items()}
    ratios = {
        f"{n} SVF{suffix} / base": ratio(times, f"base{suffix}", f"{n} SVF{suffix}")
        for suffix in LENGTHS.values()
        for n in ADAPTERS
    }
    ratios |= {f"{n} SVF / LoRA": ratio(times, f"{n} LoRA", f"{n} SVF") for n in LORAS}
    rows = [{"engine": name, "tokens/s": f"{value:.0f}"} for name, value in rates.items()]
    rows += [{"engine": name, "tokens/s": f"{value:.2f} ×"} for name, value in ratios.items()]
    result = {"hardware": hardware(args.device), "shape": args.shape, "tokens_per_second": rates, "ratios": ratios}
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
