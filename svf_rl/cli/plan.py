"""`svf-rl plan`: whether a recipe fits its GPUs."""

import argparse
import json
from dataclasses import dataclass
from typing import Literal

from svf_rl.cli.flags import Command, add_flags
from svf_rl.described import described
from svf_rl.errors import SVFError


@dataclass
class PlanArguments:
    """The machine that a recipe is planned for, and what is printed."""

    gpus: int | None = described(None, "GPUs of a node")
    gpu_memory: str | None = described(None, "of each GPU: 80GB (10^9 bytes) or 80GiB (2^30)")
    nodes: int = described(1, "")
    zero: Literal[0, 1, 2, 3] | None = described(None, "ZeRO stage (default: 0, 2 or 3, the lowest that fits)")
    prompt_tokens: int | None = described(
        None, "of the longest prompt (default: what vllm_max_model_length leaves, or 512)"
    )
    json: bool = described(False, "print JSON in place of tables, all sizes in bytes")
    slurm: bool = described(False, "print the values that slurm/train.slurm reads, and nothing else")
    rollout_nodes: int = described(0, "with --slurm: nodes that run vLLM servers")
    processes: int | None = described(None, "with --slurm: training processes of a node, where they compute on the CPU")


def _fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, or a name that svf-rl recipes lists")
    add_flags(parser, PlanArguments, gpu_memory={"metavar": "SIZE"})


def _run(known: argparse.Namespace) -> bool:
    if known.slurm:
        _print_slurm_values(known)
        return True
    from svf_rl.memory.arithmetic import parse_memory
    from svf_rl.memory.plan import Machine, MemoryPlan
    from svf_rl.memory.report import as_text, as_values, decide
    from svf_rl.settings.dry_run import check_recipe
    from svf_rl.settings.recipe import load_recipe

    if known.gpus is None or known.gpu_memory is None:
        raise SVFError("say what the machine has: --gpus 8 --gpu-memory 80GB")
    machine = Machine(known.gpus, known.nodes, parse_memory(known.gpu_memory))
    recipe = load_recipe(known.recipe, known.keys, gpus=machine.processes)
    check_recipe(recipe)  # refuses what a dry run refuses
    plan = MemoryPlan(recipe, machine, known.zero, known.prompt_tokens)
    fits, outcome = decide(plan)
    print(json.dumps(as_values(plan, fits, outcome), indent=2) if known.json else as_text(plan, outcome))
    return fits


def _print_slurm_values(known: argparse.Namespace) -> None:
    from svf_rl.launch.slurm import add_servers, read_slurm_values
    from svf_rl.launch.slurm_processes import format_shell_lines
    from svf_rl.settings.recipe import load_recipe

    gpus, processes = (None if each is None else each * known.nodes for each in (known.gpus, known.processes))
    overrides = add_servers(known.recipe, known.keys, known.rollout_nodes)
    print(format_shell_lines(read_slurm_values(load_recipe(known.recipe, overrides, gpus, processes))))


PLAN = Command(
    "plan", "memory of a run by ZeRO stage, and whether it fits", _fill, _run,
    description="Memory of a run from the recipe and the model's configuration alone: no weights, no GPU. "
    "Exit status 0 where it fits; 1 where it does not, with what to change on the last line.",
    keys="Every key of the recipe can be given as --key value.",
)  # fmt: skip
