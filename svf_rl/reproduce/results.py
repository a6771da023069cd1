"""All figures of a comparison, from what `raw.json` holds. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from svf_rl.evaluation.adapters import BASE
from svf_rl.reproduce.by_seed import compare_by_seed
from svf_rl.reproduce.estimates import BySeed, as_difference, compared_by_seed, oracle
from svf_rl.reproduce.methods import DISPATCH, LORA, MEAN, ORACLE, PROMPT, SVF, few_shot_label
from svf_rl.reproduce.probe_results import collect_changes, collect_probe, collect_text
from svf_rl.reproduce.raw import Answers, Raw, decode
from svf_rl.reproduce.rows import base_of, known_mean, make_row, name_variant


def collect(raw: Raw) -> dict[str, Any]:
    """What `results.json` holds; runs that failed take no part."""
    experts = [expert for expert in raw["experts"] if expert != DISPATCH]
    results: dict[str, Any] = {
        **{key: raw[key] for key in ("comparison", "model", "seeds", "parts", "failed", "notes")},
        "experts": experts,
        "confidence": 0.95,
        **{key: raw[key] for key in ("hardware", "packages", "seconds")},
        "runs": [_listed(name, run, raw) for name, run in raw["runs"].items()],
    }
    if "fine_tuning" in raw["parts"]:
        methods = [BASE, *([LORA] if raw["lora"] else []), SVF]
        results["fine_tuning"] = [_on_own_task(raw, expert, methods) for expert in experts]
        compare_by_seed(results["fine_tuning"], SVF)
    if "adaptation" in raw["parts"] and raw["adaptations"]:
        results["adaptation"] = [_compare_adaptations(raw, task, experts) for task in raw["adaptations"]]
        for group in results["adaptation"]:
            compare_by_seed([group], group["best_expert"], [*experts, ORACLE])
        if DISPATCH in raw["experts"]:
            results["classification"] = _on_own_task(raw, DISPATCH, [BASE, SVF])
    if "ablations" in raw["parts"]:
        names = {SVF: "SVF as in its recipe", **{slug: variant["name"] for slug, variant in raw["variants"].items()}}
        lora = [LORA] if raw["lora"] and "fine_tuning" in raw["parts"] else []
        results["variants"] = {variant["name"]: variant["keys"] for variant in raw["variants"].values()}
        results["ablations"] = [
            _on_own_task(raw, expert, [BASE, SVF, *lora, *raw["variants"]], names) for expert in raw["ablated"]
        ]
        compare_by_seed(results["ablations"], SVF)
        if raw["adaptations"] and len(raw["shots"]) > 1:
            results["shots"] = [_compare_shots(raw, task) for task in raw["adaptations"]]
    if "probes" in raw["parts"]:
        results["probes"] = [collect_probe(raw, probe) for probe in raw["probes"]]
        for name in dict.fromkeys(probe["name"] for probe in results["probes"]):
            compare_by_seed([probe for probe in results["probes"] if probe["name"] == name], SVF)
        results["texts"] = [collect_text(raw, text) for text in raw["texts"]]
        compare_by_seed(results["texts"], SVF)
        results["changes"] = [collect_changes(raw, expert) for expert in raw["changes"]]
    if raw["adaptations"]:
        results["timing"] = [_time_passes(raw, task) for task in raw["adaptations"]]
    return results


def _listed(name: str, run: Raw, raw: Raw) -> dict[str, Any]:
    """A run in the list of all: its accuracy is that of the evaluation."""
    answers = raw["evaluations"].get(run["expert"], {})
    found = {} if name not in answers else make_row(run["method"], {run["seed"]: decode(answers[name])}, {})
    shown = {key: value for key, value in run.items() if key != "curves"}
    return name_variant({"run": name, **shown, "accuracy": found.get("accuracy"), "items": found.get("items")}, raw)


def _on_own_task(
    raw: Raw, expert: str, methods: Iterable[str], names: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A table of an expert's own task, with what its training runs say of themselves."""
    answers = {name: decode(lines) for name, lines in raw["evaluations"].get(expert, {}).items()}
    rows = []
    methods = list(methods)
    cells = {f"{expert}-evaluation", *(f"{expert}-{method}-evaluation" for method in methods)}
    lost = bool(cells & raw["failed"].keys())
    for method in methods:
        runs = {name: run for name, run in raw["runs"].items() if (run["expert"], run["method"]) == (expert, method)}
        if not (lost or (BASE in answers if method == BASE else runs)):
            continue  # not asked for
        found = {run["seed"]: answers[name] for name, run in runs.items() if answers.get(name)}
        base = {0: of} if (of := base_of(method, answers)) else {}
        row = make_row(method, base if method == BASE else found, base)
        if names and method in names:
            row["name"] = names[method]
        made = [run for run in runs.values() if "failed" not in run]
        if made and found:
            row["training_seconds"] = known_mean(run["seconds"].get("train") for run in made)
            row["updates"] = max(run["updates"] or 0 for run in made)
            row["trained_values"] = made[0]["trained_values"]
            row["curves"] = {run["seed"]: run["curves"] for run in made}
        rows.append(row)
    return {"task": raw["experts"][expert], "expert": expert, "rows": rows}


def _adaptation_answers(task: Raw, method: str) -> dict[int, Answers]:
    return {
        int(seed): decode(one["answers"][method]) for seed, one in task["seeds"].items() if method in one["answers"]
    }


def _summaries(task: Raw) -> dict[int, dict[str, Any]]:
    return {int(seed): one["summary"] for seed, one in task["seeds"].items() if one["summary"] is not None}


def _adaptation_row(task: Raw, method: str) -> dict[str, Any]:
    return make_row(method, _adaptation_answers(task, method), _adaptation_answers(task, BASE))


def _compare_adaptations(raw: Raw, task: Raw, experts: Sequence[str]) -> dict[str, Any]:
    """All methods on one unseen task."""
    few_shot, dispatched, summaries = raw["few_shot"], raw["dispatched"], _summaries(task)
    rows = [_adaptation_row(task, method) for method in (BASE, *experts, MEAN, *dispatched, few_shot)]
    own = {seed: summary["own_expert"] for seed, summary in summaries.items() if summary.get("own_expert")}
    if own:
        perfect = _perfect(task, own, experts)
        for row in rows:
            if row["method"] in dispatched:
                against = compared_by_seed(_verdicts(task, row["method"]), perfect)
                row["against_oracle"] = as_difference(against) if against else None
                row["dispatched_right"] = known_mean(
                    _share_right(summaries[seed]["methods"].get(row["method"]), owners) for seed, owners in own.items()
                )
        as_answers = {
            seed: {item: [verdict] for item, verdict in verdicts.items()} for seed, verdicts in perfect.items()
        }
        rows.append(make_row(ORACLE, as_answers, _adaptation_answers(task, BASE)))
    result: dict[str, Any] = {"label": task["label"], "task": task["task"], "few_shot": few_shot, "rows": rows}
    singles = [row for row in rows if row["method"] in experts and row["accuracy"] is not None]
    best = max(singles, key=lambda row: row["accuracy"])["method"] if singles else None
    result["best_expert"] = best
    if best is not None and (against := compared_by_seed(_verdicts(task, few_shot), _verdicts(task, best))):
        result["few_shot_against_best_expert"] = {"expert": best, **as_difference(against)}
    searches = {seed: (summary["methods"].get(few_shot) or {}).get("search", {}) for seed, summary in summaries.items()}
    return {**result, "alpha": {seed: search.get("alpha") for seed, search in searches.items()}}


def _verdicts(task: Raw, method: str) -> BySeed:
    """Of each seed; its items have one answer."""
    answers = _adaptation_answers(task, method)
    return {seed: {item: verdicts[0] for item, verdicts in items.items()} for seed, items in answers.items()}


def _perfect(task: Raw, own: Mapping[int, Mapping[str, str]], experts: Sequence[str]) -> BySeed:
    """By seed the verdicts of a dispatch that never errs."""
    verdicts = {name: _verdicts(task, name) for name in experts}
    return {
        seed: oracle(
            {int(row): expert for row, expert in owners.items()},
            {name: verdicts[name].get(seed, {}) for name in experts},
        )
        for seed, owners in own.items()
    }


def _compare_shots(raw: Raw, task: Raw) -> dict[str, Any]:
    """Few-shot adaptation from every number of labelled prompts."""
    rows = []
    for shots in raw["shots"]:
        method = few_shot_label(shots)
        seconds = known_mean(made["search"]["seconds"] for made in _made(task, method))
        rows.append({**_adaptation_row(task, method), "shots": shots, "search_seconds": seconds})
    return {"label": task["label"], "task": task["task"], "base": _adaptation_row(task, BASE), "rows": rows}


def _time_passes(raw: Raw, task: Raw) -> dict[str, Any]:
    """Seconds of each pass over the reported items, and of the search, as means over the seeds."""
    rows = []
    for method in (PROMPT, DISPATCH, *(few_shot_label(shots) for shots in raw["shots"])):
        passes = [
            (made["search"]["seconds"], made["seconds"], made["search"]["syncs"])
            if "search" in made
            else (made["first"]["seconds"], made["second"]["seconds"], made["first"]["syncs"] + made["second"]["syncs"])
            for made in _made(task, method)
            if not made.get("reused")  # an interrupted second pass has the seconds of its rest alone
        ]
        if passes:
            first, second, syncs = map(known_mean, zip(*passes, strict=True))
            seconds = {"first_pass_seconds": first, "second_pass_seconds": second}
            rows.append({"method": method, "seeds": len(passes), **seconds, "syncs": syncs})
    items = max((len(summary["rows"]) for summary in _summaries(task).values()), default=0)
    return {"label": task["label"], "items": items, "rows": rows}


def _made(task: Raw, method: str) -> list[dict[str, Any]]:
    """What each seed's adaptation says of the method."""
    found = (summary["methods"].get(method) for summary in _summaries(task).values())
    return [made for made in found if made]


def _share_right(made: Mapping[str, Any] | None, owners: Mapping[str, str]) -> float | None:
    """How many prompts a dispatch sent to their own expert."""
    if not made:
        return None
    return sum(made["experts"][row] == expert for row, expert in owners.items()) / len(owners)
