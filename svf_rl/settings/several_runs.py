"""Which runs a recipe stands for: one, one after a warm-up (`warm_up.py`), or several, with the recipe of each."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from svf_rl.described import described
from svf_rl.errors import SVFError
from svf_rl.settings.yaml_values import shown
from svf_rl.svf import SVFConfig


@dataclass
class RunsArguments:
    """Several runs in one process, on one base model and one vLLM. Each has a folder of its own in `output_dir`, and so
    has the warm-up of a run."""

    seeds: list[int] | None = described(None, "A run with each of these seeds, in folders seed0, seed1, ….")
    runs: list[dict[str, Any]] | None = described(
        None, "A run with each of these changes of the recipe, such as [{learning_rate: 0.01}, {skill: choice}]."
    )
    warm_up_steps: int = described(
        0,
        "Updates of next-token training on the right answers (objective: next_token, and otherwise the recipe's "
        "settings) before the run, which then starts from these values and makes its own max_steps. Not to be taken "
        "for warmup_steps, which is about the learning rate.",
    )


_OF_ALL = (
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "report_to", "seeds", "runs", "device", "use_cpu",
    "bf16", "fp16", "tf32", "gradient_checkpointing", "push_to_hub", "hub_model_id", "warm_up_steps",
)  # fmt: skip


def changes_of_runs(arguments: RunsArguments, of_model: Sequence[str]) -> dict[str, dict[str, Any]]:
    """
    What each run changes of the recipe, by the name of the run; empty for a recipe of one run.

    Args:
        arguments ([`RunsArguments`]): Of the recipe.
        of_model (`Sequence[str]`): Keys of the model and of its adapter, which all runs share.

    Raises:
        SVFError: both keys are given, two runs are the same, or one changes what all share.
    """
    if arguments.seeds is not None and arguments.runs is not None:
        raise SVFError("seeds and runs are both given: write the seeds into runs, as in [{seed: 0}, {seed: 1}]")
    key = "seeds" if arguments.runs is None else "runs"
    changes = [{"seed": seed} for seed in arguments.seeds or ()] if arguments.runs is None else arguments.runs
    if getattr(arguments, key) is not None and not changes:
        raise SVFError(f"{key} is empty: leave it out, or name the runs")
    found: dict[str, dict[str, Any]] = {}
    for change in changes:
        for name in change:
            if name in of_model or name in _OF_ALL or name.startswith(("vllm_", "use_vllm")):
                raise SVFError(f"runs: {name} is the same for all runs of a process: set it outside of runs")
        name = _name(change)
        if name in found:
            raise SVFError(f"{key} has two runs named {name}, such as {shown(change)}: leave one out, or shorten it")
        found[name] = change
    return found


def _name(change: Mapping[str, Any]) -> str:
    """A folder's name."""
    if set(change) == {"seed"}:
        return f"seed{change['seed']}"
    text = ",".join(f"{key}={value}" for key, value in change.items()) or "unchanged"
    return re.sub(r"[^\w.,=+-]+", "_", text)[:100]


def check_several(training: Any, adapter: Any, arguments: RunsArguments) -> None:
    """Raises `SVFError` where the runs of a recipe cannot share a base model and an engine."""
    reasons = {
        f"adapter: {adapter.adapter}": adapter.adapter != "svf",
        "biases: true": adapter.biases,
        f"core: {adapter.core}": not SVFConfig(core=adapter.core).is_multiplier,
        "init: random": adapter.init == "random",
        "modules_to_save": bool(adapter.modules_to_save),
        "use_vllm: false": not training.use_vllm,
        "vllm_mode: server": training.vllm_mode == "server",
        "vllm_weights: merged": training.vllm_weights == "merged",
        "several processes": training.world_size > 1 or os.environ.get("WORLD_SIZE", "1") != "1",
        "objective: next_token": training.objective == "next_token",
        "warm_up_steps": bool(arguments.warm_up_steps),
    }
    reason = next((what for what, there in reasons.items() if there), None)
    if reason is not None:
        raise SVFError(f"several runs in one (seeds, runs) do not go with {reason}: start each run alone")
    alone = sorted({*training.report_to} - {"none", "tensorboard"})
    if alone:
        raise SVFError(
            f"report_to: {alone[0]} has one run a process, and the recipe has several: set it to tensorboard or none"
        )
