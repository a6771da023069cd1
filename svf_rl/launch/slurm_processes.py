"""How many training processes a node of a SLURM job runs, and with which accelerate config.

    python -m svf_rl.launch.slurm_processes --nodes N --gpus G [CONFIG]

prints both as lines for `slurm/train.slurm`, or one line that explains what does not fit.
"""

import argparse
import importlib.util
import os
import runpy
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from svf_rl.errors import SVFError, one_line_errors
from svf_rl.storage.bundled import find_accelerate_config
from svf_rl.storage.yaml_files import read_yaml


def format_shell_lines(values: Mapping[str, str]) -> str:
    """`values` as quoted `NAME=value` lines that a shell can evaluate."""
    return "\n".join(f"{name}={shlex.quote(value)}" for name, value in values.items())


@dataclass(frozen=True)
class Processes:
    """The training processes of a node: their number, and whether they run on the CPU and under DeepSpeed."""

    per_node: int
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
        chosen = count_processes(config, known.nodes, known.gpus)
        if not chosen.on_cpu and "--container-" not in os.environ.get("SVF_RL_SRUN_OPTIONS", ""):
            check_torch(known.gpus)
        values = {
            "SVF_RL_CONFIG": str(config.resolve()),
            "SVF_RL_PROCESSES": str(chosen.per_node),
            "SVF_RL_ON_CPU": str(chosen.on_cpu).lower(),
        }
        if chosen.on_cpu and not chosen.deepspeed:
            # accelerate sets it only for single processes, and not for DeepSpeed
            values["ACCELERATE_USE_CPU"] = "true"
            # `cpu:0`, the device of several processes, is one to which torch cannot load a checkpoint
            values["ACCELERATE_TORCH_DEVICE"] = "cpu"
        print(format_shell_lines(values))
    return outcome.status


def check_torch(gpus: int) -> None:
    """Raises `SVFError` where torch is built without GPUs, as `make` chooses it on a login node that has none. Reads
    its version alone: to import torch takes seconds."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        raise SVFError("torch is not installed in this environment: set it up with `make install EXTRA=cuda`")
    built = runpy.run_path(str(Path(torch.origin).with_name("version.py")))
    if not any(built.get(name) for name in ("cuda", "hip", "xpu")):
        raise SVFError(
            f"this torch ({built['__version__']}) is built for the CPU, and each node has {gpus} GPU(s): set the "
            "environment up again with `make clean` and `make install EXTRA=cuda`, which needs no GPU where it runs"
        )


def default_config(nodes: int, gpus: int) -> Path:
    """The file for plain data parallelism over `nodes` nodes with `gpus` GPUs each (0: on the CPU)."""
    alone = nodes * max(gpus, 1) == 1
    name = ("single_gpu.yaml" if alone else "multi_gpu.yaml") if gpus else ("cpu.yaml" if alone else "cpu_ddp.yaml")
    return find_accelerate_config(f"accelerate_configs/{name}")


def count_processes(config: Path, nodes: int, gpus: int) -> Processes:
    """
    One process for each GPU, or one on each node where the config is for the CPU.

    Args:
        config (`Path`): An accelerate config.
        nodes (`int`): Nodes that train.
        gpus (`int`): GPUs of each of them.

    Raises:
        SVFError: the file is not an accelerate config, needs GPUs where there are none, or is for only one process.
    """
    values = read_yaml(config, "accelerate config")
    if not isinstance(values, dict) or "distributed_type" not in values:
        raise SVFError(f"{config} is not an accelerate config: it has no distributed_type")
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
