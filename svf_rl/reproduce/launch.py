"""Runs cells as processes, several at once, each with its log; what is done is not run again."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from svf_rl.reproduce.cells import Cell, begin, end, is_done, log_path, read_result
from svf_rl.storage.disk_errors import disk_errors
from svf_rl.storage.locks import hold_folder

# How long to wait for the processes of a call that was killed.
_PATIENCE = 60.0
_POLL = 0.2


@dataclass
class Outcome:
    """What became of the cells, by name: those that are done, why others failed, and which of them were made now."""

    done: set[str]
    failed: dict[str, str]
    made: set[str] = field(default_factory=set)


@dataclass
class _Running:
    cell: Cell
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]
    started: float


class _Progress:
    """How far a call is: cells, time gone, and roughly what is left, from the cells that this call made."""

    def __init__(self, total: int, done: int, jobs: int):
        self._total, self._done, self._jobs = total, done, jobs
        self._start = time.monotonic()
        self._seconds: list[float] = []

    def line(self, text: str, seconds: float | None = None) -> str:
        """The line for one more cell, which took `seconds`."""
        self._done += 1
        if seconds is not None:
            self._seconds.append(seconds)
        left = (self._total - self._done) * sum(self._seconds) / max(1, len(self._seconds)) / self._jobs
        gone = time.monotonic() - self._start
        about = f", about {_minutes(left)} left" if self._seconds and left else ""
        return f"[{self._done}/{self._total}] {text} ({_minutes(gone)} gone{about})"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


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
    done = {cell.name for cell in cells if is_done(cell, out)}
    outcome = Outcome(done, {})
    waiting = [cell for cell in cells if cell.name not in done]
    running: list[_Running] = []
    progress = _Progress(len(cells), len(done), jobs)
    # the bar is for a terminal; the lines, one a cell, are for a log too
    with tqdm(total=len(cells), initial=len(done), unit="cell", dynamic_ncols=True, disable=None) as bar:
        try:
            while waiting or running:
                for cell in list(waiting):
                    open_needs = [name for name in cell.needs if name not in done and name not in outcome.failed]
                    missing = [name for name in cell.needs if name in outcome.failed]
                    if open_needs:
                        continue
                    if missing and cell.kind == "adaptation":
                        outcome.failed[cell.name] = f"needs {missing[0]}"
                        waiting.remove(cell)
                        bar.write(progress.line(f"not run: {cell.name}, which needs {missing[0]}"))
                        bar.update()
                    elif len(running) < jobs:
                        waiting.remove(cell)
                        running.append(_start(without(cell, missing), out, environment, lock))
                for run in [run for run in running if run.process.poll() is not None]:
                    running.remove(run)
                    bar.write(progress.line(_finish(run, out, outcome), time.monotonic() - run.started))
                    bar.update()
                bar.set_postfix_str(", ".join(run.cell.name for run in running), refresh=False)
                bar.update(0)
                time.sleep(_POLL)
        finally:
            for run in running:  # the end of its input ends it
                assert run.process.stdin is not None
                run.process.stdin.close()
            for run in running:
                run.process.wait()
                run.log.close()
    return outcome


def without(cell: Cell, missing: Sequence[str]) -> Cell:
    """An evaluation less the adapters that could not be made."""
    if not missing:
        return cell

    def less(values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "adapters": {k: v for k, v in values["adapters"].items() if k not in missing}}

    return replace(cell, settings=less(cell.settings), spec=less(cell.spec))


def _start(cell: Cell, out: Path, environment: Mapping[str, str], lock: int | None) -> _Running:
    begin(cell, out)
    with disk_errors(out):
        log = log_path(out, cell.name).open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "svf_rl.reproduce.supervise", *cell.command],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        pass_fds=[] if lock is None else [lock],  # held until the last process has ended
        start_new_session=True,  # a signal to our group ends us, and by that the process, which then has time to end
    )
    return _Running(cell, process, log, time.monotonic())


def _finish(run: _Running, out: Path, outcome: Outcome) -> str:
    """Take down how a process ended; returns a line that says so."""
    assert run.process.stdin is not None
    run.process.stdin.close()
    run.log.close()
    seconds = time.monotonic() - run.started
    if run.process.returncode == 0 and run.cell.result.is_file():
        end(run.cell, out, seconds)
        outcome.done.add(run.cell.name)
        outcome.made.add(run.cell.name)
        return f"{run.cell.name}: {seconds:.0f} s{_gain(run.cell)}"
    log = log_path(out, run.cell.name)
    reason = last_error(log) or _exit_reason(run.process.returncode)
    outcome.failed[run.cell.name] = reason
    return f"failed: {run.cell.name}: {reason} (log: {log})"


def _exit_reason(status: int) -> str:
    if status == 128 + signal.SIGKILL:
        return "killed from outside, as when the memory is full"
    return f"exit status {status}"


def _gain(cell: Cell) -> str:
    summary = read_result(cell.result)
    if cell.kind != "training":
        return ""
    return f", accuracy {summary['base_accuracy']:.3f} before, {summary['accuracy']:.3f} after"


def last_error(log: Path) -> str | None:
    """The last line of a log that says what went wrong."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    told = [line for line in lines if line.startswith("error: ") or "Error: " in line]
    return told[-1].strip().removeprefix("error: ")[:300] if told else None
