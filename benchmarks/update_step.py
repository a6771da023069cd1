"""Seconds and peak memory of one update: factored SVF, LoRA, and a dense gradient of the rebuilt weights.

    python benchmarks/update_step.py [--device cuda] [--shape 8b] [--out results.json]

An update is the policy's forward pass, the REINFORCE loss, the backward pass and a step of Adam, on 16 sequences of
256 tokens in one micro-batch, of which the last 192 are the completion; MLP weights are adapted. The second row adds
the exact KL and its reference pass. Each contender lives in a process of its own, and the processes take turns, one
update each; ratios on the CPU are those of processor seconds, into which other load on the machine hardly counts.
Peak memory is measured afterwards, in fresh processes: what an update takes above the loaded model and, where there
are any, its factors.
"""

import gc
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from multiprocessing.connection import Connection

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
    for name, layer in layers.items():
        found = FactorCache().load(fingerprint(layer.weight), layer.weight.dtype, device=layer.weight.device)
        assert found is not None
        factors[name] = found
        layer.weight.requires_grad_(True)
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
    """A process's life: load, then one update for each `("update", with_kl)`, or its memory for `("peak", with_kl)`."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    update = CONTENDERS[name](random_llama(SHAPES[shape].config(), dtype, device))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(SHAPES[shape].vocabulary, (SEQUENCES, PROMPT + COMPLETION), generator=generator).to(device)
    advantages = torch.randn(SEQUENCES, generator=generator).to(device)
    gc.collect()
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        what, with_kl = order
        start = time.process_time()
        with peak_memory(device) if what == "peak" else nullcontext() as peak:
            update(ids, advantages, with_kl)
            synchronize()
            pipe.send(peak() if peak else time.process_time() - start)


def main() -> None:
    args = arguments(__doc__, __file__)
    repeats = args.repeats or 5
    os.environ["SVF_RL_CACHE"] = cache = tempfile.mkdtemp(prefix="svf-rl-benchmark-")
    # Models of the 8b shape do not fit on one GPU side by side, and nothing else runs there: one after the other.
    groups = [list(CONTENDERS)] if args.device == "cpu" else [[name] for name in CONTENDERS]
    times: dict[bool, dict[str, list[float]]] = {False: {}, True: {}}
    cpu: dict[bool, dict[str, list[float]]] = {kl: {name: [] for name in CONTENDERS} for kl in times}
    for group in groups:
        with running(contender, {name: (name, args.shape, args.device) for name in group}) as orders:
            for with_kl in times:

                def step(name: str, with_kl: bool) -> None:
                    cpu[with_kl][name].append(orders[name](("update", with_kl)))

                times[with_kl] |= interleaved({name: partial(step, name, with_kl) for name in group}, repeats)
    # Large blocks straight from the system, so that a freed tensor leaves the resident set at once.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = str(1 << 20)
    peaks: dict[bool, dict[str, int]] = {False: {}, True: {}}
    for name in CONTENDERS:
        with running(contender, {name: (name, args.shape, args.device)}) as orders:
            for with_kl in peaks:
                peaks[with_kl][name] = orders[name](("peak", with_kl))
    shutil.rmtree(cache)

    rows, result = [], {"hardware": hardware(args.device), "shape": args.shape, "repeats": repeats, "updates": []}
    for with_kl in (False, True):
        seconds = {name: statistics.median(values) for name, values in times[with_kl].items()}
        after_warm_up = {name: values[1:] for name, values in cpu[with_kl].items()}
        counted = times[with_kl] if args.device == "cuda" else after_warm_up
        ratios = {f"svf / {other}": ratio(counted, "svf", other) for other in ("lora", "dense")}
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
            | {f"{name} (s)": f"{value:.2f}" for name, value in seconds.items()}
            | {name: f"{value:.2f}" for name, value in ratios.items()}
            | {f"{name} peak (MiB)": f"{value / 2**20:.0f}" for name, value in peaks[with_kl].items()}
        )
    report(result, rows, args.out)


if __name__ == "__main__":
    main()
