"""Tokens/s over HTTP of vLLM's own server with SVF adapters, against its LoRA and against one merged model.

    python benchmarks/served_adapters.py [--repeats ROUNDS] [--out results.json]

64 requests at once, of 32 tokens each, generate 32 more. Three servers of the same base model (4 layers, hidden 1024)
stand side by side and take turns: one with 64 SVF adapters by the plugin, one with 64 LoRA adapters of rank 16, and one
with a merged model, which knows no adapter and is what every one of them would need for itself.
"""

import asyncio
import os
import shutil
import statistics
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import aiohttp
import torch
from common import MLP, SHAPES, arguments, hardware, interleaved, random_llama, ratio, report, serving
from one_copy import saved
from peft import LoraConfig, PeftConfig, get_peft_model

from svf_rl.svf import SVFConfig

REQUESTS, PROMPT, TOKENS, ADAPTERS, RANK, LAYERS = 64, 32, 32, (1, 8, 64), 16, 4
SERVER = ["vllm.entrypoints.openai.api_server", "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "64"]
SERVER += ["--enforce-eager", "--disable-log-stats", "--no-enable-prefix-caching"]
CONFIGS: dict[str, PeftConfig] = {
    "SVF": SVFConfig(target_modules="mlp", task_type="CAUSAL_LM"),
    "LoRA": LoraConfig(r=RANK, target_modules=MLP, init_lora_weights=False, task_type="CAUSAL_LM"),
}


def adapters(kind: str, folder: Path, base: str) -> list[str]:
    """As many as are served, each with values of its own, as vLLM's flag takes them."""
    torch.manual_seed(0)
    model = get_peft_model(random_llama(SHAPES["small"].config(LAYERS), torch.float32, "cpu"), CONFIGS[kind])
    model.peft_config["default"].base_model_name_or_path = base
    named = []
    for i in range(max(ADAPTERS)):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.02 * torch.randn_like(parameter)
        model.save_pretrained(folder / f"{kind}{i}")
        named.append(f"{kind}{i}={folder / f'{kind}{i}'}")
    return named


def ask(url: str, names: list[str]) -> int:
    """Each request is answered as the next of the names; returns the tokens that came."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(5, 400, (REQUESTS, PROMPT), generator=generator).tolist()
    exact = {"max_tokens": TOKENS, "min_tokens": TOKENS, "temperature": 0, "ignore_eos": True}

    async def one(session: aiohttp.ClientSession, i: int) -> int:
        body = {"model": names[i % len(names)], "prompt": prompts[i], **exact}
        async with session.post("/v1/completions", json=body) as response:
            said = await response.json()
            if response.status != 200:
                raise SystemExit(said)
            return said["usage"]["completion_tokens"]

    async def every() -> int:
        async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(None)) as session:
            return sum(await asyncio.gather(*(one(session, i) for i in range(REQUESTS))))

    return asyncio.run(every())


def main() -> None:
    args = arguments(__doc__, __file__)
    os.environ["SVF_RL_CACHE"] = cache = tempfile.mkdtemp(prefix="svf-rl-benchmark-")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        base = saved(folder, "small", LAYERS, "cpu")
        mixed = ["--enable-lora", "--max-loras", str(max(ADAPTERS))]
        own = {
            "merged": [],
            "SVF": [*mixed, "--load-format", "svf", "--lora-modules", *adapters("SVF", folder, base)],
            "LoRA": [*mixed, "--max-lora-rank", str(RANK), "--lora-modules", *adapters("LoRA", folder, base)],
        }
        urls = {
            kind: stack.enter_context(serving([*SERVER, "--model", base, *options], 8741 + i))
            for i, (kind, options) in enumerate(own.items())
        }
        contenders = {"merged": partial(ask, urls["merged"], [base])} | {
            f"{n} {kind}": partial(ask, urls[kind], [f"{kind}{i}" for i in range(n)])
            for kind in CONFIGS
            for n in ADAPTERS
        }
        times = interleaved(contenders, args.repeats or 5)
    shutil.rmtree(cache)
    rates = {name: REQUESTS * TOKENS / statistics.median(values) for name, values in times.items()}
    ratios = {
        f"{n} SVF / {other}": ratio(times, other, f"{n} SVF") for n in ADAPTERS for other in ("merged", f"{n} LoRA")
    }
    rows = [{"server": name, "tokens/s": f"{value:.0f}"} for name, value in rates.items()]
    rows += [{"server": name, "tokens/s": f"{value:.2f} ×"} for name, value in ratios.items()]
    result: dict[str, Any] = {"hardware": hardware("cpu"), "tokens_per_second": rates, "ratios": ratios}
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
