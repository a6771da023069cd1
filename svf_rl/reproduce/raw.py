"""`raw.json`: what all figures of a comparison come from, gathered from the files of its cells. Answers are there as
the verdicts on them, without their texts, so that it is small enough to be published with the figures."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from svf_rl.evaluation.adapters import BASE
from svf_rl.evaluation.records import read_records
from svf_rl.reproduce.cell_plans import TrainingRun, evaluation_cells, probe_cells
from svf_rl.reproduce.cells import Cell, read_result
from svf_rl.reproduce.comparison import Unseen
from svf_rl.reproduce.methods import DISPATCH, PROMPT, few_shot_label, slug
from svf_rl.reproduce.plan import Plan, probed
from svf_rl.runs.run_folder import read_run

KIND = "svf-rl reproduce"

Answers = dict[int, list[bool | None]]
"""By item the verdicts on its samples; `None` where the check failed by itself."""

_SIGNS: dict[bool | None, str] = {True: "1", False: "0", None: "?"}
_VERDICTS: dict[str, bool | None] = {sign: verdict for verdict, sign in _SIGNS.items()}
# What a run logs at each update, and what it is called here.
_CURVES = {
    "reward": "reward", "entropy": "entropy", "kl": "kl", "update/relative_change": "relative_change",
    "num_tokens": "tokens",
}  # fmt: skip


def encode(answers: Mapping[int, Sequence[bool | None]]) -> list[str]:
    """A line for each sample: of each item, from 0 on, `1` right, `0` wrong, `?` without verdict, a blank where it was
    not asked."""
    items = range(max(answers, default=-1) + 1)
    samples = range(max(map(len, answers.values()), default=0))
    return [
        "".join(_SIGNS[answers[item][k]] if k < len(answers.get(item, ())) else " " for item in items) for k in samples
    ]


def decode(lines: Sequence[str]) -> Answers:
    """The other way."""
    found: Answers = {}
    for line in lines:
        for item, sign in enumerate(line):
            if sign != " ":
                found.setdefault(item, []).append(_VERDICTS[sign])
    return found


def gather(plan: Plan, failed: Mapping[str, str]) -> dict[str, Any]:
    """What `raw.json` holds of the cells, as JSON; of those that `failed` it says why."""
    comparison = plan.comparison
    adapts = any(cell.kind == "adaptation" for cell in plan.cells)
    tables = [
        (name, *table)
        for name in (comparison.probes if "probes" in plan.parts else ())
        for table in probed(comparison, name, plan.runs)
    ]
    return {
        "kind": KIND,
        "comparison": comparison.name,
        "model": comparison.model,
        "seeds": comparison.seeds,
        "parts": list(plan.parts),
        "notes": plan.notes,
        "failed": dict(failed),
        "experts": {expert: plan.task_of(expert) for expert in dict.fromkeys(run.expert for run in plan.runs)},
        "lora": comparison.lora,
        "variants": {slug(name): {"name": name, "keys": keys} for name, keys in comparison.ablations.variants.items()},
        "dispatched": [PROMPT, *([DISPATCH] if comparison.dispatch else [])] if comparison.classes else [],
        "ablated": comparison.ablations.experts,
        "few_shot": few_shot_label(comparison.few_shot.shots),
        "shots": plan.shots,
        "runs": {run.cell.name: _run(run, failed) for run in plan.runs},
        "evaluations": _evaluations(plan, failed),
        "probes": [_probe(plan, failed, *table) for table in tables if comparison.probes[table[0]].text is None],
        "texts": [_text(plan, failed, *table) for table in tables if comparison.probes[table[0]].text is not None],
        "changes": {
            cell.folder.name: _changes(cell.folder)
            for cell in plan.cells
            if cell.kind == "changes" and cell.name not in failed
        },
        "adaptations": [_adaptation(plan, task, failed) for task in (comparison.unseen if adapts else ())],
    }


def _run(run: TrainingRun, failed: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"expert": run.expert, "method": run.method, "seed": run.seed}
    if run.cell.name in failed:
        return {**found, "failed": failed[run.cell.name]}
    folder = read_run(run.cell.folder)
    summary = folder.summary
    curves: dict[str, list[Any]] = {
        name: [_short(line.values.get(key)) for line in folder.updates] for key, name in _CURVES.items()
    }
    curves["steps"] = [line.step for line in folder.updates]
    # a line has the mean over the steps since the one before
    since = [step - before for before, step in zip([0, *curves["steps"]], curves["steps"], strict=False)]
    took = [line.values.get("step_time", 0.0) * steps for line, steps in zip(folder.updates, since, strict=True)]
    curves["seconds"] = [_short(seconds) for seconds in accumulate(took)]
    return {
        **found,
        "trained_values": summary.trained_values,
        "updates": summary.updates,
        "seconds": {phase: round(seconds, 2) for phase, seconds in summary.seconds.items()},
        "curves": {name: curve for name, curve in curves.items() if any(value is not None for value in curve)},
    }


def _evaluations(plan: Plan, failed: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    """By expert the verdicts on the items of its own task."""
    planned = {cell.name for cell in plan.cells}
    found = {}
    for expert in dict.fromkeys(run.expert for run in plan.runs):
        cells = evaluation_cells(plan.comparison, [run for run in plan.runs if run.expert == expert], plan.out)
        made = [cell for cell in cells if cell.name in planned and cell.name not in failed]
        if made:
            found[expert] = _evaluation(made, plan.task_of(expert), plan.runs, failed)
    return found


def _evaluation(
    cells: Sequence[Cell], task: str, runs: Sequence[TrainingRun], failed: Mapping[str, str]
) -> dict[str, list[str]]:
    """By adapter, and for the base model of the first cell, the verdicts on the items of a task. A run that failed may
    have left some of an earlier adapter."""
    file = task.replace(":", "-") + ".jsonl"
    names = [BASE, *(run.cell.name for run in runs if run.cell.name not in failed)]
    places = {name: [cell.folder / name / file for cell in cells] for name in names}
    there = {name: next((path for path in paths if path.is_file()), None) for name, paths in places.items()}
    return {name: encode(_answers(path)) for name, path in there.items() if path is not None}


def _probe(
    plan: Plan, failed: Mapping[str, str], name: str, runs: Sequence[TrainingRun], on: TrainingRun
) -> dict[str, Any]:
    cells, probe = probe_cells(plan.comparison, name, runs, on, plan.out), plan.comparison.probes[name]
    return {
        "name": name,
        "expert": runs[0].expert,
        "task": on.task,
        "samples": probe.samples,
        "temperature": probe.temperature,
        "options": {**probe.options, **probe.experts.get(on.expert, {})},
        "methods": list(dict.fromkeys(run.method for run in runs)),
        "answers": _evaluation([cell for cell in cells if cell.name not in failed], on.task, runs, failed),
    }


def _text(
    plan: Plan, failed: Mapping[str, str], name: str, runs: Sequence[TrainingRun], on: TrainingRun
) -> dict[str, Any]:
    cells = probe_cells(plan.comparison, name, runs, on, plan.out)
    made = [found for cell in cells if cell.name not in failed and (found := read_result(cell.result))]
    scores = {adapter: values for found in made for adapter, values in found["adapters"].items()}
    scores = {BASE: made[0]["base"], **scores} if made else {}
    return {
        "name": name,
        "expert": runs[0].expert,
        "methods": list(dict.fromkeys(run.method for run in runs)),
        "text": made[0]["text"] if made else None,
        "tokens": made[0]["tokens"] if made else [],
        "scores": {adapter: [_short(value) for value in values] for adapter, values in scores.items()},
    }


def _changes(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """By run the figures of its matrices, a list for each kind of figure."""
    adapters = read_result(folder / "summary.json").get("adapters", {})
    return {
        name: {
            key: [_short(matrix[key]) if isinstance(matrix[key], float) else matrix[key] for matrix in one["matrices"]]
            for key in ("layer", "module", "relative", "stable_rank", "effective_rank", "diagonal")
        }
        for name, one in adapters.items()
    }


def _short(value: float | None) -> float | None:
    """Five digits."""
    return None if value is None else float(f"{value:.5g}")


def _adaptation(plan: Plan, task: Unseen, failed: Mapping[str, str]) -> dict[str, Any]:
    """Of one unseen task what each seed's adaptation says of it, and the verdicts by method."""
    seeds: dict[str, dict[str, Any]] = {}
    for seed in plan.comparison.seeds:
        folder = plan.out / "adaptation" / f"seed{seed}"
        methods = {}
        for path in sorted((folder / slug(task.label)).glob("*.jsonl")):
            if read_result(path.with_suffix(".json")).get("result") is not None:  # made to its end
                methods[path.stem] = encode(_answers(path))
        summary = read_result(folder / "summary.json")
        there = bool(summary) and f"adaptation-seed{seed}" not in failed
        seeds[str(seed)] = {"answers": methods, "summary": summary["tasks"][task.label] if there else None}
    return {"label": task.label, "task": task.task, "seeds": seeds}


def _answers(path: Path) -> Answers:
    found: Answers = {}
    for record in read_records(path):
        found.setdefault(record.index, []).append(record.correct)
    return found
