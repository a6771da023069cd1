"""Memory, descriptors and threads of every process of a run, sampled while it goes on."""

import statistics
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from svf_rl.report import style

ROLES = {"svf_rl/train.py": "trainer", "supervisor.py": "sandbox", "math_worker": "math worker"}
"""By what the command line has in it. A sandbox is bubblewrap, its supervisor and what that has forked."""


@dataclass(frozen=True)
class Sample:
    """What one process held after that update: private memory in MB (not the pages of libraries that it maps)."""

    update: int
    role: str
    pid: int
    megabytes: float
    descriptors: int
    threads: int


class MemoryWatch:
    """Samples the processes below `root()` every `seconds`, until it is left."""

    def __init__(self, root: Callable[[], int], update: Callable[[], int], seconds: float):
        self.samples: list[Sample] = []
        self._root, self._update, self._seconds = root, update, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            with suppress(psutil.NoSuchProcess):
                update, processes = self._update(), psutil.Process(self._root()).children(recursive=True)
                for process in processes:
                    with suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError, ProcessLookupError):
                        self._look_at(process, update)

    def _look_at(self, process: psutil.Process, update: int) -> None:
        command = " ".join(process.cmdline())
        role = next((name for part, name in ROLES.items() if part in command), None)
        # the launcher's own command line names the script too: the one that trains is what it has started
        if role is None or "accelerate" in command or process.status() == psutil.STATUS_ZOMBIE:
            return
        self.samples.append(
            Sample(update, role, process.pid, private_mb(process.pid), process.num_fds(), process.num_threads())
        )


def private_mb(pid: int) -> float:
    """Anonymous memory that a process has resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1000
    return 0.0


def window(samples: Sequence[Sample], role: str, value: str, start: float, end: float) -> float:
    """
    Median over the samples of the updates from `start` to `end`, of what all processes of a role held together.

    Args:
        samples (`Sequence[Sample]`): of one run.
        role (`str`): one of `ROLES`.
        value (`str`): `megabytes`, `descriptors` or `threads`: of the process that held most at the time.
        start, end (`float`): update numbers.
    """
    by_update: dict[int, float] = {}
    for sample in samples:
        if sample.role == role and start <= sample.update < end:
            by_update[sample.update] = max(by_update.get(sample.update, 0.0), float(getattr(sample, value)))
    return statistics.median(by_update.values())


def draw_memory(samples: Sequence[Sample], path: Path) -> None:
    """The private memory of each process over the updates, a panel a role, as PNG."""
    with style.house_style():
        figure, panels = style.make_figure(len(ROLES), 1.8)
        for place, (panel, role) in enumerate(zip(panels, ROLES.values(), strict=True)):
            own = [sample for sample in samples if sample.role == role]
            updates, megabytes = [sample.update for sample in own], [sample.megabytes for sample in own]
            panel.plot(updates, megabytes, ".", markersize=2, color=style.PALETTE[place])
            panel.set(title=role, ylabel="MB", ylim=(0, 1.1 * max(megabytes)))
        panels[-1].set_xlabel("update")
        style.save(figure, path)
