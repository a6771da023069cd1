"""A run says of which commit its code is, and of no other repository's."""

import subprocess
from pathlib import Path

import pytest

from svf_rl.training import run


@pytest.mark.parametrize(("place", "known"), [("", True), (".venv/lib/site-packages", False)])
def test_an_installed_package_takes_no_commit_of_the_repository_around_it(
    place: str, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / place / "svf_rl" / "training" / "run.py"
    file.parent.mkdir(parents=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "first"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setattr(run, "__file__", str(file))
    assert run._git_commit() == (commit if known else None)


def test_without_a_repository_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "__file__", str(tmp_path / "svf_rl" / "training" / "run.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert run._git_commit() is None
