"""Whether the settings of a recipe fit the processes that run it."""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from typing import Any

from torch import distributed
from torch.distributed import TCPStore

from svf_rl.errors import SVFError, one_line
from svf_rl.generation.vllm.tensor_parallel import check_processes
from svf_rl.models.kinds import find_kind
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.settings.refused_options import FSDP
from svf_rl.storage.bundled import find_accelerate_config
from svf_rl.storage.environment import check_environment
from svf_rl.waiting import say_waiting

_LAUNCHER_SECONDS = 10.0
# A process may import its libraries from a cold network disk while the others are there already.
_OTHERS_SECONDS = 180.0
_MEETING: list[TCPStore] = []  # torch's own store of the same port shares its server, as long as this one lives


def check_zero(values: Mapping[str, Any], stage: int, processes: int) -> None:
    """Raises `SVFError` unless `processes` processes can run the recipe under this stage of DeepSpeed's ZeRO."""
    if values.get("weight_decay"):
        raise SVFError("weight_decay acts on z - 1, which DeepSpeed's optimizers cannot do: set weight_decay to 0")
    if values.get("objective") == "evolution_strategies":
        raise SVFError("objective: evolution_strategies has nothing for DeepSpeed to share out: use a config of DDP")
    if values.get("warm_up_steps"):
        raise SVFError(
            "warm_up_steps does not go with DeepSpeed, which takes a model over for one run: make a run with "
            "objective: next_token, and name its folder as adapter_path of the other"
        )
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


def check_launcher() -> None:
    """
    Raises `SVFError` where the environment says that this process is one of several, and nothing has started the
    others: variables that a shell or a job has left over, for which torch would wait without a word. Also for FSDP.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
        raise SVFError(f"ACCELERATE_USE_FSDP is set in the environment: {FSDP}")
    check_environment()
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if not 0 <= rank < processes:
        raise SVFError(
            f"RANK={rank} and WORLD_SIZE={processes} in the environment do not go together: unset both for one "
            "process, or start several with accelerate launch"
        )
    if processes < 2:
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SVFError(
            f"WORLD_SIZE={processes} is set in the environment without {', '.join(missing)}: unset WORLD_SIZE for one "
            "process, or start several with accelerate launch"
        )
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if not 0 < address[1] < 2**16:
        raise _nobody(f"{address[1]} is no port")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # the launcher listens before it starts a process
        _await_server(address, 0.0)
    elif not distributed.is_initialized():
        with say_waiting(f"waiting for the other processes of WORLD_SIZE={processes}"):
            _meet(processes, rank, address)


def _await_server(address: tuple[str, int], seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(address, timeout=_LAUNCHER_SECONDS).close()
        except (OSError, UnicodeError) as error:
            if time.monotonic() > end:
                raise _nobody(f"no launcher answers at {address[0]}:{address[1]}") from error
        time.sleep(0.2)


def _meet(processes: int, rank: int, address: tuple[str, int]) -> None:
    """Wait until all processes are there: torch would, without a word, for as long as `ddp_timeout`."""
    end, (host, port) = time.monotonic() + _OTHERS_SECONDS, address
    if rank:
        _await_server(address, _OTHERS_SECONDS)
    try:
        store = TCPStore(
            host if rank else "localhost",
            port,
            processes,
            is_master=not rank,
            timeout=timedelta(seconds=_LAUNCHER_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,
        )
        here = store.add("svf_rl/started", 1)
        while here < processes and time.monotonic() < end:
            time.sleep(0.1)
            here = store.add("svf_rl/started", 0)
    except RuntimeError as error:
        reason = "the port is in use" if "address already in use" in str(error) else one_line(error, 200)
        raise _nobody(f"the processes cannot meet at {host}:{port}, since {reason}") from error
    if here < processes:
        raise _nobody(f"only {here} came to {host}:{port} within {_OTHERS_SECONDS:.0f} s")
    _MEETING.append(store)


def _nobody(what: str) -> SVFError:
    return SVFError(
        f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set in the environment and {what} (MASTER_ADDR, MASTER_PORT): unset "
        "WORLD_SIZE for one process, or start several with accelerate launch"
    )


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
