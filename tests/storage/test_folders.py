"""A folder is there whole or not at all."""

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from svf_rl.errors import SVFError
from svf_rl.storage import folders
from svf_rl.storage.folders import (
    check_new,
    check_output,
    check_space,
    check_writable,
    discard_folder,
    is_unused,
    move_files,
    new_folder,
    partial_folder,
    publish_folder,
)
from svf_rl.storage.locks import lock


def fill(folder: Path, text: str = "new") -> None:
    (folder / "below").mkdir(parents=True)
    (folder / "a").write_text(text)
    (folder / "below" / "b").write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


NEW = {"a": "new", "below/b": "new"}


def test_a_new_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with new_folder(out) as staging:
        fill(staging)
        assert not out.exists()
    assert content(out) == NEW
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_bad_end_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    def write() -> None:
        with new_folder(tmp_path / "new" / "out") as staging:
            fill(staging)
            raise error

    with pytest.raises(SVFError if isinstance(error, OSError) else type(error)):
        write()
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    fill(tmp_path / ".out.partial", "half")
    (tmp_path / ".out.partial" / "c").touch()
    (tmp_path / ".out.lock").touch()
    with new_folder(tmp_path / "out") as staging:
        fill(staging)
    assert content(tmp_path / "out") == NEW
    assert names(tmp_path) == ["out"]


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    with (
        lock(tmp_path / ".out.lock", "it"),
        pytest.raises(SVFError, match=r"another process is writing .*out"),
        new_folder(tmp_path / "out"),
    ):
        pass
    assert names(tmp_path) == []


def test_what_is_there_is_refused_unless_it_is_empty_or_to_be_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old")
    with pytest.raises(SVFError, match="not empty"), new_folder(tmp_path / "out"):
        pass
    with new_folder(tmp_path / "out", replace=True) as staging:
        fill(staging)
        assert content(tmp_path / "out")["a"] == "old"
    assert content(tmp_path / "out") == NEW
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as staging:
        fill(staging)
    assert content(tmp_path / "empty") == NEW
    assert names(tmp_path) == ["empty", "out"]


def test_a_folder_that_is_to_be_replaced_survives_a_bad_end(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old")
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out", replace=True):
        raise KeyboardInterrupt
    assert content(tmp_path / "out")["a"] == "old"
    assert names(tmp_path) == ["out"]


def test_all_is_on_the_disk_before_the_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr(folders, "sync", lambda path: synced.append((path.name, (tmp_path / "out").exists())))
    fill(partial_folder(tmp_path / "out"))
    publish_folder(partial_folder(tmp_path / "out"), tmp_path / "out")
    assert sorted(synced[:-1]) == [(".out.partial", False), ("a", False), ("b", False), ("below", False)]
    assert synced[-1] == (tmp_path.name, True)


def test_a_kill_while_a_folder_is_removed_leaves_none_that_is_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "out")

    def killed(folder: Path, **_: Any) -> None:
        if folder.exists():
            (folder / "a").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        discard_folder(tmp_path / "out")
    assert names(tmp_path) == [".out.old"]
    monkeypatch.undo()
    fill(tmp_path / "out")
    discard_folder(tmp_path / "out")
    assert names(tmp_path) == []


def test_files_are_moved_each_in_one_step_into_a_folder_that_is_there(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old")
    (tmp_path / "out" / "mine").write_text("kept")
    fill(tmp_path / "out" / ".adapter.partial")
    move_files(tmp_path / "out" / ".adapter.partial", tmp_path / "out")
    assert content(tmp_path / "out") == {**NEW, "mine": "kept"}


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SVFError, match="file is not a folder that can be written"):
        check_new(tmp_path / "file" / "out")
    with pytest.raises(SVFError, match="is not a folder: give another"):
        check_new(tmp_path / "file")
    assert check_writable(tmp_path / "a" / "b") == tmp_path


def test_the_working_directory_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    with pytest.raises(SVFError, match=r"^\. is a mount point or the working directory: give a folder within it"):
        check_new(Path())
    check_new(Path("new"))


def test_too_little_space_is_told_in_numbers(tmp_path: Path) -> None:
    with pytest.raises(SVFError, match=r"out needs 1000000000\.0 GB and .* GB left"):
        check_space(tmp_path / "out", 10**18)


def test_a_folder_with_what_a_kill_left_at_the_first_write_is_unused(tmp_path: Path) -> None:
    (tmp_path / ".settings.json.0123abcd.partial").touch()
    (tmp_path / "_lock").touch()
    assert is_unused(tmp_path)
    (tmp_path / ".git").touch()
    assert not is_unused(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "is no folder for a run"),
        (" ", "is no folder for a run"),
        ("/", "is no folder for a run"),
        ("//", "is no folder for a run"),
        ("a\0b", "is no folder for a run"),
        ("/dev/null", "is there and is not a folder"),
        ("/dev/null/run", "is not a folder that can be written"),
        ("file", "is there and is not a folder"),
        ("file/run", "is not a folder that can be written"),
        ("loop", "is there and is not a folder"),
        ("x" * 300, "File name too long; give another output_dir"),
        ("/proc/run/" + "x" * 5_000, "File name too long; give another output_dir"),
    ],
)
def test_an_output_folder_that_cannot_be_one(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("loop").symlink_to("loop")
    with pytest.raises(SVFError, match=message) as refused:
        check_output(given)
    assert str(refused.value).isprintable()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.parametrize("given", [".", "run", "a/b/c", "~/run", "with spaces"])
def test_an_output_folder_that_can_be_made(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    check_output(given)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_for_a_new_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SVFError, match="File name too long; give another folder"):
        check_new(tmp_path / ("long" * 100))
