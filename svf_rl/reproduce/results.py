"""All figures of a comparison, from the files of its cells."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svf_rl.evaluation.adapters import BASE
from svf_rl.evaluation.records import read_records
from svf_rl.metrics.statistics import as_json, pass_at_k
from svf_rl.reproduce.cell_plans import TrainingRun, probe_cell
from svf_rl.reproduce.cells import read_result
from svf_rl.reproduce.comparison import Unseen, slug
from svf_rl.reproduce.estimates import Verdicts, compared, estimate, oracle
from svf_rl.reproduce.methods import DISPATCH, LORA, MEAN, ORACLE, PROMPT, SVF, few_shot_label
from svf_rl.reproduce.plan import Plan, probed
from svf_rl.runs.run_folder import read_summary

BySeed = Mapping[int, Verdicts]


@dataclass(frozen=True)
class _Adaptation:
    """Of one unseen task the verdicts by method and seed, and what each seed's adaptation says of it."""

    task: Unseen
    verdicts: dict[str, dict[int, Verdicts]]
    summaries: dict[int, dict[str, Any]]

    def row(self, method: str) -> dict[str, Any]:
        return _row(method, self.verdicts.get(method, {}), self.verdicts.get(BASE, {}))

    def made(self, method: str) -> list[dict[str, Any]]:
        """What each seed's adaptation says of the method."""
        found = (summary["methods"].get(method) for summary in self.summaries.values())
        return [made for made in found if made]


def collect(plan: Plan, failed: Mapping[str, str]) -> dict[str, Any]:
    """What `results.json` holds of the cells; those that `failed`, and why, take no part."""
    comparison = plan.comparison
    adapts = any(cell.kind == "adaptation" for cell in plan.cells)
    adaptations = [_read_adaptation(plan, task, failed) for task in comparison.unseen] if adapts else []
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
            {"task": plan.task_of(expert), "expert": expert, "rows": _rows(plan, failed, expert, methods)}
            for expert in comparison.experts
        ]
    if "adaptation" in plan.parts and adapts:
        results["adaptation"] = [_compare_methods(plan, adaptation) for adaptation in adaptations]
        if any(run.expert == DISPATCH for run in plan.runs):
            rows = _rows(plan, failed, DISPATCH, [BASE, SVF])
            results["classification"] = {"task": plan.task_of(DISPATCH), "rows": rows}
    if "ablations" in plan.parts:
        names = {SVF: "SVF as in its recipe", **{slug(name): name for name in comparison.ablations.variants}}
        results["ablations"] = [
            {"task": plan.task_of(expert), "expert": expert, "rows": _rows(plan, failed, expert, [BASE, *names], names)}
            for expert in comparison.ablations.experts
        ]
        if adapts and len(plan.shots) > 1:
            results["shots"] = [_compare_shots(plan, adaptation) for adaptation in adaptations]
    if "probes" in plan.parts:
        results["probes"] = [
            _read_probe(plan, failed, name, runs, on)
            for name in comparison.probes
            for runs, on in probed(comparison, name, plan.runs)
        ]
    if adapts:
        results["timing"] = [_time_passes(plan, adaptation) for adaptation in adaptations]
    return results


def _read_adaptation(plan: Plan, task: Unseen, failed: Mapping[str, str]) -> _Adaptation:
    found = _Adaptation(task, {}, {})
    for seed in plan.comparison.seeds:
        folder = plan.out / "adaptation" / f"seed{seed}"
        for path in sorted((folder / slug(task.label)).glob("*.jsonl")):
            kept = read_result(path.with_suffix(".json"))
            if kept.get("result") is not None:  # made to its end, whatever became of the others
                found.verdicts.setdefault(path.stem, {})[seed] = _verdicts(path)
        summary = read_result(folder / "summary.json")
        if summary and f"adaptation-seed{seed}" not in failed:
            found.summaries[seed] = summary["tasks"][task.label]
    return found


def _rows(
    plan: Plan, failed: Mapping[str, str], expert: str, methods: Iterable[str], names: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """The lines of an expert's own task, with what its training runs say of themselves."""
    folder, file = plan.out / "evaluation" / expert, plan.task_of(expert).replace(":", "-") + ".jsonl"
    evaluated = [] if f"{expert}-evaluation" in failed else [run for run in plan.runs if run.expert == expert]
    base = {0: _verdicts(folder / BASE / file)} if evaluated else {}
    rows = []
    for method in methods:
        runs = [run for run in evaluated if run.method == method and run.cell.name not in failed]
        found = {run.seed: _verdicts(folder / run.cell.name / file) for run in runs}
        row = _row(method, base if method == BASE else {seed: one for seed, one in found.items() if one}, base)
        if names and method in names:
            row["name"] = names[method]
        if runs:
            summaries = [read_summary(run.cell.folder) for run in runs]
            row["training_seconds"] = _mean(summary.seconds.get("train") for summary in summaries)
            row["updates"] = max(summary.updates or 0 for summary in summaries)
        rows.append(row)
    return rows


def _read_probe(
    plan: Plan, failed: Mapping[str, str], name: str, runs: list[TrainingRun], on: TrainingRun
) -> dict[str, Any]:
    """One table of a probe. With several samples an item's verdicts are those of all of them."""
    cell = probe_cell(plan.comparison, name, runs, on, plan.out)
    file, samples = on.task.replace(":", "-") + ".jsonl", plan.comparison.probes[name].samples
    made = cell.name not in failed
    verdicts = {BASE: {0: _all_verdicts(cell.folder / BASE / file)}} if made else {}
    for run in runs if made else ():
        if run.cell.name not in failed:
            verdicts.setdefault(run.method, {})[run.seed] = _all_verdicts(cell.folder / run.cell.name / file)
    base = _by_sample(verdicts.get(BASE, {}))
    rows = []
    for method in dict.fromkeys([BASE, *(run.method for run in runs)]):
        row = _row(method, _by_sample(verdicts.get(method, {})), base)
        # of each seed, over its samples
        row["by_seed"] = {seed: _mean(map(_mean, found.values())) for seed, found in verdicts.get(method, {}).items()}
        row["seeds"] = len(row["by_seed"])
        if samples > 1:
            row["pass_at_k"] = {
                2**power: {seed: _pass_at(2**power, found) for seed, found in verdicts.get(method, {}).items()}
                for power in range(samples.bit_length())
            }
        rows.append(row)
    return {"name": name, "task": on.task, "expert": runs[0].expert, "samples": samples, "rows": rows}


def _all_verdicts(path: Path) -> dict[int, list[bool]]:
    """By item, the verdicts on all of its samples."""
    found: dict[int, list[bool]] = {}
    for record in read_records(path):
        if record.correct is not None:
            found.setdefault(record.index, []).append(record.correct)
    return found


def _by_sample(by_seed: Mapping[int, Mapping[int, list[bool]]]) -> dict[int, Verdicts]:
    """Each sample of each seed as if it were a seed of its own: an item's mean is over both."""
    apart: dict[tuple[int, int], dict[int, bool | None]] = {}
    for seed, items in by_seed.items():
        for item, answers in items.items():
            for sample, answer in enumerate(answers):
                apart.setdefault((seed, sample), {})[item] = answer
    return dict(enumerate(apart.values()))


def _pass_at(k: int, items: Mapping[int, list[bool]]) -> float | None:
    return _mean(pass_at_k(len(answers), sum(answers), k) for answers in items.values() if len(answers) >= k)


def _row(method: str, by_seed: BySeed, base: BySeed) -> dict[str, Any]:
    """One line of a table: `accuracy` is `None` where nothing came out."""
    found = estimate(by_seed)
    if found is None:
        return {"method": method, "accuracy": None, "status": "failed"}
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


def _compare_methods(plan: Plan, adaptation: _Adaptation) -> dict[str, Any]:
    """All methods on one unseen task."""
    comparison, verdicts, summaries = plan.comparison, adaptation.verdicts, adaptation.summaries
    few_shot = few_shot_label(comparison.few_shot.shots)
    methods = [BASE, *comparison.experts, MEAN]
    if comparison.classes:
        methods += [PROMPT, *([DISPATCH] if comparison.dispatch else [])]
    rows = [adaptation.row(method) for method in [*methods, few_shot]]
    own = {seed: summary["own_expert"] for seed, summary in summaries.items() if summary.get("own_expert")}
    if own:
        perfect = {
            seed: oracle(
                {int(row): expert for row, expert in owners.items()},
                {name: verdicts.get(name, {}).get(seed, {}) for name in comparison.experts},
            )
            for seed, owners in own.items()
        }
        for row in rows:
            if row["method"] in (PROMPT, DISPATCH):
                against = compared(verdicts.get(row["method"], {}), perfect)
                row["against_oracle"] = as_json(against) if against else None
                row["dispatched_right"] = _mean(
                    _share_right(summaries[seed]["methods"].get(row["method"]), owners) for seed, owners in own.items()
                )
        rows.append(_row(ORACLE, perfect, verdicts.get(BASE, {})))
    result: dict[str, Any] = {
        "label": adaptation.task.label,
        "task": adaptation.task.task,
        "few_shot": few_shot,
        "rows": rows,
    }
    singles = [row for row in rows if row["method"] in comparison.experts and row["accuracy"] is not None]
    best = max(singles, key=lambda row: row["accuracy"])["method"] if singles else None
    if best is not None and (against := compared(verdicts.get(few_shot, {}), verdicts[best])):
        result["few_shot_against_best_expert"] = {"expert": best, **as_json(against)}
    searches = {seed: (summary["methods"].get(few_shot) or {}).get("search", {}) for seed, summary in summaries.items()}
    return {**result, "alpha": {seed: search.get("alpha") for seed, search in searches.items()}}


def _compare_shots(plan: Plan, adaptation: _Adaptation) -> dict[str, Any]:
    """Few-shot adaptation from every number of labelled prompts."""
    rows = []
    for shots in plan.shots:
        method = few_shot_label(shots)
        seconds = _mean(made["search"]["seconds"] for made in adaptation.made(method))
        rows.append({**adaptation.row(method), "shots": shots, "search_seconds": seconds})
    task = adaptation.task
    return {"label": task.label, "task": task.task, "base": adaptation.row(BASE), "rows": rows}


def _time_passes(plan: Plan, adaptation: _Adaptation) -> dict[str, Any]:
    """Seconds of each pass over the reported items, and of the search, as means over the seeds."""
    rows = []
    for method in (PROMPT, DISPATCH, *map(few_shot_label, plan.shots)):
        passes = [
            (made["search"]["seconds"], made["seconds"], made["search"]["syncs"])
            if "search" in made
            else (made["first"]["seconds"], made["second"]["seconds"], made["first"]["syncs"] + made["second"]["syncs"])
            for made in adaptation.made(method)
            if not made.get("reused")  # an interrupted second pass has the seconds of its rest alone
        ]
        if passes:
            first, second, syncs = map(_mean, zip(*passes, strict=True))
            seconds = {"first_pass_seconds": first, "second_pass_seconds": second}
            rows.append({"method": method, "seeds": len(passes), **seconds, "syncs": syncs})
    items = max((len(summary["rows"]) for summary in adaptation.summaries.values()), default=0)
    return {"label": adaptation.task.label, "items": items, "rows": rows}


def _share_right(made: Mapping[str, Any] | None, owners: Mapping[str, str]) -> float | None:
    """How many prompts a dispatch sent to their own expert."""
    if not made:
        return None
    return sum(made["experts"][row] == expert for row, expert in owners.items()) / len(owners)


def _verdicts(path: Path) -> dict[int, bool | None]:
    return {record.index: record.correct for record in read_records(path)}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
