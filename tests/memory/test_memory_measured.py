"""Planned memory against what a real update takes, each in a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_differences_of_peaks_are_those_of_the_plans(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository / "benchmarks" / "memory_plan.py"), "--out", str(tmp_path / "out.json")]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True, text=True)
    pairs = json.loads((tmp_path / "out.json").read_text())["pairs"]
    assert len(pairs) == 4
    for pair in pairs:
        assert pair["measured_bytes"] > 500e6, pair
        assert pair["ratio"] == pytest.approx(1, abs=0.1), pair
