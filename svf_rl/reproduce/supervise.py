"""Runs a command that ends when whoever started this does, in whatever way:

    python -m svf_rl.reproduce.supervise COMMAND ...

Standard input is a pipe that nobody writes to: its end says that the starter is gone, killed or not. The command has a
session of its own, so that all of its processes can be ended, and what this inherited: it holds the lock of the folder
too. On Linux it is asked to end where this is killed. The standard library alone, for a quick start.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import NoReturn

# Seconds between asking a command to end and making it.
PATIENCE = 10.0
_SET_PDEATHSIG = 1  # prctl


def main() -> NoReturn:
    """Exits with the command's status."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def end_with_parent() -> None:
        if libc is not None:
            libc.prctl(_SET_PDEATHSIG, signal.SIGTERM)

    command = subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        close_fds=False,
        preexec_fn=end_with_parent,  # safe: there is no other thread yet
    )

    def stop() -> None:
        _signal(command.pid, signal.SIGTERM)
        threading.Timer(PATIENCE, _signal, (command.pid, signal.SIGKILL)).start()

    def watch() -> None:
        os.read(0, 1)
        stop()

    signal.signal(signal.SIGTERM, lambda *_: stop())
    signal.signal(signal.SIGINT, lambda *_: stop())
    threading.Thread(target=watch, daemon=True).start()
    status = command.wait()
    _signal(command.pid, signal.SIGKILL)  # what is left of its group
    os._exit(status if status >= 0 else 128 - status)  # as shells do, and without waiting for the timer


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    main()
