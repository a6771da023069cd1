"""What the system says about a disk, as one line."""

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from svf_rl.errors import SVFError, one_line

REMEDY = "free some space, or give another folder"
RESUMES = "free some space, and the same command resumes from here"


@contextmanager
def disk_errors(path: Path, remedy: str = REMEDY) -> Iterator[None]:
    """What the system says while `path` is written becomes an `SVFError`, also what it says through safetensors, torch
    and tokenizers, which have exceptions of their own."""
    try:
        yield
    except Exception as error:
        if not _is_from_the_system(error):
            raise
        reason = getattr(error, "strerror", None) or one_line(error)
        raise SVFError(f"cannot write {path}: {reason}; {remedy}") from error


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """The same around all that a command does, of which writing below `path` is a part: for a disk without room alone,
    since what else the system says may be about something else."""
    shown = threading.excepthook

    def show(args: threading.ExceptHookArgs) -> None:
        if not _is_without_room(args.exc_value):  # a thread that writes a log tells the one it writes for
            shown(args)

    threading.excepthook = show
    try:
        yield
    except OSError as error:
        if not _is_without_room(error):
            raise
        with disk_errors(path):
            raise
    finally:
        threading.excepthook = shown


def _is_without_room(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_from_the_system(error: Exception) -> bool:
    if isinstance(error, RuntimeError):
        return "PytorchStreamWriter" in str(error)
    return isinstance(error, OSError | SafetensorError) or (type(error) is Exception and "os error" in str(error))
