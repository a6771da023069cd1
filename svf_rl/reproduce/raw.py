"""`raw.json`: what all figures of a comparison come from, gathered from the files of its cells. Answers are there as
the verdicts on them, without their texts, so that it is small enough to be published with the figures."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.evaluation.adapters import BASE
from svf_rl.evaluation.records import read_records
from svf_rl.reproduce.cell_plans import TrainingRun
from svf_rl.reproduce.cells import Cell, read_result
from svf_rl.reproduce.comparison import Unseen
from svf_rl.reproduce.kept import made_with, replaced
from svf_rl.reproduce.methods import DISPATCH, PROMPT, few_shot_label, slug
from svf_rl.reproduce.plan import Plan, Table
from svf_rl.reproduce.probes import Probe
from svf_rl.runs.run_folder import read_run
from svf_rl.storage.json_files import read_json

RAW = "raw.json"
KIND = "svf-rl reproduce"
VERSION = 2
"""Of the sections of the file; a file without one is of the first."""

_SECTIONS: dict[str, type] = {
    "comparison": str, "model": str, "seeds": dict, "parts": list, "notes": list, "failed": dict, "experts": dict,
    "lora": dict, "variants": dict, "dispatched": list, "ablated": list, "few_shot": str, "shots": list, "runs": dict,
    "evaluations": dict, "probes": list, "texts": list, "changes": dict, "adaptations": list, "hardware": dict,
    "packages": dict, "seconds": dict, "settings": dict,
}  # fmt: skip

LEFT_OUT = "a part of what its folder holds"
"""How the note of a call begins that asked for less."""

Raw = Mapping[str, Any]


def base_label(method: str) -> str:
    """Whose answers a method's are compared with, where it does not train the usual base model."""
    return f"{BASE}-{method}"


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


def read_raw(path: Path) -> dict[str, Any]:
    """The `raw.json` of an earlier call. Raises `SVFError` for what is none, one of another version, and one without
    one of its sections."""
    remedy = f"give the {RAW} of a comparison"
    content = read_json(path, remedy)
    if content.get("kind") != KIND:
        raise SVFError(f"{path} is not the {RAW} of a comparison")
    if content.get("version", 1) != VERSION:
        raise SVFError(
            f"{path} is of version {content.get('version', 1)}, and this svf-rl reads {VERSION}: use the one it is of"
        )
    return read_json(path, remedy, _SECTIONS)


def gather(plan: Plan, failed: Mapping[str, str]) -> dict[str, Any]:
    """What `raw.json` holds of the cells, as JSON; of those that `failed` it says why."""
    comparison = plan.comparison
    adapts = any(cell.kind == "adaptation" for cell in plan.cells)
    own = [table for table in plan.tables if table.probe is None]
    probes = [(table, comparison.probes[table.probe]) for table in plan.tables if table.probe is not None]
    return {
        "kind": KIND,
        "version": VERSION,
        "comparison": comparison.name,
        "model": comparison.model,
        "seeds": {part: comparison.seeds[part] for part in (*plan.parts, *(["adaptation"] if adapts else []))},
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
        "settings": _settings(plan),
        "runs": {run.cell.name: _run(run, failed) for run in plan.runs},
        "evaluations": {table.on.expert: found for table in own if (found := _verdicts(table, failed))},
        "probes": [_probe(table, probe, failed) for table, probe in probes if probe.text is None],
        "texts": [_text(table, failed) for table, probe in probes if probe.text is not None],
        "changes": {
            cell.folder.name: _changes(cell.folder)
            for cell in plan.cells
            if cell.kind == "changes" and cell.name not in failed
        },
        "adaptations": [_adaptation(plan, task, failed) for task in (comparison.unseen if adapts else ())],
    }


def _settings(plan: Plan) -> dict[str, dict[str, Any]]:
    """What decides the results, seed and adapters apart: of each expert's method, of each cell of answers."""
    runs = {f"{run.expert}-{run.method}": run.cell.settings for run in plan.runs}
    others = {
        "adaptation" if cell.kind == "adaptation" else cell.name: cell.settings
        for cell in plan.cells
        if cell.kind != "training"
    }
    apart = {"seed", "adapters", "base", "compare", "shots"}  # the last ones say which methods are asked for
    return {
        **{name: {key: value for key, value in s.items() if key != "seed"} for name, s in runs.items()},
        **{name: {key: value for key, value in s.items() if key not in apart} for name, s in others.items()},
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


def _verdicts(table: Table, failed: Mapping[str, str]) -> dict[str, list[str]]:
    """By adapter the verdicts on the items of a task, and those of the base model. A run that failed may have left some
    of an earlier adapter."""
    file, found = table.on.task.replace(":", "-") + ".jsonl", dict[str, list[str]]()
    for cell in table.cells:
        asked = cell.spec["evaluation"]
        made = {
            label: encode(_answers(path, asked["limit"], asked.get("samples", 1)))
            for label in (BASE, *cell.needs)
            if not {cell.name, label} & failed.keys() and (path := cell.folder / label / file).is_file()
        }
        base = made.pop(BASE, [])
        found |= {**(_bases(table, cell, base) if cell.name not in failed else {}), **made}
    return found


def _bases(table: Table, cell: Cell, base: list[Any]) -> dict[str, list[Any]]:
    """What the base model of a cell said, by label: the usual one's, or that of the methods which train another (in
    another type of numbers). The label of these is there without answers, too: the usual one's are not theirs."""
    if cell is table.base:
        return {BASE: base} if base else {}
    return {base_label(run.method): base for run in table.runs if run.cell.name in cell.needs}


def _probe(table: Table, probe: Probe, failed: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": table.probe,
        "expert": table.runs[0].expert,
        "task": table.on.task,
        "samples": probe.samples,
        "temperature": probe.temperature,
        "options": {**probe.options, **probe.experts.get(table.on.expert, {})},
        "methods": list(dict.fromkeys(run.method for run in table.runs)),
        "answers": _verdicts(table, failed),
    }


def _text(table: Table, failed: Mapping[str, str]) -> dict[str, Any]:
    scores, one = dict[str, list[Any]](), dict[str, Any]()
    for cell in table.cells:
        if cell.name not in failed and (made := read_result(cell.result)):
            adapters = {name: made["adapters"].get(name) for name in cell.needs if name not in failed}
            found = {name: values for name, values in adapters.items() if values is not None}
            scores |= {**_bases(table, cell, made["base"]), **found}
            one = one or made
    return {
        "name": table.probe,
        "expert": table.runs[0].expert,
        "methods": list(dict.fromkeys(run.method for run in table.runs)),
        "text": one.get("text"),
        "tokens": one.get("tokens", []),
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
    for seed in plan.comparison.seeds["adaptation"]:
        cell = next(cell for cell in plan.cells if cell.name == f"adaptation-seed{seed}")
        lost = {expert for expert, run in cell.spec["experts"].items() if Path(run).name in failed}
        made, gone = made_with(cell.kind, cell.folder), replaced(cell.kind, cell.spec)
        methods = {}
        for path in sorted((cell.folder / slug(task.label)).glob("*.jsonl")):
            record = f"{path.parent.name}/{path.stem}"
            if record in gone or lost & made.get(record, {}).keys():
                continue  # by adapters that are not there any more
            if read_result(path.with_suffix(".json")).get("result") is not None:  # made to its end
                methods[path.stem] = encode(_answers(path))
        summary = read_result(cell.result)
        there = bool(summary) and cell.name not in failed
        seeds[str(seed)] = {"answers": methods, "summary": summary["tasks"][task.label] if there else None}
    return {"label": task.label, "task": task.task, "seeds": seeds}


def _answers(path: Path, limit: int | None = None, samples: int = 1) -> Answers:
    """Those that are asked for: an earlier call may have asked for more items, or samples."""
    found: Answers = {}
    for record in read_records(path):
        if record.sample < samples and (limit is None or record.index < limit):
            found.setdefault(record.index, []).append(record.correct)
    return found
