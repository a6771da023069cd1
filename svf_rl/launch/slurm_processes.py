"""How many training processes a node of a SLURM job runs, and with which accelerate config.

    python -m svf_rl.launch.slurm_processes --nodes N --gpus G [CONFIG]

prints both as lines for `slurm/train.slurm`, or one line that says what does not go together.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from svf_rl.errors import SVFError, one_line_errors
from svf_rl.launch.shell_lines import format_shell_lines
from svf_rl.storage.bundled import find_accelerate_config


@dataclass(frozen=True)
class Processes:
    """The training processes of a node: their number, whether they compute on the CPU, whether under DeepSpeed."""

    a_node: int
    on_cpu: bool
    deepspeed: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser("svf_rl.launch.slurm_processes", allow_abbrev=False)
    parser.add_argument("--nodes", type=int, required=True, help="nodes that train")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs of each of them")
    parser.add_argument("config", nargs="?", help="accelerate config; the default suits the processes")
    known = parser.parse_args(arguments)
    with one_line_errors() as outcome:
        config = find_accelerate_config(known.config) if known.config else default_config(known.nodes, known.gpus)
        chosen = processes_a_node(config, known.nodes, known.gpus)
        values = {
            "SVF_RL_CONFIG": str(config.resolve()),
            "SVF_RL_PROCESSES": str(chosen.a_node),
            "SVF_RL_ON_CPU": str(chosen.on_cpu).lower(),
        }
        if (
            chosen.on_cpu and not chosen.deepspeed
        ):  # accelerate tells single processes alone; DeepSpeed must not hear it
            values["ACCELERATE_USE_CPU"] = "true"
            # not `cpu:0`, the name of several processes' device, to which torch loads no checkpoint
            values["ACCELERATE_TORCH_DEVICE"] = "cpu"
        print(format_shell_lines(values))
    return outcome.status


def default_config(nodes: int, gpus: int) -> Path:
    """The file for plain data parallelism over so many nodes with so many GPUs each (0: on the CPU)."""
    alone = nodes * max(gpus, 1) == 1
    name = ("single_gpu.yaml" if alone else "multi_gpu.yaml") if gpus else ("cpu.yaml" if alone else "cpu_ddp.yaml")
    return find_accelerate_config(f"accelerate_configs/{name}")


def processes_a_node(config: Path, nodes: int, gpus: int) -> Processes:
    """
    One process a GPU, or one on each node where the config is for the CPU.

    Args:
        config (`Path`): An accelerate config.
        nodes (`int`): Nodes that train.
        gpus (`int`): GPUs of each of them.

    Raises:
        SVFError: the file is no accelerate config, wants GPUs where there are none, or is for one process alone.
    """
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise SVFError(f"accelerate config {config} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SVFError(f"accelerate config {config} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or "distributed_type" not in values:
        raise SVFError(f"{config} is no accelerate config: it has no distributed_type")
    on_cpu = bool(values.get("use_cpu"))
    if not on_cpu and not gpus:
        raise SVFError(
            f"{config} trains on GPUs and this node has none: ask SLURM for them (--gpus-per-node=8), or take a "
            f"config with use_cpu: true, such as {find_accelerate_config('accelerate_configs/cpu_ddp.yaml')}"
        )
    processes = 1 if on_cpu else gpus
    if values["distributed_type"] == "NO" and nodes * processes > 1:
        several = find_accelerate_config(f"accelerate_configs/{'cpu_ddp' if on_cpu else 'multi_gpu'}.yaml")
        raise SVFError(
            f"{config} is for one process, and {nodes} nodes × {processes} are {nodes * processes}: take one for "
            f"several, such as {several}, or less of the machine"
        )
    return Processes(processes, on_cpu, values["distributed_type"] == "DEEPSPEED")


if __name__ == "__main__":
    sys.exit(main())
