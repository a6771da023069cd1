"""A disk without room is one line for whoever runs a command, whatever wrote to it."""

import errno
import threading
from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.storage.disk_errors import full_disk


def no_room() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_it_says_where_and_what_to_do() -> None:
    said = r"cannot write run: No space left on device; free some space"
    with pytest.raises(SVFError, match=said), full_disk(Path("run")):
        no_room()


def test_what_is_about_something_else_stays_as_it_is() -> None:
    with pytest.raises(ConnectionRefusedError), full_disk(Path("run")):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


def test_a_thread_that_finds_it_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.excepthook
    with full_disk(Path("run")):
        writer = threading.Thread(target=no_room)
        writer.start()
        writer.join()
    assert capsys.readouterr().err == ""
    assert threading.excepthook is before
