"""Short names of folders."""

from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.storage.path_names import path_names


def test_names_are_as_short_as_they_can_be() -> None:
    assert path_names(["/runs/math", "/runs/code"]) == ["math", "code"]
    assert path_names(["/runs/a/best", "/runs/b/best", "/runs/c"]) == ["a/best", "b/best", "c"]
    assert path_names(["/runs/a/best", "/runs/b/best"], separator="-") == ["a-best", "b-best"]
    assert path_names(["/runs/base"], taken=("base",)) == ["runs/base"]


def test_a_folder_has_one_name_whatever_way_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert path_names(["runs/"]) == ["runs"]
    assert path_names(["."]) == [tmp_path.name]
    with pytest.raises(SVFError, match="named twice"):
        path_names(["runs", "./runs/../runs"])


def test_names_that_would_be_shared_are_refused() -> None:
    with pytest.raises(SVFError, match="would share the name base"):
        path_names(["base"], taken=("base",))
    with pytest.raises(SVFError, match="would share the name a-b"):
        path_names(["/x/a-b", "/x/a/b", "/y/b"], separator="-")
