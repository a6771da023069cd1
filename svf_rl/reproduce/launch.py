"""Runs cells as processes, several at once, each with its log; what is done is not run again."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from svf_rl.errors import one_line
from svf_rl.reproduce.cells import Cell, is_done, log_path, read_result, record_path
from svf_rl.storage.disk_errors import disk_errors
from svf_rl.storage.files import write_json
from svf_rl.storage.locks import hold_folder
from svf_rl.storage.same_settings import difference

# How long to wait for the processes of a call that was killed.
_PATIENCE = 60.0
_POLL = 0.2
# How a supervisor ends whose command was killed, or that was killed itself.
_KILLED = (128 + signal.SIGKILL, -signal.SIGKILL)


@dataclass
class Outcome:
    """What became of the cells, by name: those that are done, why others failed, and which of them were made now."""

    done: set[str]
    failed: dict[str, str] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)


@dataclass
class _Running:
    cell: Cell
    process: "subprocess.Popen[bytes]"
    started: float


def hold_results(out: Path) -> AbstractContextManager[int | None]:
    """The folder, held as [`hold_folder`] does it. A call that was killed leaves processes that end within seconds;
    they have inherited the lock and hold the folder until then."""
    return hold_folder(out, _PATIENCE, f"waiting for the processes of another call in {out} to end")


def run_cells(cells: Sequence[Cell], out: Path, jobs: int, environment: Mapping[str, str], lock: int | None) -> Outcome:
    """
    Make every cell that is not done yet, at most `jobs` at once, in their order as far as what they need is there.

    A cell that fails does not stop the others. An evaluation runs without an adapter that failed; an adaptation does
    not.

    Raises:
        SVFError: a cell was made with other settings (found before anything runs).
    """
    outcome = Outcome(set())
    for cell in cells:  # those that others need come first; what comes of a run that is made again is made again
        if is_done(cell, out) and outcome.done.issuperset(cell.needs):
            outcome.done.add(cell.name)
    waiting = [cell for cell in cells if cell.name not in outcome.done]
    running: list[_Running] = []
    took: list[float] = []
    start = time.monotonic()

    def tell(text: str) -> None:
        """A line for one more cell, with the time gone and roughly what is left, from the cells that this call ran."""
        ended = len(outcome.done) + len(outcome.failed)
        left = (len(cells) - ended) * sum(took) / max(1, len(took)) / jobs
        about = f", about {tqdm.format_interval(left)} left" if left else ""
        bar.write(f"[{ended}/{len(cells)}] {text} ({tqdm.format_interval(time.monotonic() - start)} gone{about})")
        bar.update()

    # the bar is for a terminal; the lines, one a cell, are for a log too
    with tqdm(total=len(cells), initial=len(outcome.done), unit="cell", dynamic_ncols=True, disable=None) as bar:
        try:
            while waiting or running:
                for cell in list(waiting):
                    missing = [name for name in cell.needs if name in outcome.failed]
                    if any(name not in outcome.done and name not in missing for name in cell.needs):
                        continue
                    if missing and cell.kind == "adaptation":
                        waiting.remove(cell)
                        outcome.failed[cell.name] = f"needs {missing[0]}"
                        tell(f"not run: {cell.name}, which needs {missing[0]}")
                    elif len(running) < jobs:
                        waiting.remove(cell)
                        running.append(_start(_without(cell, missing), out, environment, lock))
                for run in [run for run in running if run.process.poll() is not None]:
                    running.remove(run)
                    took.append(time.monotonic() - run.started)
                    tell(_finish(run, out, outcome, took[-1]))
                bar.set_postfix_str(", ".join(run.cell.name for run in running))
                time.sleep(_POLL)
        finally:
            for run in running:  # the end of its input ends it
                assert run.process.stdin is not None
                run.process.stdin.close()
            for run in running:
                run.process.wait()
    return outcome


def _without(cell: Cell, missing: Sequence[str]) -> Cell:
    """An evaluation less the adapters that could not be made."""

    def less(values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "adapters": {k: v for k, v in values["adapters"].items() if k not in missing}}

    return replace(cell, settings=less(cell.settings), spec=less(cell.spec)) if missing else cell


def _start(cell: Cell, out: Path, environment: Mapping[str, str], lock: int | None) -> _Running:
    """Write down what the cell is made with, and start its process. What an interrupted run has left is taken away, but
    for the checkpoints of a training run with the same settings: it resumes from the last."""
    record, log = record_path(out, cell.name), log_path(out, cell.name)
    left = read_result(record)
    with disk_errors(out):
        if cell.kind == "training" and difference(left.get("settings"), cell.settings):
            shutil.rmtree(cell.folder, ignore_errors=True)
        cell.result.unlink(missing_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        written = log.open("wb")
    with written:
        write_json(record, {"kind": cell.kind, "settings": cell.settings, "spec": cell.spec})
        process = subprocess.Popen(
            [sys.executable, "-m", "svf_rl.reproduce.supervise", *cell.command],
            stdin=subprocess.PIPE,
            stdout=written,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            pass_fds=[] if lock is None else [lock],  # held until the last process has ended
            start_new_session=True,  # a signal to our group ends us, and by that the process, which has time to end
        )
    return _Running(cell, process, time.monotonic())


def _finish(run: _Running, out: Path, outcome: Outcome, seconds: float) -> str:
    """Take down how a process ended; returns a line that says so."""
    run.process.communicate()  # closes its input
    cell, status = run.cell, run.process.returncode
    if status == 0 and cell.result.is_file():
        record = record_path(out, cell.name)
        write_json(record, {**read_result(record), "seconds": round(seconds, 1)})
        outcome.done.add(cell.name)
        outcome.made.add(cell.name)
        gain = ""
        if cell.kind == "training":
            summary = read_result(cell.result)
            gain = f", accuracy {summary['base_accuracy']:.3f} before, {summary['accuracy']:.3f} after"
        return f"{cell.name}: {seconds:.0f} s{gain}"
    log = log_path(out, cell.name)
    killed = "killed from outside, as when the memory is full" if status in _KILLED else ""
    outcome.failed[cell.name] = last_error(log) or killed or f"exit status {status}"
    return f"failed: {cell.name}: {outcome.failed[cell.name]} (log: {log})"


def last_error(log: Path) -> str | None:
    """The last line of a log that says what went wrong."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    told = [line for line in lines if line.startswith("error: ") or "Error: " in line]
    return one_line(told[-1].removeprefix("error: ")) if told else None
