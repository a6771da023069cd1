"""A long run with everything that can happen to it: it comes out as the run to which nothing happened, and no process
grows."""

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import fakes
import psutil
import pytest
from launched_run import LaunchedRun, assert_same
from memory_watch import MemoryWatch, Sample, draw_memory, window

SAVE_STEPS = 20
REWARDS = "tests/soak/soak_reward.py"

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(14_400)]


@dataclass(frozen=True)
class Fault:
    """
    Something that happens to a run.

    Args:
        strike (`Callable`): brings it about.
        says (`str`, *optional*): the one line with which the run then ends; `None`: it goes on.
        mend (`Callable`): removes the cause.
    """

    strike: Callable[["Soak"], None]
    says: str | None
    mend: Callable[["Soak"], None] = lambda soak: None


class Soak:
    """A run on a small disk of its own, which goes on each time that it has ended."""

    def __init__(self, folder: Path, updates: int):
        self.folder, self.updates, self.starts = folder, updates, 0
        self.output, self.flags = folder / "disk/run", folder / "flags"
        self.flags.mkdir()
        self.samples: list[Sample] = []
        self.run = self.start()

    def start(self) -> LaunchedRun:
        """The same command each time."""
        self.starts += 1
        settings = [
            "--skill", "code", "--max_steps", str(self.updates), "--per_device_train_batch_size", "4",
            "--num_generations", "2", "--learning_rate", "1e-3", "--max_completion_length", "24",
            "--train_items", "256", "--validation_items", "16", "--test_items", "32", "--vllm_max_model_length", "128",
            "--save_steps", str(SAVE_STEPS), "--eval_steps", str(SAVE_STEPS * 5), "--load_best_model_at_end", "false",
            "--log_completions", "--num_completions_to_print", "1",
            "--rewards", json.dumps([
                {"name": f"{REWARDS}:passes_tests", "flags": str(self.flags)}, f"{REWARDS}:closes_brackets",
            ]),
        ]  # fmt: skip
        self.run = LaunchedRun("cpu", self.output, self.folder / f"log{self.starts}", settings)
        return self.run

    def come_to(self, update: int) -> None:
        """Wait for that update; a run that has ended, or stands still for ten minutes, fails the test."""
        while self.run.update() < update:
            before = self.run.update()
            moved = self.run.wait_for(lambda before=before: self.run.update() > before, 600, 0.02)  # type: ignore[misc]
            assert moved, f"after update {before}: {self.run.said()[-4000:]}"

    def processes(self, of: str) -> list[psutil.Process]:
        """Those of a role, below the launcher."""
        found = []
        for process in psutil.Process(self.run.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if of in " ".join(process.cmdline()):
                    found.append(process)
        return found


# ---- what can happen -------------------------------------------------------------------------------------------------


def flag(name: str, says: str) -> Fault:
    """What the reward file does while the flag is there."""
    return Fault(lambda soak: (soak.flags / name).touch(), says, lambda soak: (soak.flags / name).unlink())


def kill(of: str) -> Callable[[Soak], None]:
    """All processes of a role at once: those of a sandbox while a program runs in it, for which it has more of them."""

    def strike(soak: Soak) -> None:
        idle = min(len(soak.processes(of)) for _ in range(20))
        assert idle
        soak.run.wait_for(lambda: len(soak.processes(of)) > idle, 3)
        for victim in soak.processes(of):
            with suppress(psutil.NoSuchProcess):
                victim.kill()

    return strike


def fill(soak: Soak) -> None:
    """Take all the room that is left on the disk."""
    with (soak.output.parent / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def stop(soak: Soak) -> None:
    os.kill(soak.run.workers()[0], signal.SIGTERM)


FAULTS = {
    "reward raises": flag("raise", "error: reward 'passes_tests' raised RuntimeError: the judge is out"),
    "sandbox killed": Fault(kill("supervisor.py"), None),
    "worker killed": Fault(kill("math_worker"), None),
    "disk full": Fault(fill, "error: cannot write ", lambda soak: (soak.output.parent / "filler").unlink()),
    "gradient": flag("overflow", "error: the gradient of step "),
    "engine": flag("engine", "error: vLLM failed: RuntimeError: no answer from the device"),
    "SIGTERM": Fault(stop, "stopped by SIGTERM after step "),
    "SIGKILL": Fault(lambda soak: soak.run.kill(), ""),
}


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder whose subfolder `disk` is a file system of its own, so that it can be filled."""
    with fakes.small_disk(tmp_path / "disk", "256m", lazy=True):
        yield tmp_path


def undisturbed(folder: Path, updates: int) -> Soak:
    soak = Soak(folder, updates)
    with MemoryWatch(lambda: soak.run.process.pid, soak.run.update, min(1.0, updates / 500)) as watch:
        soak.run.process.wait()
    assert soak.run.process.returncode == 0, soak.run.said()[-4000:]
    soak.samples = watch.samples
    return soak


def suffer(soak: Soak, name: str, update: int) -> str:
    """Let it happen after that update, and go on; returns what there is to say about it."""
    fault = FAULTS[name]
    soak.come_to(update)
    run, before = soak.run, soak.run.update()
    fault.strike(soak)
    if fault.says is None:
        soak.come_to(before + 3)
        return f"{name} at {before}: it went on"
    assert run.wait_for(run.ended, 600, 0.02) or run.ended(), f"{name}: it did not end: {run.said()[-2000:]}"
    after, printed = run.update(), run.said()
    assert run.process.returncode != 0
    if fault.says:
        lines = [line for line in printed.splitlines() if line.startswith(("error: ", "stopped by "))]
        assert len(lines) == 1, f"{name}: {lines}, {printed[-4000:]}"
        assert lines[0].startswith(fault.says), lines[0]
        (own,) = re.findall(r"(?s)^.*?(?:error: |stopped by )", printed)
        assert "Traceback" not in own, f"{name}: {own[-4000:]}"
    fault.mend(soak)
    run = soak.start()
    assert run.wait_for(lambda: "resuming after step" in run.said(), 600, 0.05), f"{name}: {run.said()[-4000:]}"
    resumed = int(re.findall(r"resuming after step (\d+)", run.said())[-1])
    assert after - resumed <= SAVE_STEPS, f"{name}: it came to {after}, and resumes from {resumed}"
    if name == "SIGTERM":
        assert resumed >= before
    return f"{name} at {before}: came to {after}, resumes after {resumed}"


def each_update_once(output: Path, updates: int) -> bool:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "grad_norm" in line] == list(range(1, updates + 1))


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.parametrize(
    ("updates", "rounds"), [pytest.param(60, 0, id="60 updates"), pytest.param(2000, 2, id="2000 updates")]
)
def test_soak(small_disk: Path, tmp_path_factory: pytest.TempPathFactory, updates: int, rounds: int) -> None:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "disk").mkdir()
    started = time.monotonic()
    whole = undisturbed(folder, updates)
    draw_memory(whole.samples, folder / "memory.png")
    print(f"undisturbed: {time.monotonic() - started:.0f} s, {folder / 'memory.png'}", flush=True)
    assert each_update_once(whole.output, updates)
    draw = random.Random(0)
    names = list(FAULTS) * rounds or ["sandbox killed", "disk full", "gradient"]
    draw.shuffle(names)
    moments = sorted(draw.sample(range(5, updates - 10), len(names)))
    soak = Soak(small_disk, updates)
    try:
        for name, moment in zip(names, moments, strict=True):
            print(suffer(soak, name, max(moment, soak.run.update() + 1)), flush=True)
        assert soak.run.process.wait(3600) == 0, soak.run.said()[-4000:]
    finally:
        soak.run.kill()
    assert each_update_once(soak.output, updates)
    # the reward's own argument, the flags' folder, is all in which the two differ
    assert_same(whole.output, soak.output)
    assert not list(soak.output.glob(".*partial*"))
    check_flat(whole.samples, updates)


def check_flat(samples: list[Sample], updates: int) -> None:
    """
    No process holds more at the end than early on, but for what a run keeps by design: transformers' history of the
    metrics, some 45 names and numbers an update, of which a checkpoint is given a copy as text. They are 9 kB an
    update, and 10 kB are allowed, with 5 MB for what an allocator keeps. The tensors of one update, or a descriptor or
    thread that each leaves behind, would be far more.
    """
    history = updates * 0.01
    for role, own in (("trainer", history), ("sandbox", 0.0), ("math worker", 0.0)):
        for value, allowed in (("megabytes", 5 + own), ("descriptors", 8.0), ("threads", 2.0)):
            early = window(samples, role, value, updates * 0.1, updates * 0.2)
            late = window(samples, role, value, updates * 0.9, updates)
            print(f"{role}, {value}: {early:.1f} early, {late:.1f} late", flush=True)
            assert late <= early + allowed, f"{role}, {value}: {early:.1f} early, {late:.1f} late"
