"""One `accelerate launch` on one node of a SLURM job: the task that `slurm/train.slurm` starts on each of them.

    python -m svf_rl.launch.slurm_node --nodes N --processes P --address A --port P --job-folder DIR
        [--shared FILE]... CONFIG RECIPE [--key value ...]

It passes SIGUSR1 to the training processes of only this node, and its last line explains why they ended: `failed: …`,
or `stopped: …` if they wrote a checkpoint and can resume. Everything else is done by accelerate.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from svf_rl.errors import SVFError, one_line

TRAINING = "svf_rl.train"
STOPPED = 75
"""Exit status of a training process that a signal stopped after a checkpoint (EX_TEMPFAIL: try again)."""

# Seconds until a new file may be visible on another node: NFS caches the content of a folder for up to 30 seconds.
VISIBLE_WITHIN = 35.0

_EXCEPTION = re.compile(r"(\[rank\d+\]: ?)?[\w.]*(Error|Exception|Failure|Timeout)\b.*")
# The messages of a process that lost its peer: the cause is elsewhere.
_LOST_PEER = re.compile(r"closed by peer|Connection|Broken pipe|NCCL|[Gg]loo|timed out|TCPStore")


@dataclass(frozen=True)
class Ending:
    """Why the processes of a node ended. `certain` is false if the end of another node may be the cause."""

    text: str
    stopped: bool = False
    certain: bool = True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0 also where the processes stopped after a checkpoint."""
    parser = argparse.ArgumentParser("svf_rl.launch.slurm_node", allow_abbrev=False)
    parser.add_argument("--nodes", type=int, required=True, help="nodes that train")
    parser.add_argument("--processes", type=int, required=True, help="training processes of each of them")
    parser.add_argument("--address", required=True, help="of the first node")
    parser.add_argument("--port", type=int, required=True, help="for the processes to meet, on the first node")
    parser.add_argument("--job-folder", type=Path, required=True, help="made by the first node, seen by all")
    parser.add_argument("--shared", type=Path, action="append", default=[], help="a file that all nodes must see")
    parser.add_argument("config", help="accelerate config")
    parser.add_argument("recipe", nargs=argparse.REMAINDER, help="recipe and overrides")
    known = parser.parse_args(arguments)
    node = os.environ.get("SLURMD_NODENAME", "this node")
    asked = _relay_signal()
    try:
        wait_until_visible([known.job_folder, *known.shared], node, VISIBLE_WITHIN)
        (known.job_folder / f"launcher.{node}").write_text(str(os.getpid()))
        with keep_stderr_tail() as tail:
            ending = _launch(known, node, asked, tail)
    except SVFError as error:
        ending = Ending(f"error: {error}")
    if ending is None:
        return 0
    if not ending.certain:
        time.sleep(3)  # the node where it began reports first
    print(f"{'stopped' if ending.stopped else 'failed'}: {ending.text}", file=sys.stderr, flush=True)
    return 0 if ending.stopped else 1


def wait_until_visible(paths: Sequence[Path], node: str, within: float) -> None:
    """Wait until this node sees the files of the first one; raises `SVFError` if it does not `within` seconds."""
    deadline = time.monotonic() + within
    for path in paths:
        while not path.exists():
            if time.monotonic() > deadline:
                raise SVFError(
                    f"{node} does not see what the job's first node wrote to {path.parent}: put output_dir and the "
                    "factor cache (SVF_RL_CACHE) on a file system that all nodes share"
                )
            time.sleep(0.5)


def _launch(known: argparse.Namespace, node: str, asked: threading.Event, tail: "deque[str]") -> Ending | None:
    """Run accelerate until the processes of this node have ended; `None` if all succeeded."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    command = launch_command_parser().parse_args(launch_arguments(known, os.environ.get("SLURM_NODEID", "0")))
    try:
        launch_command(command)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return explain_end(rank, failure.exitcode, node, tail, asked.is_set())
    except subprocess.CalledProcessError as error:
        return explain_end(0, error.returncode, node, tail, asked.is_set())
    except SignalException as error:  # the job is being cancelled
        sys.exit(128 + error.sigval)
    except (OSError, RuntimeError, ValueError, RendezvousError) as error:
        text = one_line(error)
        if "another process is utilizing it" in text:
            raise SVFError(f"port {known.port} of {node} is in use: set SVF_RL_PORT to a free one") from error
        return Ending(f"accelerate launch on {node}: {text}", certain=not _LOST_PEER.search(text))
    return None


def launch_arguments(known: argparse.Namespace, machine_rank: str) -> list[str]:
    """The arguments of `accelerate launch` on the node of this rank."""
    return [
        *("--config_file", known.config),
        *("--num_machines", str(known.nodes)),
        *("--num_processes", str(known.nodes * known.processes)),
        *("--machine_rank", machine_rank),
        *("--main_process_ip", known.address),
        *("--main_process_port", str(known.port)),
        *("--rdzv_backend", "static", "--same_network"),
        *("--deepspeed_multinode_launcher", "standard"),  # only this node's processes, without ssh to others
        *("--module", TRAINING, *known.recipe, "--resume"),
    ]


def explain_end(rank: int, status: int, node: str, tail: Sequence[str], asked_to_stop: bool) -> Ending:
    """
    How the first process that ended did so, in one line.

    Args:
        rank (`int`): Its rank.
        status (`int`): Its exit status; of one that a signal ended, the signal's negative number.
        node (`str`): Its node.
        tail (`Sequence[str]`): The last lines of the node's standard error.
        asked_to_stop (`bool`): Whether SIGUSR1 was passed to it.
    """
    if status == STOPPED:
        return Ending(f"{node}, after a signal", stopped=True)
    if status == -signal.SIGUSR1 and asked_to_stop:
        return Ending("stopped before training began: give the job more time (--time)")
    who = f"rank {rank} on {node}"
    if status < 0:
        by = signal.Signals(-status).name
        why = " (by the kernel, if memory ran out)" if by == "SIGKILL" else ""
        return Ending(f"{who} was killed by {by}{why}")
    clear = [line for line in tail if line.startswith("error: ")]
    if clear:
        return Ending(clear[-1])
    raised = [line for line in tail if _EXCEPTION.fullmatch(line)]
    own = [line for line in raised if line.startswith(f"[rank{rank}]")] or raised
    text = f": {own[-1]}" if own else ""
    return Ending(f"{who} ended with exit status {status}{text}", certain=not _LOST_PEER.search(text))


def _relay_signal() -> threading.Event:
    """
    Pass SIGUSR1 once to each training process among this process's children; the event is set once it has come.

    Depending on the cluster's configuration, a signal to a step reaches only this process or every process of the node,
    including reward workers. So the batch script signals this process by its number.
    """
    asked = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: asked.set())

    def pass_on() -> None:
        asked.wait()
        told: set[int] = set()
        while True:  # also to those that are just being started
            for child in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    if child.pid not in told and TRAINING in child.cmdline():
                        child.send_signal(signal.SIGUSR1)
                        told.add(child.pid)
            time.sleep(0.5)

    threading.Thread(target=pass_on, daemon=True).start()
    return asked


@contextmanager
def keep_stderr_tail(lines: int = 2000) -> Iterator["deque[str]"]:
    """The last lines that this process and its children write to standard error, which still receives them; complete
    after the block."""
    tail: deque[str] = deque(maxlen=lines)
    reader, writer = os.pipe()
    sys.stderr.flush()
    real = os.dup(2)
    os.dup2(writer, 2)
    os.close(writer)
    copier = threading.Thread(target=_copy, args=(reader, real, tail), daemon=True)
    copier.start()
    try:
        yield tail
    finally:
        sys.stderr.flush()
        os.dup2(real, 2)
        copier.join(timeout=5)  # a process that is left may keep the pipe open


def _copy(reader: int, real: int, tail: "deque[str]") -> None:
    rest = b""
    while chunk := os.read(reader, 1 << 16):
        os.write(real, chunk)
        *whole, rest = (rest + chunk).split(b"\n")
        # a progress bar overwrites itself: only the text after the last \r is visible
        rest = rest.rpartition(b"\r")[2]
        tail.extend(line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace") for line in whole)
    if rest:
        tail.append(rest.decode(errors="replace"))


if __name__ == "__main__":
    sys.exit(main())
