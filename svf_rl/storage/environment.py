"""What a command needs of the machine, looked at before libraries fail on it with a traceback."""

import os
import resource
import sys
import tempfile
from pathlib import Path

from svf_rl.errors import SVFError

_ADDRESS_SPACE = 3_000_000_000  # with less, libraries fail to load, or wait for ever


def check_environment() -> None:
    """Raises `SVFError` without a working directory, a temporary folder, `/proc` or address space, and for launchers'
    variables that are no numbers."""
    try:
        Path.cwd()
    except OSError as error:
        raise SVFError("the working directory is gone: change to a folder that is there") from error
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise SVFError("no folder for temporary files can be written: set TMPDIR to one that can") from error
    if sys.platform == "linux" and not Path("/proc/self").exists():
        raise SVFError("/proc is not mounted, which torch and psutil read: mount it, or start the container with it")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= limit < _ADDRESS_SPACE:
        raise SVFError(
            f"the address space is limited to {limit / 1e9:.1f} GB (ulimit -v), and torch with what it loads takes "
            f"{_ADDRESS_SPACE / 1e9:.0f}: raise the limit, or ask the scheduler for more memory"
        )
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        value = os.environ.get(name, "0")
        if not value.isdecimal():
            raise SVFError(f"{name} is {value!r} in the environment, and no number: unset it, or start with a launcher")


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the one that speaks for all."""
    return os.environ.get("RANK", "0") == "0"
