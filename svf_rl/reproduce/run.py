"""The command: from the file of a comparison to tables and pictures."""

import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from svf_rl.errors import SVFError
from svf_rl.report.style import house_style, save
from svf_rl.reproduce.arguments import PARTS, ReproduceArguments
from svf_rl.reproduce.cells import is_done, read_result, record_path
from svf_rl.reproduce.comparison import check_seeds, read_comparison
from svf_rl.reproduce.document import render_document
from svf_rl.reproduce.figures import draw_adaptation, draw_fine_tuning, draw_shots, draw_timing
from svf_rl.reproduce.launch import Outcome, hold_results, run_cells
from svf_rl.reproduce.merge import merge
from svf_rl.reproduce.plan import Plan, make_plan
from svf_rl.reproduce.raw import KIND, LEFT_OUT, RAW, gather, read_raw
from svf_rl.reproduce.results import collect
from svf_rl.reproduce.training_figures import draw_curves, draw_methods, draw_passes
from svf_rl.runs.summary import read_package_versions
from svf_rl.storage.disk_errors import disk_errors
from svf_rl.storage.files import write_file, write_json
from svf_rl.storage.folders import check_writable, is_unused
from svf_rl.storage.json_files import normalize_json

# What cells leave.
_FOLDERS = ("evaluation", "adaptation", "probes", "changes", "runs")


def reproduce(
    path: str | Path, arguments: ReproduceArguments, others: Sequence[str | Path] = ()
) -> dict[str, Any] | None:
    """
    Make all cells of a comparison that are not there yet, and write `report.md`, `results.json` and the pictures.

    Args:
        path (`str` or `Path`): the file of the comparison, or the `raw.json` of one: then only tables and pictures are
            made.
        arguments ([`ReproduceArguments`]): what is made, and how.
        others (`Sequence[str | Path]`, *optional*): further `raw.json` of the same comparison, with other seeds or
            methods.

    Returns:
        `dict`: what is in `results.json`; `None` after a dry run.

    Raises:
        SVFError: bad input (all of it is checked before anything is written), another comparison in the folder, or at
            the end cells that could not be made.
    """
    if others or Path(path).suffix == ".json":
        return _draw_again([Path(path), *map(Path, others)], arguments)
    started = time.perf_counter()
    comparison = read_comparison(path)
    if arguments.seeds is not None:
        comparison = replace(comparison, seeds=dict.fromkeys(PARTS, check_seeds(arguments.seeds)))
    folder = _folder(arguments.out or f"runs/reproduce-{comparison.name}")
    parts = [part for part in PARTS if part in (arguments.only or PARTS)]
    plan = make_plan(comparison, folder, parts, arguments.launch, arguments.data_dir, arguments.methods)
    _check_folder(folder, comparison.name, comparison.model)
    for cell in plan.cells:
        is_done(cell, folder)  # another one's settings: better known before anything is written
    plan.notes.extend(_left_out(plan))
    print(plan, flush=True)
    if arguments.dry_run:
        return None
    # two processes on a CPU with as many cores; one where they would share an accelerator's memory
    jobs = arguments.jobs or (1 if torch.cuda.is_available() else min(2, _cores()))
    with _held(folder, comparison.name, comparison.model) as lock:
        outcome = run_cells(plan.cells, folder, jobs, _environment(jobs), lock)
        raw = {
            **gather(plan, outcome.failed),
            "hardware": _hardware(),
            "packages": read_package_versions(),
            "seconds": _seconds(plan, outcome, jobs, time.perf_counter() - started),
        }
        results = _write(raw, folder)
    if outcome.failed:
        raise SVFError(
            f"{len(outcome.failed)} of {len(plan.cells)} cells could not be made: {', '.join(outcome.failed)}; "
            f"their logs are in {folder / 'logs'}, and the same command tries them again"
        )
    return results


def _draw_again(paths: Sequence[Path], arguments: ReproduceArguments) -> dict[str, Any]:
    """Tables and pictures once more, from the `raw.json` of earlier calls; of one, by default beside it."""
    if arguments != ReproduceArguments(arguments.out):
        raise SVFError(f"{paths[0]} holds what was made already: only --out goes with it")
    folder = _folder(arguments.out or paths[0].parent)
    if len(paths) > 1:
        if no_raw := [str(path) for path in paths if path.suffix != ".json"]:
            raise SVFError(f"{no_raw[0]} cannot be put together with others: give one recipe, or several {RAW}")
        if arguments.out is None or folder in [path.resolve().parent for path in paths]:
            raise SVFError("what is put together goes into a folder of its own: give another --out")
    raw = merge([(str(path), read_raw(path)) for path in paths])
    if [one.resolve() for one in folder.glob("*")] != [paths[0].resolve()]:  # alone in its folder
        _check_folder(folder, raw["comparison"], raw["model"])
    with _held(folder, raw["comparison"], raw["model"]):
        return _write(raw, folder)


def _write(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`raw.json`, and what follows from it. Returns what is in `results.json`."""
    results = collect(normalize_json(raw))  # as it is read from the file
    write_results(results, folder, raw)
    print(f"report: {folder / 'report.md'}")
    return results


def write_results(results: Mapping[str, Any], folder: Path, raw: Mapping[str, Any] | None = None) -> None:
    """`raw.json`, `results.json`, the pictures and `report.md`; all is made before the first is written."""
    with house_style():
        drawn = {
            "fine_tuning": draw_fine_tuning(results.get("fine_tuning", [])),
            "curves": draw_curves(results.get("fine_tuning", [])),
            "methods": draw_methods(results.get("ablations", [])),
            "passes": draw_passes(results.get("probes", [])),
            "adaptation": draw_adaptation(results.get("adaptation", []), results["experts"]),
            "shots": draw_shots(results.get("shots", [])),
            "timing": draw_timing(results.get("timing", [])),
        }
    folders = [f"{name}/" for name in _FOLDERS if (folder / name).is_dir()]
    report = render_document(results, [name for name in drawn if drawn[name] is not None], folders)
    if raw is not None:
        write_file(folder / RAW, json.dumps(raw, separators=(",", ":")) + "\n")
    write_json(folder / "results.json", results)
    with disk_errors(folder):
        for name, figure in drawn.items():
            file = folder / f"{name}.png"
            file.unlink(missing_ok=True)
            if figure is not None:
                save(figure, file)
    write_file(folder / "report.md", report)


def _folder(out: str | Path) -> Path:
    return Path(out).expanduser().resolve()


@contextmanager
def _held(folder: Path, name: str, model: str) -> Iterator[int | None]:
    """The folder, held for this call and marked as that of the comparison."""
    with hold_results(folder) as lock:
        write_json(folder / "comparison.json", {"kind": KIND, "name": name, "model": model})
        yield lock


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _hardware() -> dict[str, str]:
    """Processor, cores that this process may use, memory, accelerator and Python."""
    processor = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = next(iter(names), processor)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": processor,
        "cores": f"{_cores()} cores",
        "memory": f"{memory:.0f} GiB",
        "gpu": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        "python": f"Python {platform.python_version()}",
    }


def _environment(jobs: int) -> dict[str, str]:
    """Of the processes: their share of the cores, and this Python's programs first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {"OMP_NUM_THREADS": str(max(1, _cores() // jobs)), **os.environ, "PATH": path}


def _left_out(plan: Plan) -> list[str]:
    """A note where the folder holds more than is asked for."""
    asked = {cell.name for cell in plan.cells}
    more = sorted(path.stem for path in (plan.out / "cells").glob("*.json") if path.stem not in asked)
    return [f"{LEFT_OUT}: {len(more)} cells there are not asked for here, such as {more[0]}"] if more else []


def _check_folder(folder: Path, name: str, model: str) -> None:
    """Raises `SVFError` for a folder that holds something else, or that cannot be written."""
    if check_writable(folder, "give another --out") != folder:
        return
    there = read_result(folder / "comparison.json")
    if not there:
        if not is_unused(folder):
            raise SVFError(f"{folder} holds files that are not of a comparison: give an empty folder as --out")
    elif there.get("kind") != KIND or (there.get("name"), there.get("model")) != (name, model):
        raise SVFError(
            f"{folder} holds the comparison {there.get('name')} of {there.get('model')}, not {name} of {model}: "
            "give another --out"
        )


def _seconds(plan: Plan, outcome: Outcome, jobs: int, this_call: float) -> dict[str, Any]:
    by_cell = {cell.name: read_result(record_path(plan.out, cell.name)).get("seconds") for cell in plan.cells}
    return {
        "this_call": round(this_call, 1),
        "made_now": len(outcome.made),
        "cells": len(plan.cells),
        "processes": round(sum(filter(None, by_cell.values())), 1),
        "by_cell": by_cell,
        "jobs": jobs,
    }
