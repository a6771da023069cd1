"""A report from run folders: read everything, draw everything, and only then put a folder in place."""

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from svf_rl.errors import SVFError
from svf_rl.report import figures, tables
from svf_rl.report.evaluation_folder import EvaluationFolder, is_evaluation, read_evaluation
from svf_rl.report.groups import Group, group_by_recipe
from svf_rl.report.markdown import escaped, picture, sample_text
from svf_rl.report.multipliers import Panel, read_panels, trained_values
from svf_rl.report.samples import Sample, last_completions, pick
from svf_rl.report.style import house_style, save
from svf_rl.runs.run_folder import RunFolder, read_run
from svf_rl.storage.path_names import path_names

MARK = "<!-- written by svf-rl report; the next report in this folder replaces it -->"


@dataclass
class Report:
    """A report: its paragraphs, and its pictures by file name."""

    parts: list[str] = field(default_factory=list)
    pictures: dict[str, Figure] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """In Markdown."""
        return "\n\n".join([MARK, *self.parts]) + "\n"

    def add(self, *parts: str | None) -> None:
        self.parts += [part for part in parts if part]

    def section(self, title: str, *parts: str | None) -> None:
        """A heading, if there is anything below it."""
        if any(parts):
            self.add(f"## {title}", *parts)

    def picture(self, name: str, figure: Figure | None, alternative: str, caption: str = "") -> str | None:
        if figure is None:
            return None
        self.pictures[f"{name}.png"] = figure
        return picture(f"{name}.png", alternative, caption)

    def write(self, folder: Path) -> None:
        for name, figure in self.pictures.items():
            save(figure, folder / name)
        (folder / "report.md").write_text(self.text, encoding="utf-8", errors="backslashreplace", newline="\n")


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
    folders = list({path.resolve(): path for path in map(_expanded, paths)}.values())
    if not folders:
        raise SVFError("nothing to report on: give the folder of a run")
    target = _expanded(out) if out is not None else folders[0] / "report" if len(folders) == 1 else Path("runs/report")
    names: dict[Path, str] = dict(zip(folders, path_names(folders), strict=True))
    evaluations = [read_evaluation(path, names[path]) for path in folders if is_evaluation(path)]
    runs = [read_run(path, names[path]) for path in folders if not is_evaluation(path)]
    target = _checked(target)
    with house_style():
        report = compose(runs, evaluations)
        _put(report, target)
    return target / "report.md"


def compose(runs: Sequence[RunFolder], evaluations: Sequence[EvaluationFolder]) -> Report:
    """The report on what was read; nothing is written."""
    report = Report()
    names = [*(run.name for run in runs), *(evaluation.name for evaluation in evaluations)]
    report.add(f"# Report: {escaped(names[0]) if len(names) == 1 else f'{len(names)} runs'}")
    each = 3 if len(names) == 1 else 2 if len(names) <= 3 else 1
    if runs:
        _training(report, runs, group_by_recipe(runs))
        _multipliers(report, runs)
        report.section(
            "Time",
            report.picture("time", figures.timing_figure(runs), "Seconds of an update by what they went into"),
            tables.seconds_table(runs),
        )
        report.section("Completions", *_completions(runs, each))
    for evaluation in evaluations:
        unfinished = None if evaluation.finished else "This evaluation is unfinished."
        parts: list[str] = []
        for result in evaluation.results:
            parts += [f"### {escaped(result.task)}, {escaped(result.model)}", *_samples(result.samples, each)]
        title = f"Evaluation {escaped(evaluation.name)}"
        report.section(title, tables.evaluation_table(evaluation), "Accuracy with its 95 % interval.", unfinished)
        report.add(*parts)
    return report


def _training(report: Report, runs: Sequence[RunFolder], groups: Sequence[Group]) -> None:
    sizes = {run.name: size for run in runs if (size := _trained_values(run)) is not None}
    notes = "\n".join(f"- {escaped(line)}" for line in tables.warnings(runs))
    report.section(
        "Runs",
        tables.runs_table(runs, sizes),
        "Accuracy is that of greedy answers on the test items, with Wilson's 95 % interval.",
        tables.groups_table(groups),
        tables.by_task_table(runs),
        notes,
    )
    report.section("Differences", tables.differences_table(runs) if len(runs) > 1 else None)
    note = tables.smoothing_note(groups)
    held_out = (
        "Greedy answers to the validation items, by which the best checkpoint is chosen. The dashed line is the base "
        "model on the test items, which are others."
    )
    report.section(
        "Learning",
        report.picture("accuracy", figures.accuracy_figure(groups), "Held-out accuracy over the updates", held_out),
        report.picture("reward", figures.reward_figure(groups), "Mean reward over the updates", note),
        report.picture("cross-entropy", figures.cross_entropy_figure(groups), "Cross-entropy over the updates", note),
        report.picture("kl", figures.kl_figure(groups), "Divergence from the base model over the updates")
        or "No KL was logged: with `beta: 0` it is not computed.",
        report.picture("lengths", figures.lengths_figure(groups), "Lengths of the completions over the updates"),
    )


def _trained_values(run: RunFolder) -> int | None:
    if run.summary.trained_values is not None:
        return run.summary.trained_values
    folder = run.adapter()
    return None if folder is None else trained_values(folder)


def _multipliers(report: Report, runs: Sequence[RunFolder]) -> None:
    panels: dict[str, list[Panel]] = {}
    without: list[str] = []
    for run in runs:
        folder = run.adapter()
        try:
            found = read_panels(folder) if folder is not None else []
        except SVFError as error:  # z is not finite: the curves of such a run are what one wants to see
            without.append(f"No picture of {escaped(run.name)}: {escaped(error)}.")
            continue
        if found:
            panels[run.name] = found
    if not panels:
        report.section("Multipliers of the singular values", *without)
        return
    half_range = figures.color_range([panel for found in panels.values() for panel in found])
    parts: list[str | None] = [
        f"White is m = 1, the base model. The colours reach {half_range:.2g} to either side in every picture here, and "
        "what lies beyond has the colour of the end."
    ]
    for number, run in enumerate(runs, start=1):
        if run.name not in panels:
            continue
        found = panels[run.name]
        figure = figures.multiplier_figure(found, half_range)
        file = "multipliers" if len(runs) == 1 else f"multipliers-{number}"
        folder = run.adapter()
        which = f"From {folder.name}. " if folder is not None and folder != run.path else ""
        caption = which + tables.multiplier_note(found, bool(run.recipe.get("renormalize")))
        parts += [f"### {escaped(run.name)}" if len(runs) > 1 else None]
        parts += [report.picture(file, figure, f"Multipliers of the singular values of {run.name}", caption)]
    report.section("Multipliers of the singular values", *parts, *without)


def _completions(runs: Sequence[RunFolder], each: int) -> list[str]:
    parts: list[str] = []
    without = []
    for run in runs:
        kept = last_completions(run)
        if kept is None:
            without.append(escaped(run.name))
            continue
        step, samples = kept
        right, wrong, neither = (
            sum(sample.correct is verdict for sample in samples) for verdict in (True, False, None)
        )
        parts += [f"### {escaped(run.name)}"] if len(runs) > 1 else []
        parts.append(
            f"Drawn for update {step}: {right} right, {wrong} wrong, {neither} not scorable. The first of each:"
        )
        parts += _samples(samples, each)
    if without:
        parts.append(f"None were kept by {', '.join(without)}: `log_completions: true` in the recipe keeps them.")
    return parts


def _samples(samples: Sequence[Sample], each: int) -> list[str]:
    return [sample_text(sample) for sample in pick(samples, each)]


def _expanded(path: str | Path) -> Path:
    return Path(path).expanduser()


def _checked(target: Path) -> Path:
    """The folder to write, links resolved. Raises `SVFError` where it cannot be written or is not a report's."""
    try:
        target = target.resolve()
        if target.is_dir():
            others = [path.name for path in target.iterdir() if path.suffix != ".png" and path.name != "report.md"]
            file = target / "report.md"
            marked = file.is_file() and file.read_text(encoding="utf-8", errors="replace").startswith(MARK)
            if others or (any(target.iterdir()) and not marked):
                raise SVFError(f"{target} holds other files than a report's: give another --out")
        elif target.exists():
            raise SVFError(f"{target} is a file: give a folder as --out")
        there = next(parent for parent in target.parents if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise SVFError(f"cannot write the report to {target}: {there} is no folder that can be written")
    except (OSError, RuntimeError) as error:  # a name that is too long, a loop of links
        raise SVFError(f"cannot write the report to {target}: {error}; give another --out") from error
    return target


def _put(report: Report, target: Path) -> None:
    """Write beside the target, then rename: the target holds a whole report or what it held before."""
    fresh, old = (target.with_name(f".{target.name}.{state}") for state in ("new", "old"))
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        for left in (fresh, old):  # by a report that was killed
            shutil.rmtree(left, ignore_errors=True)
        fresh.mkdir(parents=True)
        report.write(fresh)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:  # an interrupt leaves no more behind than a full disk does
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        with contextlib.suppress(OSError):  # something else was put there meanwhile
            for parent in made:
                parent.rmdir()
        if isinstance(error, OSError):
            raise SVFError(f"cannot write the report to {target}: {error.strerror}; give another --out") from error
        raise
