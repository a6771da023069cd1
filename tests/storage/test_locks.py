"""One process at a time."""

import errno
import fcntl
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.storage.locks import hold_folder, lock, made_folder

HOLDS = """
import sys
from pathlib import Path
from svf_rl.storage.locks import hold_folder
with hold_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_folder_that_another_process_holds_is_refused(tmp_path: Path) -> None:
    with (
        another_process(tmp_path / "out"),
        pytest.raises(SVFError, match=r"another process is writing .*out: wait"),
        hold_folder(tmp_path / "out"),
    ):
        pass


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    with another_process(tmp_path / "out") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with hold_folder(tmp_path / "out"):
            pass


def test_the_end_of_the_holder_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with another_process(tmp_path / "out") as process:
        assert process.stdin is not None
        process.stdin.close()
        with hold_folder(tmp_path / "out", seconds=60, notice="waiting"):
            assert process.wait() == 0
    assert capsys.readouterr().err in ("", "waiting\n")


@pytest.mark.parametrize("error", [FileExistsError, FileNotFoundError])
def test_a_folder_that_its_holder_is_removing_is_made_again(
    error: type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, errors = Path.mkdir, [error(), error()]

    def mkdir(path: Path, *args: object, **kwargs: object) -> None:
        """pathlib's, while another process removes what it has found, or not found."""
        if errors:
            raise errors.pop()
        make(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with hold_folder(tmp_path / "new" / "out"):
        assert (tmp_path / "new" / "out" / "_lock").is_file()
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_does_not_end_is_waited_for_so_long_and_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        hold_folder(tmp_path),
        pytest.raises(SVFError, match="another process"),
        hold_folder(tmp_path, seconds=0.3, notice="waiting"),
    ):
        pass
    assert capsys.readouterr().err == "waiting\n"


HANDS_ON = """
import os, subprocess, sys
from pathlib import Path
from svf_rl.storage.locks import lock
with lock(Path(sys.argv[1]), "it") as descriptor:
    subprocess.Popen(["cat"], pass_fds=[descriptor])  # reads our input to its end
    print("handed on", flush=True)
    os._exit(1)  # as a kill: nothing is released
"""


def test_a_process_that_inherits_the_lock_holds_it_after_the_end_of_the_holder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANDS_ON, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.wait() == 1
        with pytest.raises(SVFError, match="another process"), lock(tmp_path / "lock", "it"):
            pass
    with lock(tmp_path / "lock", "it", seconds=60):
        pass


def test_nothing_is_left_of_a_lock_and_of_a_folder_that_stays_empty(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "new" / "out"):
        assert (tmp_path / "new" / "out").is_dir()
    assert list(tmp_path.iterdir()) == []
    with hold_folder(tmp_path / "new" / "out"):
        (tmp_path / "new" / "out" / "file").touch()
    assert [path.name for path in (tmp_path / "new" / "out").iterdir()] == ["file"]


def test_what_killed_processes_left_of_files_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".summary.json.0123abcd.partial").touch()
    (tmp_path / "file").touch()
    with hold_folder(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["_lock", "file"]


def test_a_file_system_without_locks_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with hold_folder(tmp_path) as descriptor:
        assert descriptor is None


@pytest.mark.parametrize("place", ["/proc/nowhere", "x" * 300])
def test_a_place_that_takes_no_folder_is_one_line(place: str, tmp_path: Path) -> None:
    with pytest.raises(SVFError, match=r"cannot write .*: "), hold_folder(tmp_path / place):
        pass


def test_an_error_of_the_block_is_not_one_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError), hold_folder(tmp_path):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


def test_folders_that_another_process_filled_meanwhile_stay(tmp_path: Path) -> None:
    with made_folder(tmp_path / "new" / "a"):
        (tmp_path / "new" / "b").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b"]
