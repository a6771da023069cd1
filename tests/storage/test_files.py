"""A file is there as it was or as it is to be."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.storage.files import remove_partials, write_file, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_its_folder_is_made(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    write_file(file, b"old")
    write_file(file, "new, 数")
    assert file.read_text(encoding="utf-8") == "new, 数"
    assert names(file.parent) == ["file"]


def test_json_holds_what_utf_8_cannot(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "half a pair: \udc80, 数"})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"text": "half a pair: \udc80, 数"}


WRITES = """
import os, sys
from pathlib import Path
from svf_rl.storage import files
if sys.argv[2] == "slowly":
    fsync = os.fsync
    def slow(handle):
        print("half", flush=True)
        sys.stdin.read()
    files.os.fsync = slow
files.write_file(Path(sys.argv[1]), b"new" * 100_000)
"""


def test_a_kill_in_the_middle_leaves_the_old_file_and_a_hidden_one(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"old")
    command = [sys.executable, "-c", WRITES, str(tmp_path / "file"), "slowly"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "file").read_bytes() == b"old"
    partial, file = names(tmp_path)
    assert (partial.startswith(".file."), partial.endswith(".partial"), file) == (True, True, "file")
    remove_partials(tmp_path)
    assert names(tmp_path) == ["file"]


def test_the_content_is_on_the_disk_before_it_has_the_name_and_the_name_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append((os.fstat(handle).st_size, names(tmp_path))))
    write_file(tmp_path / "file", b"12345")
    (size, before), (_, after) = synced
    assert size == 5
    assert "file" not in before
    assert after == ["file"]


def test_several_processes_may_write_one_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITES, str(tmp_path / "file"), "at once"]
    for process in [subprocess.Popen(command) for _ in range(2)]:
        assert process.wait() == 0
    assert (tmp_path / "file").read_bytes() == b"new" * 100_000
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(("step", "code"), [("fsync", errno.ENOSPC), ("replace", errno.EROFS), ("open", errno.EACCES)])
def test_a_disk_that_takes_no_file_is_one_line_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    write_file(tmp_path / "file", b"old")

    def fails(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, fails)
        with pytest.raises(SVFError, match=f"cannot write .*file: {os.strerror(code)}; buy another disk$"):
            write_file(tmp_path / "file", b"new", remedy="buy another disk")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "file", b"new")
    assert names(tmp_path) == []


def test_partials_that_may_be_of_a_living_process_and_files_of_others_are_spared(tmp_path: Path) -> None:
    for name in (".a.0123abcd.partial", ".b.0123abcd.partial", ".notes.partial", "c"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".a.0123abcd.partial", (0, 0))
    remove_partials(tmp_path, older_than=3600)
    assert names(tmp_path) == [".b.0123abcd.partial", ".notes.partial", "c"]
    time.sleep(0.01)
    remove_partials(tmp_path)
    assert names(tmp_path) == [".notes.partial", "c"]
