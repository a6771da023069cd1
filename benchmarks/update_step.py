"""Seconds and peak memory of one update: factored SVF, LoRA, and a dense gradient of the rebuilt weights.

    python benchmarks/update_step.py [--device cuda] [--shape 8b] [--out results.json]

An update is the policy's forward pass, the REINFORCE loss, the backward pass and a step of Adam, on 16 sequences of
256 tokens in one micro-batch, of which the last 192 are the completion; MLP weights are adapted. The second row adds
the exact KL and its reference pass. Each contender lives in a process of its own, and the processes take turns, one
update each; ratios on the CPU are those of processor seconds, into which other load on the machine hardly counts.
Peak memory is measured afterwards (on the CPU in fresh processes): what an update takes above the loaded model and,
where there are any, its factors. A contender that runs out of the GPU's memory is left out of the table.
"""

import gc
import os
import shutil
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from common import (
    MLP,
    SHAPES,
    arguments,
    decompose_once,
    hardware,
    interleaved,
    linears,
    peak_memory,
    random_llama,
    ratio,
    report,
    running,
    synchronize,
)
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from svf_rl.losses.objective import reinforce_loss
from svf_rl.losses.token_logprobs import LogitTransform, token_statistics
from svf_rl.svf import SVFConfig
from svf_rl.svf.cache import FactorCache
from svf_rl.svf.decompose import Factors, fingerprint
from svf_rl.training.policy import add_hidden_states_forward, hidden_states, output_layer, reference

SEQUENCES, PROMPT, COMPLETION = 16, 64, 192
BETA = 0.1


Update = Callable[[Tensor, Tensor, bool], None]
"""`update(ids (B, P + T), advantages (B,), with_kl)`"""


def loss_of(
    model: nn.Module, ids: Tensor, advantages: Tensor, as_reference: Callable[[], AbstractContextManager[None]] | None
) -> Tensor:
    """The objective of one micro-batch by the trainer's own functions, with the exact KL where `as_reference` is given:
    a context in which `model` is the reference."""
    attention = torch.ones_like(ids)
    ref_hidden = None
    if as_reference is not None:
        with torch.no_grad(), as_reference():
            ref_hidden = hidden_states(model, ids, attention, COMPLETION).flatten(0, 1)
    hidden = hidden_states(model, ids, attention, COMPLETION).flatten(0, 1)  # (n, d)
    labels, direction = ids[:, -COMPLETION:].flatten(), None if ref_hidden is None else "policy_ref"
    tokens = token_statistics(hidden, labels, *output_layer(model), LogitTransform(), ref_hidden, direction=direction)
    logps = tokens.logps.view(-1, COMPLETION)
    kl = None if tokens.kl is None else tokens.kl.view(-1, COMPLETION)
    return reinforce_loss(logps, advantages, torch.ones_like(logps), None, kl, BETA, "sum", len(ids))


def adapter_update(base: PreTrainedModel, config: PeftConfig) -> Update:
    """An update of a PEFT adapter, as the trainer does it."""
    add_hidden_states_forward(base)
    model = get_peft_model(base, config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def update(ids: Tensor, advantages: Tensor, with_kl: bool) -> None:
        loss_of(model, ids, advantages, (lambda: reference(model)) if with_kl else None).backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def dense_update(base: PreTrainedModel) -> Update:
    """
    The algorithm of the reference implementation: `W' = U diag(s·z) Vᵀ` is rebuilt as a leaf before every update and
    gets its full gradient `G`; then it is rebuilt once more, as a function of `z`, and `G` is sent back through that.
    (The original multiplies by a diagonal matrix, too, where this scales columns.)

    `W'` stands in the model in the place of `W`, which is dropped: the kindest reading for this contender's memory.
    """
    add_hidden_states_forward(base)
    base.requires_grad_(False)
    decompose_once(base)
    layers = linears(base, MLP)
    factors: dict[str, Factors] = {}
    loaded: dict[str, Factors] = {}  # by kind of matrix: layers are all the same
    for name, layer in layers.items():
        kind = name.rpartition(".")[2]
        if kind not in loaded:
            found = FactorCache().load(fingerprint(layer.weight), layer.weight.dtype, device=layer.weight.device)
            assert found is not None
            loaded[kind] = found
        factors[name] = Factors(*(tensor.clone() for tensor in vars(loaded[kind]).values()))
        layer.weight.requires_grad_(True)
    loaded.clear()
    z = {name: nn.Parameter(torch.ones_like(f.s)) for name, f in factors.items()}
    optimizer = torch.optim.Adam(z.values(), lr=1e-3)

    @torch.no_grad()
    def rebuild(at_one: bool = False) -> None:
        for name, layer in layers.items():
            f = factors[name]
            scale = f.s if at_one else f.s * z[name]
            torch.mm((f.U * scale).to(f.U.dtype), f.Vt, out=layer.weight)

    @contextmanager
    def as_reference() -> Iterator[None]:
        rebuild(at_one=True)
        yield
        rebuild()

    def update(ids: Tensor, advantages: Tensor, with_kl: bool) -> None:
        if not with_kl:  # else it is rebuilt after the reference pass
            rebuild()
        loss_of(base, ids, advantages, as_reference if with_kl else None).backward()
        for name, layer in layers.items():
            f = factors[name]
            ((f.U * (f.s * z[name])).to(f.U.dtype) @ f.Vt).backward(layer.weight.grad)
            layer.weight.grad = None
        optimizer.step()
        optimizer.zero_grad()

    return update


CONTENDERS: dict[str, Callable[[PreTrainedModel], Update]] = {
    "svf": lambda base: adapter_update(decompose_once(base), SVFConfig(target_modules=MLP)),
    "lora": lambda base: adapter_update(base, LoraConfig(r=16, lora_alpha=16, target_modules=MLP)),
    "dense": dense_update,
}


def contender(pipe: Connection, name: str, shape: str, device: str) -> None:
    """A process's life: load, then one update for each `("update", with_kl)`, or its memory for `("peak", with_kl)`.
    First it sends the seconds of loading the adapter and the bytes that are held on the GPU between updates."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    base = random_llama(SHAPES[shape].config(), dtype, device)
    start = time.perf_counter()
    update = CONTENDERS[name](base)
    synchronize()
    loading = time.perf_counter() - start
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(SHAPES[shape].vocabulary, (SEQUENCES, PROMPT + COMPLETION), generator=generator).to(device)
    advantages = torch.randn(SEQUENCES, generator=generator).to(device)
    gc.collect()
    pipe.send({"seconds": loading, "held_bytes": torch.cuda.memory_allocated() if device == "cuda" else None})
    while (order := pipe.recv()) is not None:
        what, with_kl = order
        start = time.process_time()
        with peak_memory(device) if what == "peak" else nullcontext() as peak:
            try:
                update(ids, advantages, with_kl)
            except torch.cuda.OutOfMemoryError as error:
                pipe.send(str(error))
                return
            synchronize()
            pipe.send(peak() if peak else time.process_time() - start)


class OutOfMemory(Exception):
    """A contender's own words about it."""


def ask(order: Callable[[tuple[str, bool]], Any], what: str, with_kl: bool) -> Any:
    """A contender's answer."""
    answer = order((what, with_kl))
    if isinstance(answer, str):
        raise OutOfMemory(answer)
    return answer


def main() -> None:
    args = arguments(__doc__, __file__)
    repeats = args.repeats or 5
    os.environ["SVF_RL_CACHE"] = cache = tempfile.mkdtemp(prefix="svf-rl-benchmark-")
    on_gpu = args.device == "cuda"
    # Models of the 8b shape do not fit on one GPU side by side, and nothing else runs there: one after the other.
    groups = [[name] for name in CONTENDERS] if on_gpu else [list(CONTENDERS)]
    times: dict[bool, dict[str, list[float]]] = {False: {}, True: {}}
    cpu: dict[bool, dict[str, list[float]]] = {kl: {name: [] for name in CONTENDERS} for kl in times}
    peaks: dict[bool, dict[str, int]] = {False: {}, True: {}}
    started: dict[str, Any] = {}
    failed: dict[str, str] = {}

    def run(group: list[str]) -> None:
        with running(contender, {name: (name, args.shape, args.device) for name in group}, started) as orders:
            for with_kl in times:

                def step(name: str, with_kl: bool) -> None:
                    cpu[with_kl][name].append(ask(orders[name], "update", with_kl))

                times[with_kl] |= interleaved({name: partial(step, name, with_kl) for name in group}, repeats)
                for name in group if on_gpu else []:
                    peaks[with_kl][name] = ask(orders[name], "peak", with_kl)

    for group in groups:
        try:
            run(group)
        except OutOfMemory as error:
            failed |= dict.fromkeys(group, str(error))
        write(args, repeats, times, cpu, peaks, started, failed)
    if not on_gpu:
        # Large blocks straight from the system, so that a freed tensor leaves the resident set at once.
        os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = str(1 << 20)
        for name in CONTENDERS:
            with running(contender, {name: (name, args.shape, args.device)}) as orders:
                for with_kl in peaks:
                    peaks[with_kl][name] = ask(orders[name], "peak", with_kl)
        write(args, repeats, times, cpu, peaks, started, failed)
    shutil.rmtree(cache)


def write(
    args: Namespace,
    repeats: int,
    times: dict[bool, dict[str, list[float]]],
    cpu: dict[bool, dict[str, list[float]]],
    peaks: dict[bool, dict[str, int]],
    started: dict[str, Any],
    failed: dict[str, str],
) -> None:
    """The report of what has been measured so far."""
    rows: list[dict[str, str]] = []
    result: dict[str, Any] = {
        "hardware": hardware(args.device),
        "shape": args.shape,
        "repeats": repeats,
        "sequences": SEQUENCES,
        "tokens_a_sequence": PROMPT + COMPLETION,
        "loading": started,
        "out_of_memory": failed,
        "updates": [],
    }
    for with_kl in (False, True):
        seconds = {name: statistics.median(values) for name, values in times[with_kl].items()}
        after_warm_up = {name: values[1:] for name, values in cpu[with_kl].items() if len(values) > 1}
        counted = times[with_kl] if args.device == "cuda" else after_warm_up
        ratios = {
            f"svf / {other}": ratio(counted, "svf", other)
            for other in ("lora", "dense")
            if {"svf", other} <= set(counted)
        }
        result["updates"].append(
            {
                "exact_kl": with_kl,
                "seconds": seconds,
                "cpu_seconds": {name: statistics.median(values) for name, values in after_warm_up.items()},
                "ratios": ratios,
                "peak_bytes": peaks[with_kl],
            }
        )
        rows.append(
            {"update": "with exact KL" if with_kl else "without reference"}
            | {f"{name} (s)": f"{value:.3f}" for name, value in seconds.items()}
            | {name: f"{value:.2f}" for name, value in ratios.items()}
            | {f"{name} peak (MiB)": f"{value / 2**20:.0f}" for name, value in peaks[with_kl].items()}
        )
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
