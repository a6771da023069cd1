"""The line that says that something is still under way."""

import time

import pytest

from svf_rl import waiting
from svf_rl.waiting import say_waiting


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SECONDS", 0.2)
    monkeypatch.delenv("RANK", raising=False)


def test_it_is_said_as_long_as_it_lasts(capsys: pytest.CaptureFixture[str]) -> None:
    with say_waiting("vLLM is starting"):
        time.sleep(0.7)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("vLLM is starting (") for line in lines)
    time.sleep(0.3)
    assert capsys.readouterr().err == ""


def test_what_is_soon_over_and_other_processes_say_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with say_waiting("a server"):
        pass
    monkeypatch.setenv("RANK", "1")
    with say_waiting("a server"):
        time.sleep(0.4)
    assert capsys.readouterr().err == ""
