"""Suggests changes to a run that does not fit, found by trying."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations, product

from svf_rl.generation.vllm.tensor_parallel import find_undivided_part
from svf_rl.memory.arithmetic import Run
from svf_rl.memory.plan import MemoryPlan
from svf_rl.storage.bundled import find_accelerate_config

_SHARES = [share / 100 for share in range(90, 5, -5)]
_MOST = 3  # suggestions, and changes in one of them

Change = Callable[[Run], Run]


def suggest(plan: MemoryPlan) -> list[str]:
    """Up to three sets of changes, each of which makes the run fit, with as few changes as possible; empty where none
    was found."""
    kinds = _changes(plan)
    for count in range(1, _MOST + 1):
        found: list[str] = []
        for chosen in combinations(kinds, count):
            for changes in product(*(kinds[kind] for kind in chosen)):
                run = plan.run
                for change in changes:
                    run = change(run)
                if plan.fits(run):
                    found.append(_described(plan.run, run))
                    break  # the mildest ones of each kind come first
        if found:
            return list(dict.fromkeys(found))[:_MOST]
    return []


def _changes(plan: MemoryPlan) -> dict[str, list[Change]]:
    """By kind, what could be changed, mildest first; servers last, which undo what is changed of a colocated vLLM.
    The number of sequences in a step stays the same where it can."""
    run, machine = plan.run, plan.machine
    kinds: dict[str, list[Change]] = {}
    if not run.checkpointing:
        kinds["checkpointing"] = [partial(replace, checkpointing=True)]
    if run.rollouts == "colocated" and not run.sleep:
        kinds["sleep"] = [partial(replace, sleep=True)]
    if run.rollouts == "colocated":
        kinds["share"] = [partial(replace, share=share) for share in _SHARES if abs(share - run.share) > 1e-6]
    halves = [run.micro_batch >> shift for shift in range(1, run.micro_batch.bit_length())]
    sizes = [size for size in halves if run.micro_batch * run.accumulation % size == 0]
    if sizes:
        kinds["micro-batch"] = [partial(_set_micro_batch, size) for size in sizes]
    if run.stage < 3 and 3 in plan.stages:
        kinds["stage"] = [partial(replace, stage=3)]
    config = plan.model.config
    ranks = [
        n for n in (2, 4, 8) if n > run.tensor_parallel and machine.gpus % n == 0 and not find_undivided_part(config, n)
    ]
    if run.rollouts == "colocated" and ranks:
        kinds["tensor parallel"] = [partial(replace, tensor_parallel=n) for n in ranks]
    if plan.allows(3):
        kinds["processes"] = [partial(_set_processes, run.processes * factor) for factor in (2, 4, 8, 16)]
    if run.rollouts == "colocated":
        kinds["server"] = [partial(replace, rollouts="server", share=0.0, sleep=False, tensor_parallel=1)]
    return kinds


def _set_micro_batch(size: int, run: Run) -> Run:
    return replace(run, micro_batch=size, accumulation=run.micro_batch * run.accumulation // size)


def _set_processes(processes: int, run: Run) -> Run:
    steps = run.accumulation * run.processes
    accumulation = steps // processes if steps % processes == 0 else run.accumulation
    return replace(run, processes=processes, stage=3, accumulation=accumulation)


def _described(before: Run, after: Run) -> str:
    parts = []
    if after.checkpointing != before.checkpointing:
        parts.append("gradient_checkpointing: true")
    if after.sleep != before.sleep and after.rollouts == "colocated":
        parts.append("vllm_enable_sleep_mode: true")
    if after.rollouts != before.rollouts:
        parts.append("vllm_mode: server, with vLLM on other GPUs")
    elif after.share != before.share:
        parts.append(f"vllm_gpu_memory_utilization: {after.share:g}")
    if after.tensor_parallel != before.tensor_parallel and after.rollouts == "colocated":
        parts.append(f"vllm_tensor_parallel_size: {after.tensor_parallel}")
    if after.micro_batch != before.micro_batch:
        parts.append(f"per_device_train_batch_size: {after.micro_batch}")
    if after.accumulation != before.accumulation:
        parts.append(f"gradient_accumulation_steps: {after.accumulation}")
    if after.processes != before.processes:
        parts.append(f"{after.processes} GPUs with ZeRO-3")
    elif after.stage != before.stage:
        parts.append(f"ZeRO-3 (--zero 3, {find_accelerate_config('accelerate_configs/zero3.yaml')})")
    return ", ".join(parts)
