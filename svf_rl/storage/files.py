"""A file that is there as it was or as it is to be, whenever the process or the machine stops."""

import contextlib
import errno
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from svf_rl.storage.disk_errors import REMEDY, disk_errors

PARTIAL = ".*." + "[0-9a-f]" * 8 + ".partial"
"""Pattern of the hidden names under which files are written."""


def write_file(path: Path, content: str | bytes, remedy: str = REMEDY, private: bool = False) -> None:
    """
    Write `path`, whose folder is made where it is missing. Readers see what was there before or all of `content`, also
    after a kill or a power cut; several processes may write the same file.

    A kill leaves a hidden `.<name>.<8 digits>.partial`, which `remove_partials` removes.

    Args:
        path (`Path`): the file.
        content (`str` or `bytes`): text is written as UTF-8; unpaired surrogates, which it cannot hold, are escaped.
        remedy (`str`, *optional*): the end of the message when the disk takes no more.
        private (`bool`, *optional*, defaults to `False`): no other user may read it.

    Raises:
        SVFError: the disk is full or read-only, or the folder cannot be made. Nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    with disk_errors(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if private:
                partial.touch(0o600)
            with partial.open("wb") as file:
                file.write(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:  # an interrupt too must not leave half a file behind
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        sync(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, as [`write_file`] does."""
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def remove_partials(folder: Path, older_than: float = 0.0) -> None:
    """Remove what killed processes have left of files in `folder`. Where others may be writing right now, `older_than`
    (seconds) spares what is theirs."""
    for path in folder.glob(PARTIAL):
        with contextlib.suppress(OSError):  # another process removed it, or the folder is read-only
            if time.time() - path.stat().st_mtime >= older_than:
                path.unlink()


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems sync no folders
            raise
    finally:
        os.close(handle)
