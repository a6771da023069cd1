"""Whether the settings of a recipe fit the processes that run it."""

import os
import socket
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.generation.vllm.tensor_parallel import check_processes
from svf_rl.models.kinds import find_kind
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.storage.bundled import find_accelerate_config
from svf_rl.storage.environment import check_environment

_LAUNCHER_SECONDS = 10.0


def check_zero(values: Mapping[str, Any], stage: int, processes: int) -> None:
    """Raises `SVFError` unless `processes` processes can run the recipe under this stage of DeepSpeed's ZeRO."""
    if values.get("weight_decay"):
        raise SVFError("weight_decay acts on z - 1, which DeepSpeed's optimizers cannot do: set weight_decay to 0")
    if stage < 3:
        return
    if processes == 1:
        raise SVFError(
            "ZeRO-3 has nothing to shard with one process: start more (--num_processes), or use "
            f"{find_accelerate_config('accelerate_configs/single_gpu.yaml')}"
        )
    find_kind(values.get("adapter", "svf")).check_training(values, stage)
    if not values.get("use_vllm"):
        raise SVFError("use_vllm: false cannot generate with a model that ZeRO-3 has sharded: set use_vllm to true")


FSDP = "FSDP is not supported; for several GPUs start with accelerate launch and a config of DDP or DeepSpeed's ZeRO"


def check_launcher() -> None:
    """
    Raises `SVFError` where the environment says that this process is one of several, and nothing has started the
    others: variables that a shell or a job has left over, for which torch would wait without a word. Also for FSDP.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
        raise SVFError(f"ACCELERATE_USE_FSDP is set in the environment: {FSDP}")
    check_environment()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes < 2:
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SVFError(
            f"WORLD_SIZE={processes} is set in the environment without {', '.join(missing)}: unset WORLD_SIZE for one "
            "process, or start several with accelerate launch"
        )
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:  # the launcher listens there before it starts a process
        socket.create_connection(address, timeout=_LAUNCHER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise SVFError(
            f"WORLD_SIZE={processes} is set in the environment and no launcher answers at {address[0]}:{address[1]} "
            "(MASTER_ADDR, MASTER_PORT): unset WORLD_SIZE for one process, or start several with accelerate launch"
        ) from error


def check_engines(values: Mapping[str, Any], processes: int, read_alone: bool) -> list[str]:
    """Check that the processes divide into engines of `vllm_tensor_parallel_size`. Returns one line instead of an error
    where one process reads the recipe of several (`read_alone`), as in a dry run."""
    size = values.get("vllm_tensor_parallel_size", 1)
    if not values.get("use_vllm") or values.get("vllm_mode", "colocate") != "colocate":
        return []
    if size > 1 and processes == 1 and read_alone:
        return [f"one process cannot run this: vllm_tensor_parallel_size asks for a multiple of {size}"]
    check_processes(size, processes)
    return []


def check_batch(values: Mapping[str, Any], processes: int) -> None:
    """Raises `SVFError` unless the sequences of one generation divide into groups of one prompt each. TRL checks the
    same, but its message has numbers that are not in the recipe."""
    defaults = {f.name: f.default for f in fields(SVFReinforceConfig)}
    keys = (
        "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "generation_batch_size",
        "steps_per_generation",
    )  # fmt: skip
    settings = {key: values.get(key, defaults[key]) for key in keys}
    size, _, group, generated, per_generation = settings.values()
    if group is None:
        raise SVFError("num_generations must be at least 1, not null")
    # TRL makes groups of two for one completion per prompt
    groups = f"groups of num_generations ({group})" if group > 1 else "pairs (which TRL needs)"
    if generated is not None:
        if generated % (size * processes):
            raise SVFError(
                f"generation_batch_size ({generated}) is not a multiple of per_device_train_batch_size ({size}) × "
                f"processes ({processes}): change generation_batch_size or per_device_train_batch_size"
            )
        total, change, factors = generated, "generation_batch_size", f"generation_batch_size ({generated})"
    else:
        key = "gradient_accumulation_steps" if per_generation is None else "steps_per_generation"
        total, change = size * processes * settings[key], "per_device_train_batch_size"
        factors = f"{change} ({size}) × processes ({processes}) × {key} ({settings[key]}) = {total}"
    if total % max(2, group):
        raise SVFError(f"{factors} does not divide into {groups}: change {change} or num_generations")
