"""Runs a command that ends when whoever started this does, in whatever way:

    python -m svf_rl.reproduce.supervise COMMAND ...

Standard input is a pipe that nobody writes to: its end says that the starter is gone, killed or not. The command has a
session of its own, so that all of its processes can be ended. The standard library alone, for a quick start.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import NoReturn

# Seconds between asking a command to end and making it.
PATIENCE = 10.0


def main() -> NoReturn:
    """Exits with the command's status."""
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

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
