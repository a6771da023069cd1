"""All figures of a comparison, from the files of its cells."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from svf_rl.evaluation.adapters import BASE
from svf_rl.evaluation.records import read_records
from svf_rl.metrics.statistics import as_json
from svf_rl.reproduce.cell_plans import shot_counts
from svf_rl.reproduce.cells import read_result
from svf_rl.reproduce.comparison import Unseen, slug
from svf_rl.reproduce.estimates import Verdicts, compared, estimate, oracle
from svf_rl.reproduce.methods import DISPATCH, LORA, MEAN, ORACLE, PROMPT, SVF, few_shot_label
from svf_rl.reproduce.plan import Plan, evaluated
from svf_rl.runs.run_folder import read_summary
from svf_rl.runs.summary import RunSummary

BySeed = Mapping[int, Verdicts]

FAILED = "failed"


def collect(plan: Plan, failed: Mapping[str, str]) -> dict[str, Any]:
    """
    What `results.json` holds.

    Args:
        plan ([`Plan`]): which cells there are.
        failed (`Mapping`): those that could not be made, and why.
    """
    comparison = plan.comparison
    experts = evaluated(comparison, plan.parts, plan.runs)
    evaluations = {expert: _evaluation(plan, expert, failed) for expert in experts}
    results: dict[str, Any] = {
        "comparison": comparison.name,
        "model": comparison.model,
        "seeds": comparison.seeds,
        "parts": list(plan.parts),
        "failed": dict(failed),
        "notes": plan.notes,
    }
    if "fine_tuning" in plan.parts:
        methods = [BASE, *([LORA] if comparison.lora else []), SVF]
        results["fine_tuning"] = [
            {"task": plan.task_of(expert), "expert": expert, "rows": _rows(evaluations[expert], methods)}
            for expert in comparison.experts
        ]
    if "adaptation" in plan.parts and comparison.unseen:
        results["adaptation"] = [_adaptation(plan, task, failed) for task in comparison.unseen]
        if DISPATCH in evaluations:
            results["classification"] = {
                "task": plan.task_of(DISPATCH),
                "rows": _rows(evaluations[DISPATCH], [BASE, SVF]),
            }
    if "ablations" in plan.parts:
        names = {SVF: "SVF as in its recipe", **{slug(name): name for name in comparison.ablations.variants}}
        results["ablations"] = [
            {"task": plan.task_of(expert), "expert": expert, "rows": _rows(evaluations[expert], [BASE, *names], names)}
            for expert in comparison.ablations.experts
        ]
        if comparison.unseen and len(shot_counts(comparison, plan.parts)) > 1:
            results["shots"] = [_shots(plan, task, failed) for task in comparison.unseen]
    if comparison.unseen and any(cell.kind == "adaptation" for cell in plan.cells):
        results["timing"] = [_timing(plan, task, failed) for task in comparison.unseen]
    return results


def _evaluation(plan: Plan, expert: str, failed: Mapping[str, str]) -> dict[str, Any]:
    """Verdicts by method and seed on the expert's task, and what its training runs say of themselves."""
    folder = plan.out / "evaluation" / expert
    file = plan.task_of(expert).replace(":", "-")
    verdicts: dict[str, dict[int, Verdicts]] = {}
    training: dict[str, dict[int, RunSummary]] = {}
    if f"{expert}-evaluation" not in failed:
        if base := _verdicts(folder / BASE / f"{file}.jsonl"):
            verdicts[BASE] = {0: base}
        for run in plan.runs:
            if run.expert == expert and run.name not in failed:
                if found := _verdicts(folder / run.name / f"{file}.jsonl"):
                    verdicts.setdefault(run.method, {})[run.seed] = found
                training.setdefault(run.method, {})[run.seed] = read_summary(plan.out / "runs" / run.name)
    return {"verdicts": verdicts, "training": training}


def _rows(
    evaluation: Mapping[str, Any], methods: Iterable[str], names: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    verdicts = evaluation["verdicts"]
    rows = []
    for method in methods:
        row = _row(method, verdicts.get(method, {}), verdicts.get(BASE, {}))
        if names and method in names:
            row["name"] = names[method]
        runs = list(evaluation["training"].get(method, {}).values())
        if runs:
            row["training_seconds"] = _mean(run.seconds.get("train") for run in runs)
            row["updates"] = max(run.updates or 0 for run in runs)
        rows.append(row)
    return rows


def _row(method: str, by_seed: BySeed, base: BySeed) -> dict[str, Any]:
    """One line of a table: `accuracy` is `None` where nothing came out."""
    found = estimate(by_seed)
    if found is None:
        return {"method": method, "accuracy": None, "status": FAILED}
    row: dict[str, Any] = {
        "method": method,
        "accuracy": found.value,
        "interval": list(found.interval),
        "by_seed": found.by_seed,
        "seeds": len(found.by_seed),
        "items": found.n,
        "not_scorable": found.not_scorable,
    }
    if method != BASE and (against := compared(by_seed, base)):
        row["against_base"] = as_json(against)
    return row


def _adaptation(plan: Plan, task: Unseen, failed: Mapping[str, str]) -> dict[str, Any]:
    """All methods on one unseen task."""
    comparison = plan.comparison
    verdicts = _adapted(plan, task.label)
    summaries = _summaries(plan, task.label, failed)
    base = verdicts.get(BASE, {})
    few_shot = few_shot_label(comparison.few_shot.shots)
    methods = [BASE, *comparison.experts, MEAN]
    if comparison.classes:
        methods += [PROMPT, *([DISPATCH] if comparison.dispatch else [])]
    own = {seed: summary["own_expert"] for seed, summary in summaries.items() if summary.get("own_expert")}
    rows = [_row(method, verdicts.get(method, {}), base) for method in [*methods, few_shot]]
    if own:
        perfect = {
            seed: oracle(
                {int(row): expert for row, expert in owners.items()},
                {name: verdicts.get(name, {}).get(seed, {}) for name in comparison.experts},
            )
            for seed, owners in own.items()
        }
        rows.append(_row(ORACLE, perfect, base))
        against_oracle = {
            method: as_json(difference)
            for method in (PROMPT, DISPATCH)
            if (difference := compared(verdicts.get(method, {}), perfect))
        }
        for row in rows:
            if row["method"] in (PROMPT, DISPATCH):
                row["against_oracle"] = against_oracle.get(row["method"])
                row["dispatched_right"] = _mean(
                    [_share_right(summaries[seed], row["method"], owners) for seed, owners in own.items()]
                )
    best = max((row for row in rows if row["method"] in comparison.experts and row["accuracy"] is not None),
               key=lambda row: row["accuracy"], default=None)  # fmt: skip
    result: dict[str, Any] = {"label": task.label, "task": task.task, "few_shot": few_shot, "rows": rows}
    if best is not None and (against := compared(verdicts.get(few_shot, {}), verdicts[best["method"]])):
        result["few_shot_against_best_expert"] = {"expert": best["method"], **as_json(against)}
    result["alpha"] = {seed: _search(summary, few_shot).get("alpha") for seed, summary in summaries.items()}
    return result


def _shots(plan: Plan, task: Unseen, failed: Mapping[str, str]) -> dict[str, Any]:
    verdicts, summaries = _adapted(plan, task.label), _summaries(plan, task.label, failed)
    rows = []
    for shots in shot_counts(plan.comparison, plan.parts):
        method = few_shot_label(shots)
        row = _row(method, verdicts.get(method, {}), verdicts.get(BASE, {}))
        row["shots"] = shots
        row["search_seconds"] = _mean([_search(summary, method).get("seconds") for summary in summaries.values()])
        rows.append(row)
    return {"label": task.label, "task": task.task, "base": _row(BASE, verdicts.get(BASE, {}), {}), "rows": rows}


def _timing(plan: Plan, task: Unseen, failed: Mapping[str, str]) -> dict[str, Any]:
    """Seconds of each pass over the reported items, and of the search, as means over the seeds."""
    summaries = _summaries(plan, task.label, failed)
    made = {}
    for method in (PROMPT, DISPATCH):
        made[method] = [
            (found["first"]["seconds"], found["second"]["seconds"], found["first"]["syncs"] + found["second"]["syncs"])
            for found in (summary["methods"].get(method) for summary in summaries.values())
            if found
        ]
    for method in map(few_shot_label, shot_counts(plan.comparison, plan.parts)):
        made[method] = [
            (found["search"]["seconds"], found["seconds"], found["search"]["syncs"])
            for found in (summary["methods"].get(method) for summary in summaries.values())
            if found and not found["reused"]  # an interrupted second pass has the seconds of its rest alone
        ]
    names = ("first_pass_seconds", "second_pass_seconds", "syncs")
    rows = [
        {"method": method, "seeds": len(found), **dict(zip(names, map(_mean, zip(*found, strict=True)), strict=True))}
        for method, found in made.items()
        if found
    ]
    items = max((len(summary["rows"]) for summary in summaries.values()), default=0)
    return {"label": task.label, "items": items, "rows": rows}


def _adapted(plan: Plan, label: str) -> Mapping[str, BySeed]:
    """Verdicts on one unseen task by method and seed."""
    verdicts: dict[str, dict[int, Verdicts]] = {}
    for seed in plan.comparison.seeds:
        folder = plan.out / "adaptation" / f"seed{seed}" / slug(label)
        for path in sorted(folder.glob("*.jsonl")):
            kept = read_result(path.with_suffix(".json"))
            if kept is not None and kept.get("result") is not None:  # made to its end, whatever became of the others
                verdicts.setdefault(path.stem, {})[seed] = _verdicts(path)
    return verdicts


def _summaries(plan: Plan, label: str, failed: Mapping[str, str]) -> dict[int, dict[str, Any]]:
    """What each seed's adaptation says of one task."""
    found = {}
    for seed in plan.comparison.seeds:
        summary = read_result(plan.out / "adaptation" / f"seed{seed}" / "summary.json")
        if summary is not None and f"adaptation-seed{seed}" not in failed:
            found[seed] = summary["tasks"][label]
    return found


def _search(summary: Mapping[str, Any], method: str) -> dict[str, Any]:
    return (summary["methods"].get(method) or {}).get("search", {})


def _share_right(summary: Mapping[str, Any], method: str, owners: Mapping[str, str]) -> float | None:
    """How many prompts went to their own expert."""
    chosen = (summary["methods"].get(method) or {}).get("experts")
    if not chosen:
        return None
    return sum(chosen[row] == expert for row, expert in owners.items()) / len(owners)


def _verdicts(path: Path) -> dict[int, bool | None]:
    return {record.index: record.correct for record in read_records(path)}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
