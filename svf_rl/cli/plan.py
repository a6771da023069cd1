"""`svf-rl plan`: whether a recipe fits its GPUs. Its other options are keys of the recipe, as for `svf-rl train`."""

import argparse
import json
from collections.abc import Sequence

from svf_rl.errors import SVFError, one_line_errors

DESCRIPTION = (
    "Memory of a run from the recipe and the model's configuration alone: no weights, no GPU, no network. "
    "Exit status 0 where it fits; 1 where it does not, with what to change on the last line."
)


def main(arguments: Sequence[str]) -> int:
    """The command line after `plan`. Returns the exit status: 0 where the run fits, 1 where it does not or for bad
    input."""
    parser = argparse.ArgumentParser(
        "svf-rl plan", allow_abbrev=False, description=DESCRIPTION,
        epilog="Every key of the recipe can be given as --key value.",
    )  # fmt: skip
    add = parser.add_argument
    add("recipe", help="a YAML file, or a name that svf-rl recipes lists")
    add("--gpus", type=int, help="GPUs of a node")
    add("--gpu-memory", metavar="SIZE", help="of each GPU: 80GB (10^9 bytes) or 80GiB (2^30)")
    add("--nodes", type=int, default=1, help="default: 1")
    add("--zero", type=int, choices=[0, 1, 2, 3], help="ZeRO stage (default: 0, 2 or 3, the lowest that fits)")
    add("--prompt-tokens", type=int, help="of the longest prompt (default: what vllm_max_model_length leaves, or 512)")
    add("--json", action="store_true", help="print JSON in place of tables, all sizes in bytes")
    add("--slurm", action="store_true", help="print the values that slurm/train.slurm reads, and nothing else")
    add("--rollout-nodes", type=int, default=0, help="with --slurm: nodes that run vLLM servers (default: 0)")
    add("--processes", type=int, help="with --slurm: training processes of a node, where they compute on the CPU")
    add("--debug", action="store_true", help="show tracebacks")
    known, overrides = parser.parse_known_args(arguments)
    fits = True
    with one_line_errors(known.debug) as outcome:
        fits = _slurm(known, overrides) if known.slurm else _memory(known, overrides)
    return outcome.status or int(not fits)


def _memory(known: argparse.Namespace, overrides: Sequence[str]) -> bool:
    from svf_rl.train import quiet_libraries

    quiet_libraries()
    from svf_rl.memory.arithmetic import parse_memory  # takes seconds
    from svf_rl.memory.plan import Machine, MemoryPlan
    from svf_rl.memory.report import as_text, as_values, decide
    from svf_rl.settings.dry_run import check_recipe
    from svf_rl.settings.recipe import load_recipe

    if known.gpus is None or known.gpu_memory is None:
        raise SVFError("say what the machine has: --gpus 8 --gpu-memory 80GB")
    machine = Machine(known.gpus, known.nodes, parse_memory(known.gpu_memory))
    recipe = load_recipe(known.recipe, overrides, gpus=machine.processes)
    check_recipe(recipe)  # refuses what a dry run refuses
    plan = MemoryPlan(recipe, machine, known.zero, known.prompt_tokens)
    fits, outcome = decide(plan)
    print(json.dumps(as_values(plan, fits, outcome), indent=2) if known.json else as_text(plan, outcome))
    return fits


def _slurm(known: argparse.Namespace, overrides: Sequence[str]) -> bool:
    from svf_rl.train import quiet_libraries

    quiet_libraries()
    from svf_rl.launch.slurm import add_servers, read_slurm_values
    from svf_rl.launch.slurm_processes import format_shell_lines
    from svf_rl.settings.recipe import load_recipe

    gpus, processes = (None if each is None else each * known.nodes for each in (known.gpus, known.processes))
    overrides = add_servers(known.recipe, overrides, known.rollout_nodes)
    print(format_shell_lines(read_slurm_values(load_recipe(known.recipe, overrides, gpus, processes))))
    return True
