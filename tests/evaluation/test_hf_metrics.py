"""The package's metrics through `evaluate.load`, without the hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest

from svf_rl.errors import SVFError
from svf_rl.metrics import metric_path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_verified_accuracy() -> None:
    metric = evaluate.load(metric_path("verified_accuracy"))
    result = metric.compute(
        predictions=["so #### 1,200", "It is 7.", "no idea", "-3"],
        references=["1200", "8", "1", "-3"],
        verifier="numeric",
    )
    assert result == {
        "accuracy": 0.5, "interval": pytest.approx([0.1500, 0.8500], abs=1e-4), "correct": 2, "scorable": 4,
        "not_scorable": 0,
    }  # fmt: skip


def test_verified_accuracy_takes_the_options_of_the_verifier() -> None:
    metric = evaluate.load(metric_path("verified_accuracy"))
    texts = {"predictions": ["YES"], "references": ["yes"], "verifier": "exact_match"}
    assert metric.compute(**texts)["accuracy"] == 0.0
    assert metric.compute(**texts, options={"ignore_case": True})["accuracy"] == 1.0


def test_pass_at_k() -> None:
    """Of 3 completions 1, 0 and 3 are right: pass@1 is 4/9, pass@2 is (2/3 + 0 + 1) / 3."""
    metric = evaluate.load(metric_path("pass_at_k"))
    result = metric.compute(
        predictions=[["1", "2", "2"], ["1", "1", "1"], ["7", "7", "7"]], references=["1", "2", "7"],
        k=[1, 2], verifier="numeric",
    )  # fmt: skip
    assert result["pass@1"] == pytest.approx(4 / 9)
    assert result["pass@2"] == pytest.approx(5 / 9)
    assert result["pass@1_interval"] == pytest.approx([0, 1])
    assert result["not_scorable"] == 0


@pytest.mark.usefixtures("bubblewrap")
def test_pass_at_k_runs_programs_against_a_mapping_as_json() -> None:
    metric = evaluate.load(metric_path("pass_at_k"))
    tests = json.dumps({"test_list": ["assert double(4) == 8"], "test_setup_code": "", "test_imports": []})
    programs = ["def double(x):\n    return 2 * x", "def double(x):\n    return x"]
    assert metric.compute(predictions=[programs], references=[tests])["pass@1"] == 0.5


def test_k_beyond_the_completions_is_refused() -> None:
    metric = evaluate.load(metric_path("pass_at_k"))
    with pytest.raises(SVFError, match=r"between 1 and the completions of every problem \(2\)"):
        metric.compute(predictions=[["1", "2"]], references=["1"], k=[3], verifier="numeric")


def test_no_problems_give_no_figure() -> None:
    result = evaluate.load(metric_path("pass_at_k")).compute(predictions=[], references=[], k=[1, 2])
    assert result == {
        "pass@1": None, "pass@1_interval": None, "pass@2": None, "pass@2_interval": None, "not_scorable": 0,
    }  # fmt: skip


def test_an_unknown_metric_is_one_line_that_names_the_others() -> None:
    with pytest.raises(SVFError) as error:
        metric_path("bleu")
    assert str(error.value) == "unknown metric 'bleu': use one of pass_at_k, verified_accuracy"


def test_nothing_is_written_outside_the_cache_and_no_network_is_used(tmp_path: Path) -> None:
    """In a process whose home, caches and working directory are empty and whose sockets refuse to connect."""
    script = """
import socket
def refused(*_): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refused
import evaluate
from svf_rl.metrics import metric_path
print(evaluate.load(metric_path("verified_accuracy")).compute(predictions=["3"], references=["3"]))
"""
    (tmp_path / "work").mkdir()
    (tmp_path / "home").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    environment |= {"HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "'accuracy': 1.0" in done.stdout
    assert not list((tmp_path / "work").iterdir())
    assert not list((tmp_path / "home").iterdir())
