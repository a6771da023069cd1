"""The folder of an evaluation: `settings.json`, `<label>/<task>.jsonl`, `summary.json`."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError

Settings = dict[str, Any]

# What a folder was called does not matter where the fingerprint of its content agrees.
_NAMES = ("model", "adapter")
_KIND = "svf-rl evaluation"


class ResultFolder:
    """
    Where the results of a call go, and where those of earlier calls are found.

    Args:
        path (`Path`): made by [`ResultFolder.writing`], and not before.
        settings (`Mapping`): what decides the completions, by `"<label>/<task>"`.

    Raises:
        SVFError: the path cannot be written, holds something else, or was made with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Settings]):
        self.path, self._settings = path, dict(settings)
        self._check()
        if path.is_dir():  # another one's: better known now than when the engine stands
            os.close(locked(self.path))

    def records(self, label: str, task_file: str) -> Path:
        """The file with the graded completions of one model on one task."""
        return self.path / label / f"{task_file}.jsonl"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The folder, made and held against other processes. It is removed again when the block ends badly before the
        first graded completion, if it was made here."""
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        handle = locked(self.path)
        try:
            earlier = self._check()
            write_json(self.path / "settings.json", {"kind": _KIND, "runs": {**earlier, **self._settings}})
            with disk_errors(self.path):
                for run in self._settings:
                    (self.path / run).parent.mkdir(exist_ok=True)
            yield
        except BaseException:  # an interrupt leaves no more behind than bad input does
            if made and not any(self.path.rglob("*.jsonl")):
                shutil.rmtree(self.path, ignore_errors=True)
                with contextlib.suppress(OSError):  # another evaluation has begun beside this one
                    for parent in made[1:]:
                        parent.rmdir()
            raise
        finally:
            os.close(handle)

    def _check(self) -> dict[str, Settings]:
        """The settings of earlier calls, which ours agree with."""
        existing = check_writable(self.path)
        file = self.path / "settings.json"
        if not file.is_file():
            if existing == self.path and any(self.path.iterdir()):
                raise SVFError(f"{self.path} holds files that are not of an evaluation: give an empty folder as --out")
            return {}
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            earlier: dict[str, Settings] = content["runs"] if content["kind"] == _KIND else {}
        except (ValueError, KeyError, TypeError) as error:
            raise SVFError(f"{file} is not of an evaluation, or damaged: give another --out") from error
        for run in self._settings.keys() & earlier.keys():
            _compare(run, earlier[run], self._settings[run], self.path)
        return earlier


def _compare(run: str, there: Settings, here: Settings, path: Path) -> None:
    here = json.loads(json.dumps(here))  # tuples become lists, as they did in the file
    for name in [*here, *there]:
        if name not in _NAMES and there.get(name) != here.get(name):
            raise SVFError(
                f"{path} holds {run} with another {name.replace('_', ' ')}: {_short(there.get(name))} there, "
                f"{_short(here.get(name))} here; give the same, or another --out"
            )


def check_writable(path: Path) -> Path:
    """The folder, or the nearest one above it that is there. Raises `SVFError` where that cannot be written."""
    with disk_errors(path):  # a name that is too long, or a folder that may not be looked into
        existing = next(p for p in (path, *path.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise SVFError(f"{existing} is not a folder that can be written: give another --out")
    return existing


def locked(path: Path) -> int:
    """A descriptor of the folder, which holds it until it is closed. Raises `SVFError` where another process does."""
    with disk_errors(path):
        handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise SVFError(f"another call is writing into {path}: wait for it, or give another --out") from error
    except OSError:
        pass  # a file system without locks
    return handle


@contextmanager
def held(path: Path) -> Iterator[None]:
    """The folder, made and held against other processes. What was made is removed again where it stays empty."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    handle = locked(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all. Raises `SVFError` where the disk takes no more."""
    temporary = path.with_name(f".{path.name}")
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with disk_errors(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the system says while `path` is written is raised as `SVFError`: the disk is full, or read-only."""
    try:
        yield
    except OSError as error:
        raise SVFError(f"cannot write {path}: {error.strerror}; the same command goes on from here") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
