"""The folder of an evaluation: `settings.json`, `<label>/<task>.jsonl`, `summary.json`."""

import itertools
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.storage.files import write_json
from svf_rl.storage.folders import check_writable, is_unused
from svf_rl.storage.json_files import read_json
from svf_rl.storage.locks import hold_folder
from svf_rl.storage.same_settings import OtherSettings, check_same_settings

Settings = dict[str, Any]

# What a folder was called does not matter where the fingerprint of its content agrees.
_NAMES = ("model", "adapter")
_KIND = "svf-rl evaluation"


def choose_folder(out: str | None, default: str, settings: Mapping[str, Settings]) -> "ResultFolder":
    """The folder `out`; without one the first of `default`, `default-2`, `default-3`, ... that was not made with other
    settings, so that each setting has its own and resumes there."""
    if out is not None:
        return ResultFolder(Path(out).expanduser(), settings)
    for number in itertools.count(1):
        path = Path(default if number == 1 else f"{default}-{number}")
        try:
            folder = ResultFolder(path, settings)
        except OtherSettings:
            continue
        if number > 1:
            print(f"{default} has results of other settings: these go to {path}", file=sys.stderr)
        return folder
    raise AssertionError


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
            with hold_folder(path):
                pass

    def records(self, label: str, task_file: str) -> Path:
        """The file with the graded completions of one model on one task."""
        return self.path / label / f"{task_file}.jsonl"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The folder, made and held against other processes. It is removed again when the block ends badly before the
        first graded completion, if it was made here."""
        is_new = not self.path.exists()
        with hold_folder(self.path):
            try:
                earlier = self._check()
                write_json(self.path / "settings.json", {"kind": _KIND, "runs": {**earlier, **self._settings}})
                yield
            except BaseException:  # an interrupt leaves no more behind than bad input does
                if is_new and not any(self.path.rglob("*.jsonl")):
                    shutil.rmtree(self.path, ignore_errors=True)
                raise

    def _check(self) -> dict[str, Settings]:
        """The settings of earlier calls, which ours agree with."""
        existing = check_writable(self.path, "give another --out")
        file = self.path / "settings.json"
        if not file.is_file():
            if existing == self.path and not is_unused(self.path):
                raise SVFError(f"{self.path} holds files that are not of an evaluation: give an empty folder as --out")
            return {}
        content = read_json(file, "give another --out", {"kind": str, "runs": dict})
        if content["kind"] != _KIND:
            raise SVFError(f"{file} is not of an evaluation: give another --out")
        earlier: dict[str, Settings] = content["runs"]
        for run in sorted(self._settings.keys() & earlier.keys()):
            made = f"{self.path} holds {run}, which was made"
            check_same_settings(earlier[run], self._settings[run], made, "give the same, or another --out", _NAMES)
        return earlier
