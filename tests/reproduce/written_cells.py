"""Cells whose processes write a file; apart from their tests, since other processes that start at once run them too."""

import os
import sys

from svf_rl.reproduce.cells import Cell
from svf_rl.reproduce.launch import hold_results, run_cells


def writing_cell(out, name, *, code="", needs=(), kind="training", **settings):
    """A cell whose process writes when it ran into `summary.json`, after `code`."""
    folder = out / "runs" / name
    script = (
        f"import json, pathlib, sys, time; start = time.time(); folder = pathlib.Path({str(folder)!r})\n{code}\n"
        "folder.mkdir(parents=True, exist_ok=True)\n"
        "times = {'base_accuracy': 0, 'accuracy': 1, 'start': start, 'end': time.time()}\n"
        "(folder / 'summary.json').write_text(json.dumps(times))"
    )
    command = [sys.executable, "-S", "-c", script]
    return Cell(name, kind, folder, {"seed": 0, **settings}, command, tuple(needs))


def run(cells, out, jobs=2):
    with hold_results(out) as lock:
        return run_cells(cells, out, jobs, os.environ, lock)
