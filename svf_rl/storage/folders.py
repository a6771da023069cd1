"""A folder that is there whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from svf_rl.errors import SVFError
from svf_rl.storage.disk_errors import disk_errors
from svf_rl.storage.files import PARTIAL, sync
from svf_rl.storage.locks import LOCK, lock, made_folder


def check_new(path: Path) -> None:
    """Raises `SVFError` unless `path` is free, or an empty folder, and its place can be written."""
    with disk_errors(path, "give another folder"):  # a name that is too long, or a folder that may not be looked into
        if path.is_dir() and not path.is_symlink():
            if any(path.iterdir()):
                raise SVFError(f"{path} is there and not empty: give another folder, or remove it")
            if path.is_mount() or Path.cwd().is_relative_to(path.resolve()):  # which no new folder can replace
                raise SVFError(f"{path} is a mount point or the working directory: give a folder within it")
        elif path.exists() or path.is_symlink():
            raise SVFError(f"{path} is there and is not a folder: give another one")
    check_writable(path.absolute().parent)


def check_writable(path: Path, remedy: str = "give another folder") -> Path:
    """`path`, or the nearest folder above it that is there. Raises `SVFError`, which ends with `remedy`, where that
    cannot be written."""
    with disk_errors(path, remedy):  # a name that is too long, or a folder that may not be looked into
        existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise SVFError(f"{existing} is not a folder that can be written: {remedy}")
    return existing


def check_output(given: str) -> None:
    """Raises `SVFError` unless the output folder of a run can be there: a folder, or a free name where one can be made.
    Nothing is made."""
    path = Path(given).expanduser()
    if not given.strip() or "\0" in given or path.absolute() == Path(path.absolute().anchor):
        raise SVFError(f"output_dir {given!r} is no folder for a run: name one, such as runs/mine")
    if os.path.lexists(path) and not path.is_dir():
        raise SVFError(f"output_dir {given} is there and is not a folder: give another one")
    check_writable(path, "give another output_dir")


def check_space(path: Path, needed: int) -> None:
    """Raises `SVFError` where fewer than `needed` bytes are free for `path`."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise SVFError(
            f"{path} needs {needed / 1e9:.1f} GB and {existing} has {free / 1e9:.1f} GB left: free some, or give "
            "another place"
        )


def is_unused(folder: Path) -> bool:
    """Whether nothing is in `folder` but what a process that was killed at its first write may have left."""
    return all(path.name in (LOCK, ".lock") or path.match(PARTIAL) for path in folder.iterdir())


@contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """
    An empty folder beside `path` to write into, which takes the name `path` when the block ends well and is removed
    when it does not. What a killed process has left there is cleared by the next one.

    Args:
        path (`Path`): free, or an empty folder.
        replace (`bool`, *optional*, defaults to `False`): take the place of a folder that is there.

    Raises:
        SVFError: `path` holds something, another process is writing it, or the disk takes no more.
    """
    if not replace:
        check_new(path)
    path = path.absolute()
    partial = partial_folder(path)
    with disk_errors(path), made_folder(path.parent), lock(path.with_name(f".{path.name}.lock"), path):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            yield partial
            if not replace:
                check_new(path)
            publish_folder(partial, path)
        except BaseException:  # an interrupt leaves no more behind than bad input does
            shutil.rmtree(partial, ignore_errors=True)
            raise


def partial_folder(folder: Path) -> Path:
    """Where the files of `folder` are until it is whole."""
    return folder.with_name(f".{folder.name}.partial")


def publish_folder(partial: Path, folder: Path) -> None:
    """Bring all that is in `partial` to the disk and let it appear as `folder`, in place of one that is there."""
    for path in [*partial.rglob("*"), partial]:
        if not path.is_symlink():
            sync(path)
    old = _move_aside(folder) if folder.exists() else None
    try:
        partial.rename(folder)
    except BaseException:
        if old is not None:
            old.rename(folder)
        raise
    sync(folder.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def move_files(partial: Path, folder: Path) -> None:
    """Put the files in `partial` into `folder`, each in one step."""
    for file in sorted(path for path in partial.rglob("*") if path.is_file()):
        place = folder / file.relative_to(partial)
        place.parent.mkdir(parents=True, exist_ok=True)
        sync(file)
        file.replace(place)
    sync(folder)


def discard_folder(folder: Path) -> None:
    """Remove a folder: from sight first, so that a kill in between leaves no torn one."""
    shutil.rmtree(_move_aside(folder), ignore_errors=True)


def _move_aside(folder: Path) -> Path:
    aside = folder.with_name(f".{folder.name}.old")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(aside)
    return folder.rename(aside)
