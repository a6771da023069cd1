"""What the benchmarks share: random models of two sizes, interleaved timing, peak memory, the report."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from svf_rl.quickstart import model_path
from svf_rl.svf.cache import FactorCache
from svf_rl.svf.decompose import fingerprint, thin_svd

MLP = ["gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Shape:
    """A Llama architecture with random weights."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    def config(self, layers: int | None = None) -> LlamaConfig:
        """The configuration, with another number of layers when given."""
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=layers or self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )


SHAPES = {
    "small": Shape(hidden=1024, intermediate=2816, layers=4, heads=16, kv_heads=16, vocabulary=4096),
    "8b": Shape(hidden=4096, intermediate=14336, layers=32, heads=32, kv_heads=8, vocabulary=128256),
}


def random_llama(config: LlamaConfig, dtype: torch.dtype, device: str) -> LlamaForCausalLM:
    """A model with seeded random weights, the same in every layer: speed does not depend on the values, and three
    matrices are decomposed instead of three a layer (the factor cache knows equal weights)."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    layers = model.model.layers
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    return model.eval()


def saved_model(folder: str, config: LlamaConfig, dtype: torch.dtype, device: str = "cpu") -> None:
    """A random model, made on `device`, as a folder that vLLM can read."""
    random_llama(config, dtype, device).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(folder)


def decompose_once(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Fill the factor cache for the MLP weights of `random_llama`, whose layers are all the same."""
    cache = FactorCache()
    for layer in linears(model.model.layers[0], MLP).values():
        weight, key = layer.weight.detach(), fingerprint(layer.weight)
        if cache.load(key, weight.dtype) is None:
            cache.store(key, thin_svd(weight).to(weight.dtype))
    return model


def interleaved(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """
    Seconds of each contender in each of `repeats` rounds: A, B, C, B, C, A, ..., the order turned by one each round,
    so that other load on the machine hits all alike. One round goes before, to warm up.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(repeats + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            elapsed = seconds(contenders[name])
            if turn > 0:
                times[name].append(elapsed)
    return times


def seconds(function: Callable[[], Any]) -> float:
    """Seconds of one call, the GPU's work included."""
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def running(
    life: Callable[..., None], contenders: dict[str, tuple[Any, ...]], started: dict[str, Any] | None = None
) -> Iterator[dict[str, Callable[[Any], Any]]]:
    """
    Starts `life(pipe, *arguments)` in a fresh process for each contender; it sends once when it is ready, then answers
    each order that it receives, until the order is `None` or it has seen enough.

    Yields for each contender a function that sends an order and waits for the answer. What each one sent when it was
    ready goes into `started`.
    """
    context = get_context("spawn")
    processes: list[Any] = []
    pipes: dict[str, Connection] = {}
    try:
        for name, arguments in contenders.items():
            pipes[name], other = context.Pipe()
            processes.append(context.Process(target=life, args=(other, *arguments)))
            processes[-1].start()
            other.close()  # so that a contender that dies ends the wait for its answer
            ready = pipes[name].recv()
            if started is not None:
                started[name] = ready
        yield {name: partial(_ask, pipe) for name, pipe in pipes.items()}
    finally:
        for pipe in pipes.values():
            with suppress(BrokenPipeError):
                pipe.send(None)
        for process in processes:
            process.join()


def _ask(pipe: Connection, order: Any) -> Any:
    pipe.send(order)
    return pipe.recv()


def ratio(times: dict[str, list[float]], over: str, under: str) -> float:
    """Median over the rounds of `over`'s time in units of `under`'s in the same round."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


@contextmanager
def peak_memory(device: str, mapped: bool = True) -> Iterator[Callable[[], int]]:
    """
    Yields a function that gives the bytes in use at the peak of the block, above those in use at its start: allocated
    tensors on CUDA; the resident set of the process elsewhere, sampled every 2 ms, which has the pages of `mapped`
    files that were read of late, or not.
    """
    if device == "cuda":
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield lambda: torch.cuda.max_memory_allocated() - start
        return
    start, peak, done = resident(mapped), resident(mapped), threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident(mapped))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield lambda: peak - start
    finally:
        done.set()
        sampler.join()


def resident(mapped: bool = True) -> int:
    """Bytes of the process that are in memory (Linux), pages of `mapped` files with them or not."""
    _, all_pages, of_files, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (all_pages - (0 if mapped else of_files)) * os.sysconf("SC_PAGE_SIZE")


def hardware(device: str) -> dict[str, Any]:
    """What ran, in words and numbers, for the report."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), platform.processor())
    result: dict[str, Any] = {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
    }
    if device == "cuda":
        result |= gpu()
    return result


def gpu() -> dict[str, Any]:
    """The GPU's name and memory, its driver, and the CUDA that torch was built for."""
    properties = torch.cuda.get_device_properties()
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    return {
        "gpu": properties.name,
        "gpu_bytes": properties.total_memory,
        "driver": driver,
        "cuda": torch.version.cuda,
    }


@contextmanager
def serving(command: list[str], port: int) -> Iterator[str]:
    """A server in a process of its own, `python -m` of a command to which the port is added; yields its address when it
    is up."""
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-m", *command, "--port", str(port)], stdout=log, stderr=log)
        try:
            while True:
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(log.read().decode()[-2000:])
                with suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                        break
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait()


def arguments(doc: str | None, script: str) -> argparse.Namespace:
    """The command line that the benchmarks have in common."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--repeats", type=int, help="rounds; default: what a few minutes allow")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / f"{Path(script).stem}.json")
    return parser.parse_args()


def report(result: dict[str, Any], rows: list[dict[str, str]], out: Path) -> None:
    """Print `rows` as a Markdown table and write `result` as JSON."""
    machine = result["hardware"]
    print(f"\n{machine.get('gpu', machine['cpu'])}, {machine['cores']} cores, {machine['threads']} threads\n")
    print("| " + " | ".join(rows[0]) + " |")
    print("|---" + "|---:" * (len(rows[0]) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


def linears(model: nn.Module, names: list[str]) -> dict[str, nn.Linear]:
    """The linear layers whose names end in one of `names`, by path."""
    return {
        path: m for path, m in model.named_modules() if path.rpartition(".")[2] in names and isinstance(m, nn.Linear)
    }
