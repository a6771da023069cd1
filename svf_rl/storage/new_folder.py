"""A folder that is there whole or not at all."""

import contextlib
import errno
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from svf_rl.errors import SVFError


def check_new(path: Path) -> None:
    """Raises `SVFError` unless `path` is free, or an empty folder, and its place can be written."""
    if path.is_dir() and not path.is_symlink():
        if any(path.iterdir()):
            raise SVFError(f"{path} is there and not empty: give another folder, or remove it")
    elif path.exists() or path.is_symlink():
        raise SVFError(f"{path} is there and no folder: give another one")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise SVFError(f"{existing} is not a folder that can be written: give another place than {path}")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """
    An empty folder beside `path` to write into, which takes the name `path` when the block ends well and is removed
    when it does not. What a killed process has left there is cleared by the next one.

    Raises:
        SVFError: `path` holds something, another process is writing it, or the disk takes no more.
    """
    check_new(path)
    path = path.absolute()
    partial = path.with_name(f".{path.name}.partial")
    made = [parent for parent in path.parents if not parent.exists()]
    with disk_errors(path):
        partial.mkdir(parents=True, exist_ok=True)
        handle = _held(partial, path)
        try:
            for left in partial.iterdir():  # a killed process's; the folder itself is what the lock is on
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield partial
            check_new(path)
            partial.replace(path)
        except BaseException:  # an interrupt leaves no more behind than bad input does
            shutil.rmtree(partial, ignore_errors=True)
            with contextlib.suppress(OSError):
                for parent in made:
                    parent.rmdir()
            raise
        finally:
            os.close(handle)


@contextmanager
def held(folder: Path, seconds: float = 30.0) -> Iterator[None]:
    """
    `folder`, which is made where it is missing, held against other processes while the block runs. Where one has it,
    `seconds` are waited for its end: one that was just told to stop needs some.

    Raises:
        SVFError: another process has it.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + seconds
    while True:
        try:
            handle = _held(folder, folder)
            break
        except SVFError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
    try:
        yield
    finally:
        os.close(handle)


def check_space(path: Path, needed: int) -> None:
    """Raises `SVFError` where fewer than `needed` bytes are free for `path`."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise SVFError(
            f"{path} needs {needed / 1e9:.1f} GB and {existing} has {free / 1e9:.1f} GB left: free some, or give "
            "another place"
        )


def _held(partial: Path, path: Path) -> int:
    """A descriptor of the folder, which holds it against other processes until it is closed."""
    handle = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise SVFError(f"another process is writing {path}: wait for it, or give another folder") from error
    except OSError:
        pass  # a file system without locks
    return handle


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the system says while `path` is written becomes an `SVFError`, also what it says through safetensors, torch
    and tokenizers, which have exceptions of their own."""
    try:
        yield
    except Exception as error:
        if not _said_by_the_system(error):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise SVFError(f"cannot write {path}: {reason}; free some space, or give another folder") from error


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """The same around all that a command does, of which writing below `path` is a part: for a disk without room alone,
    since what else the system says may be about something else."""
    shown = threading.excepthook

    def show(args: threading.ExceptHookArgs) -> None:
        if not _without_room(args.exc_value):  # a thread that writes a log tells the one it writes for
            shown(args)

    threading.excepthook = show
    try:
        yield
    except OSError as error:
        if not _without_room(error):
            raise
        with disk_errors(path):
            raise
    finally:
        threading.excepthook = shown


def _without_room(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _said_by_the_system(error: Exception) -> bool:
    if isinstance(error, RuntimeError):
        return "PytorchStreamWriter" in str(error)
    return isinstance(error, OSError | SafetensorError) or (type(error) is Exception and "os error" in str(error))
