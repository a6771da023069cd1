"""A report from run folders: read everything, draw everything, and only then put a folder in place."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from svf_rl.errors import SVFError
from svf_rl.markdown import render
from svf_rl.report import figures, tables
from svf_rl.report.evaluation_folder import EvaluationFolder, is_evaluation, read_evaluation
from svf_rl.report.groups import group_by_recipe
from svf_rl.report.multipliers import Panel, read_panels
from svf_rl.report.rewarded_answers import tabulate_rewarded_answers
from svf_rl.report.samples import pick, read_last_completions
from svf_rl.report.style import house_style, save
from svf_rl.runs.run_folder import RunFolder, read_run
from svf_rl.storage.disk_errors import disk_errors
from svf_rl.storage.files import write_file
from svf_rl.storage.folders import check_writable, new_folder
from svf_rl.storage.path_names import path_names

MARK = "<!-- written by svf-rl report; the next report in this folder replaces it -->"


def write_report(paths: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """
    Write `report.md` and its pictures.

    Args:
        paths (`Sequence[str | Path]`): folders of training runs, finished or not, and of evaluations.
        out (`str` or `Path`, *optional*):
            The folder of the report: a new or empty one, or one with an earlier report, which is replaced as a whole.
            Defaults to `report` in the run's own folder, or to `runs/report` for several.

    Returns:
        `Path`: of `report.md`.

    Raises:
        SVFError: a path is of neither kind, a file is damaged, `out` cannot be written or holds something else. Nothing
            is written then.
    """
    given = [Path(path).expanduser() for path in paths]
    folders = list({path.resolve(): path for path in given}.values())
    if not folders:
        raise SVFError("nothing to report on: give the folder of a run")
    target = Path(out or (folders[0] / "report" if len(folders) == 1 else "runs/report")).expanduser()
    names = dict(zip(folders, path_names(folders), strict=True))
    evaluations = [read_evaluation(path, names[path]) for path in folders if is_evaluation(path)]
    runs = [read_run(path, names[path]) for path in folders if not is_evaluation(path)]
    target = _check_target(target)
    with house_style():
        text, pictures = compose(runs, evaluations)
        with new_folder(target, replace=True) as staging:
            for name, figure in pictures.items():
                save(figure, staging / f"{name}.png")
            write_file(staging / "report.md", text)
    return target / "report.md"


def compose(runs: Sequence[RunFolder], evaluations: Sequence[EvaluationFolder]) -> tuple[str, dict[str, Figure]]:
    """The report on what was read, in Markdown, and the pictures that it shows, by name; nothing is written."""
    groups = group_by_recipe(runs)
    names = [*(run.name for run in runs), *(evaluation.name for evaluation in evaluations)]
    each = 3 if len(names) == 1 else 2 if len(names) <= 3 else 1
    drawn = {
        "accuracy": figures.draw_accuracy(groups),
        "reward": figures.draw_over_steps(groups, "reward", "mean reward"),
        "cross-entropy": figures.draw_over_steps(groups, "cross_entropy", "cross-entropy (nats a token)"),
        "kl": figures.draw_over_steps(groups, "kl", "KL from the base (nats a token)"),
        "lengths": figures.draw_lengths(groups),
        "time": figures.draw_timing(runs),
    }
    pictures = {name: figure for name, figure in drawn.items() if figure is not None}
    completions, without_completions = [], []
    for run in runs:
        if kept := read_last_completions(run):
            step, samples = kept
            verdicts = [sample.correct for sample in samples]
            counts = {verdict: verdicts.count(verdict) for verdict in (True, False, None)}
            completions.append((run, step, counts, pick(samples, each)))
        else:
            without_completions.append(run)
    text = render(
        "report/report.md.jinja",
        mark=MARK,
        title=names[0] if len(names) == 1 else f"{len(names)} runs",
        runs=runs,
        groups=groups,
        tables=tables,
        tabulate_rewarded_answers=tabulate_rewarded_answers,
        completions=completions,
        without_completions=without_completions,
        evaluations=evaluations,
        pick=pick,
        each=each,
        pictures=pictures,
        **_show_multipliers(runs, pictures),
    )
    return text, pictures


def _show_multipliers(runs: Sequence[RunFolder], pictures: dict[str, Figure]) -> dict[str, Any]:
    """What the template says of multipliers; their pictures are added to `pictures`."""
    panels: dict[int, list[Panel]] = {}
    without = []
    for number, run in enumerate(runs, start=1):
        folder = run.adapter()
        try:
            if folder is not None and (found := read_panels(folder)):
                panels[number] = found
        except SVFError as error:  # z is not finite: the curves of such a run are what one wants to see
            without.append((run, error))
    half_range = figures.find_color_range([panel for found in panels.values() for panel in found]) if panels else 0.0
    shown = []
    for number, found in panels.items():
        run = runs[number - 1]
        name = "multipliers" if len(runs) == 1 else f"multipliers-{number}"
        pictures[name] = figures.draw_multipliers(found, half_range)
        shown.append((run, name, tables.describe_multipliers(run, found)))
    return {"multipliers": shown, "without_multipliers": without, "color_range": half_range}


def _check_target(target: Path) -> Path:
    """The folder to write, links resolved. Raises `SVFError` where it cannot be written or is not a report's."""
    target = Path(os.path.realpath(target))
    with disk_errors(target):
        if target.is_dir():
            others = [path.name for path in target.iterdir() if path.suffix != ".png" and path.name != "report.md"]
            file = target / "report.md"
            marked = file.is_file() and file.read_text(encoding="utf-8", errors="replace").startswith(MARK)
            if others or (any(target.iterdir()) and not marked):
                raise SVFError(f"{target} holds other files than a report's: give another --out")
        elif target.exists():
            raise SVFError(f"{target} is a file: give a folder as --out")
    check_writable(target.parent, "give another --out")
    return target
