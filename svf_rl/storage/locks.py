"""One process at a time: in a folder, or at any other work."""

import contextlib
import errno
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from svf_rl.errors import SVFError
from svf_rl.storage.disk_errors import disk_errors
from svf_rl.storage.files import remove_partials

LOCK = "_lock"
"""Of a held folder. By that first letter it is never uploaded to the Hub with a run."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_TRIES = 5
"""To make and hold a folder that others may be removing; each of them does so once."""


@contextmanager
def lock(file: Path, what: str | Path, seconds: float | None = 0.0, notice: str = "") -> Iterator[int | None]:
    """
    Held while the block runs; the file is removed afterwards. Yields a descriptor: a process that inherits it holds the
    lock too, for as long as it lives. `None` on a file system without locks, where nothing is held.

    Args:
        file (`Path`): in a folder that is there.
        what (`str` or `Path`): what the holder of the lock writes, for the message.
        seconds (`float`, *optional*, defaults to 0): how long to wait for another process; `None` for ever.
        notice (`str`, *optional*): a line for standard error when there is something to wait for.

    Raises:
        SVFError: another process holds it.
        OSError: the file cannot be made.
    """
    descriptors: list[int] = []
    held = FileLock(file, fallback_to_soft=False, on_acquired=descriptors.append)
    try:
        try:
            held.acquire(blocking=False)
        except Timeout:
            if notice:
                print(notice, file=sys.stderr, flush=True)
            held.acquire(timeout=-1 if seconds is None else seconds, poll_interval=0.2)
    except Timeout as error:
        raise SVFError(f"another process is writing {what}: wait for it, or give another folder") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield descriptors[0] if descriptors else None
    finally:
        if descriptors:
            with contextlib.suppress(OSError):
                file.unlink()  # while it is held: whoever waits for it looks whether it is still there
            held.release()


@contextmanager
def hold_folder(folder: Path, seconds: float = 0.0, notice: str = "") -> Iterator[int | None]:
    """
    `folder`, made with the parents that it lacks, and held against other processes as [`lock`] does it. What killed
    processes have left of files in it is removed. A folder that was made here and stays empty is removed again.

    Raises:
        SVFError: another process holds it, or the disk takes no more.
    """
    with ExitStack() as stack:
        with disk_errors(folder):
            for tries_left in reversed(range(_TRIES)):
                try:
                    stack.enter_context(made_folder(folder))
                    descriptor = stack.enter_context(lock(folder / LOCK, folder, seconds, notice))
                    break
                except (FileExistsError, FileNotFoundError):  # who held it has left it empty, and is removing it
                    if not tries_left:
                        raise
            remove_partials(folder)
        yield descriptor


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """`folder` is there, with its parents, while the block runs; those that were missing are removed again where they
    are empty at the end."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
