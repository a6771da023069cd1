"""A memory plan in plain text, and as values for JSON."""

from dataclasses import asdict, replace
from typing import Any

from svf_rl.losses.token_logprobs import CHUNK
from svf_rl.memory.advice import suggest
from svf_rl.memory.arithmetic import RESERVE, gib
from svf_rl.memory.plan import MemoryPlan
from svf_rl.text_table import aligned

_KINDS = {
    "base": "base weights", "buffers": "buffers", "factors": "factors U, Vt", "singular_values": "s",
    "masks": "masks of the experts", "trained": "trained values", "gradients": "gradients",
    "optimizer": "optimiser state",
}  # fmt: skip


def decide(plan: MemoryPlan) -> tuple[bool, str]:
    """Whether the run fits, and the line that says so, or what to change."""
    problems, run = plan.problems(plan.run), plan.run
    if not problems:
        left = plan.machine.memory - plan.gpu(run).peak
        unknown = ", activations apart, which are not known" if plan.gpu(run).activations is None else ""
        return True, f"fits{unknown}: {_stage(plan, run.stage)}, {gib(left)} GiB of a GPU left"
    change = "; or ".join(suggest(plan)) or "larger GPUs, or a smaller model: no change here makes it fit"
    return False, f"does not fit ({'; '.join(problems)}); change: {change}"


def as_text(plan: MemoryPlan, outcome: str) -> str:
    """All of the plan, with the `outcome` of [`decide`] as its last line."""
    model, machine, run = plan.model, plan.machine, plan.run
    where = f"{machine.gpus} GPUs" if machine.nodes == 1 else f"{machine.nodes} nodes of {machine.gpus} GPUs"
    if machine.processes == 1:
        where = "one GPU"
    kind = str(model.dtype).removeprefix("torch.")
    return "\n".join(
        [
            f"{plan.recipe.model.model_name_or_path} ({kind}, {model.base_parameters:,} parameters), {where} of "
            f"{gib(machine.memory)} GiB",
            f"trained: {model.trained_values:,} values for {len(model.shapes)} matrices",
            "",
            "Tensors of the whole model, before sharding",
            aligned(_tensor_rows(plan), left=["tensors"]),
            "",
            f"Activations of one micro-batch: {run.micro_batch} × {plan.prompt + plan.completion} tokens "
            f"({plan.prompt} of the prompt, {plan.completion} of the completion)",
            aligned(_activation_rows(plan), left=["GiB"]),
            "",
            f"A GPU, {'with' if run.checkpointing else 'without'} gradient checkpointing",
            aligned(_gpu_rows(plan), left=["GiB"]),
            "",
            *_rollout_lines(plan),
            *_sync_lines(plan),
            *(f"note: {note}" for note in dict.fromkeys([*plan.notes, *model.notes])),
            outcome,
        ]
    )


def as_values(plan: MemoryPlan, fits: bool, outcome: str) -> dict[str, Any]:
    """The same as numbers, all sizes in bytes."""
    model, cache = plan.model, plan.cache(plan.run)
    return {
        "parameters": model.base_parameters,
        "trained_values": model.trained_values,
        "matrices": len(model.shapes),
        "tensors": asdict(model.tensors),
        "tokens": {"prompt": plan.prompt, "completion": plan.completion},
        "activations": {
            name: each and {**asdict(each), "peak": each.peak}
            for name, on in (("plain", False), ("gradient_checkpointing", True))
            for each in [model.activations(plan.run.micro_batch, plan.prompt, on)]
        },
        "gpu": {
            f"zero{stage}": {**asdict(each), "peak": each.peak}
            for stage in plan.stages
            for each in [plan.gpu(replace(plan.run, stage=stage))]
        },
        "kv_cache": cache and {**asdict(cache), "tokens": cache.tokens, "sequences": cache.sequences(plan.length)},
        "sync": {"merged_weights": model.merged_bytes, "z": model.z_bytes, "rebuild": model.rebuild},
        "stage": plan.run.stage,
        "fits": fits,
        "verdict": outcome,
        "notes": list(dict.fromkeys([*plan.notes, *model.notes])),
    }


def _tensor_rows(plan: MemoryPlan) -> list[dict[str, str]]:
    sizes = asdict(plan.model.tensors)
    rows = [
        {"tensors": name, "bytes": f"{sizes[kind]:,}", "GiB": gib(sizes[kind])}
        for kind, name in _KINDS.items()
        if sizes[kind]
    ]
    total = plan.model.tensors.total
    return [*rows, {"tensors": "sum", "bytes": f"{total:,}", "GiB": gib(total)}]


def _activation_rows(plan: MemoryPlan) -> list[dict[str, str]]:
    model, size = plan.model, plan.run.micro_batch
    columns = {
        "without checkpointing": model.activations(size, plan.prompt, False),
        "with checkpointing": model.activations(size, plan.prompt, True),
    }
    named = {
        "kept for the backward pass": lambda a: a.saved,
        "reference pass, before it": lambda a: a.reference,
        f"loss, {CHUNK} tokens × {model.vocabulary:,} at a time": lambda a: a.loss - a.saved,
        "backward pass": lambda a: a.backward - a.saved,
        "peak": lambda a: a.peak,
    }
    return [
        {"GiB": name, **{key: "not known" if each is None else gib(value(each)) for key, each in columns.items()}}
        for name, value in named.items()
    ]


def _gpu_rows(plan: MemoryPlan) -> list[dict[str, str]]:
    each = {stage: plan.gpu(replace(plan.run, stage=stage)) for stage in plan.stages}
    names = {stage: _stage(plan, stage) for stage in each}

    def row(name: str, sizes: list[int | None]) -> dict[str, str]:
        cells = ("not known" if size is None else gib(size) for size in sizes)
        return {"GiB": name, **dict(zip(names.values(), cells, strict=True))}

    gpus = list(each.values())
    rows = [row(kind, [gpu.held[kind] for gpu in gpus]) for kind in gpus[0].held]
    rows.append(row("buckets of the gradients", [gpu.buckets for gpu in gpus]))
    if any(gpu.gathered for gpu in gpus):
        rows.append(row("gathered weights, at most", [gpu.gathered for gpu in gpus]))
    rows.append(row("activations", [gpu.activations for gpu in gpus]))
    if plan.run.rollouts == "colocated":
        more = ", the base weights in it" if plan.run.shared else ""
        more += ", asleep in an update" if plan.run.sleep else ""
        rows.append(row(f"vLLM ({plan.run.share:g} of the GPU{more})", [gpu.engine for gpu in gpus]))
    return [
        *rows,
        row("reserve: CUDA, NCCL, fragments", [RESERVE] * len(gpus)),
        row("at the peak of an update", [gpu.update for gpu in gpus]),
        row("at the peak of rollouts", [gpu.rollout for gpu in gpus]),
        row("at the peak of a sync", [gpu.sync for gpu in gpus]),
        row("left", [plan.machine.memory - gpu.peak for gpu in gpus]),
    ]


def _rollout_lines(plan: MemoryPlan) -> list[str]:
    run, cache = plan.run, plan.cache(plan.run)
    if run.rollouts == "server":
        return ["rollouts: vLLM servers on other GPUs; nothing of them is on these"]
    if cache is None:
        return ["rollouts: transformers, with the model in training"]
    weights = -(-plan.engine_weights(run) // run.tensor_parallel)
    text = (
        f"rollouts: {run.share:g} × {gib(plan.machine.memory)} GiB − vLLM's weights {gib(weights)} GiB = "
        f"{gib(cache.bytes)} GiB of KV cache"
    )
    if cache.tokens is not None:
        text += f", {cache.tokens:,} tokens, {cache.sequences(plan.length):,} sequences of {plan.length:,}"
    together = plan.generated * run.tensor_parallel
    return [f"{text}; a generation batch is {together:,} sequences"]


def _sync_lines(plan: MemoryPlan) -> list[str]:
    model, z = plan.model, plan.model.z_bytes
    pushed, merged = model.merged_bytes, f"{model.merged_bytes:,}"
    lines = []
    if plan.run.shared:
        return [f"a sync: {z:,} bytes of z, into the row of vLLM's table that the policy has"]
    if plan.run.sleep:
        lines.append(f"a sync: {model.tensors.base:,} bytes, all weights, since a sleeping vLLM drops them")
    elif plan.run.rollouts == "colocated":
        lines.append(f"a sync: {merged} bytes of merged weights ({gib(pushed)} GiB), one matrix at a time")
    elif plan.run.rollouts == "server":
        lines.append(f"a sync: {z:,} bytes of z" if z is not None else f"a sync: {merged} bytes of merged weights")
    if z is not None and plan.run.rollouts == "colocated":
        lines.append(f"a sync to vLLM servers would be {z:,} bytes of z")
    if plan.run.rollouts == "colocated":
        lines.append(f"rebuilding the largest matrix for it takes {gib(model.rebuild)} GiB")
    return lines


def _stage(plan: MemoryPlan, stage: int) -> str:
    if plan.machine.processes == 1:
        return "one GPU"
    return "DDP" if stage == 0 else f"ZeRO-{stage}"
