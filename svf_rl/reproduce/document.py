"""`report.md`: the tables in words."""

from collections.abc import Mapping
from typing import Any

from svf_rl.reproduce.methods import method_name
from svf_rl.reproduce.tables import accuracies, markdown_table, number, signed

INTERVALS = """Accuracies are in per cent, of greedy answers to items that no training run and no search has seen. Each
is the mean over the items of each item's mean over the seeds. The 95 % interval (bootstrap over the items; Wilson's
with one seed) says how far the figure depends on the choice of the items; it holds for these trained models. How far
it depends on the seed is what the column "seeds: lowest to highest" shows. "Against base" is the difference on the
same items, paired."""

ELICITATION = """The bundled model was pre-trained to answer its small tasks carelessly, so training elicits skills that
it has. These figures show that the methods work and how they compare here; they do not predict gains on a large
model."""


def document(results: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """
    The report.

    Args:
        results (`Mapping`): as [`svf_rl.reproduce.results.collect`] gives them, with `hardware`, `packages` and
            `seconds`.
        figures (`Mapping`): by name the file of each picture that there is.
    """
    experts = results["experts"]
    parts = [_head(results), _failures(results)]
    if "fine_tuning" in results:
        parts += ["## Fine-tuning", _picture(figures, "fine_tuning", "accuracy by task and method")]
        parts += [_trained(group) for group in results["fine_tuning"]]
    if "adaptation" in results:
        parts += ["## Adaptation to unseen tasks", _picture(figures, "adaptation", "accuracy by method")]
        parts += [_adapted(task, experts) for task in results["adaptation"]]
        if "classification" in results:
            parts.append(_classification(results["classification"]))
    if results.get("ablations"):
        parts.append("## Ablations")
        parts.append(
            "Each variant changes in the recipe what its name says. Next-token training has no samples: an update sees "
            "as many different right answers as the other variants see samples, and no advantage or temperature."
        )
        parts += [_trained(group) for group in results["ablations"]]
    if "shots" in results:
        parts += ["## Few-shot: number of labelled prompts", _picture(figures, "shots", "accuracy over prompts")]
        parts += [_shots(task) for task in results["shots"]]
    if results.get("timing"):
        parts += ["## Time of first and second pass", _picture(figures, "timing", "seconds by pass")]
        parts.append(
            "The first pass of dispatch names the class of every item; of few-shot adaptation it is the search, once a "
            "task. The second pass answers the items. Weight syncs are counted in, grading of the answers is not "
            "counted for dispatch. Means over the seeds; runs that share the machine slow each other down."
        )
        parts += [_timing(task) for task in results["timing"]]
    parts.append(_what_was_run(results))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(results: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, results["seeds"]))
    note = ELICITATION if results["model"] == "quickstart" else ""
    notes = "\n".join(f"- {note}" for note in results["notes"])
    head = f"# Comparison {results['comparison']}: {results['model']}, seeds {seeds}"
    return "\n\n".join(part for part in (head, INTERVALS, note, notes) if part)


def _failures(results: Mapping[str, Any]) -> str:
    if not results["failed"]:
        return ""
    lines = [f"- {name}: {reason}" for name, reason in results["failed"].items()]
    return "\n".join(["**Not all cells could be made** (the same command tries them again):", "", *lines])


def _trained(group: Mapping[str, Any]) -> str:
    rows = group["rows"]
    more = {
        "updates": [str(row.get("updates", "")) for row in rows],
        "training (s)": [number(row.get("training_seconds"), 0) for row in rows],
    }
    names = [row.get("name") or method_name(row["method"]) for row in rows]
    return f"**{group['task']}**\n\n{accuracies(rows, names, more)}"


def _adapted(task: Mapping[str, Any], experts: list[str]) -> str:
    rows = task["rows"]
    more = {}
    if any("dispatched_right" in row for row in rows):
        more["sent to the right expert %"] = [_percent(row.get("dispatched_right")) for row in rows]
    table = accuracies(rows, [method_name(row["method"], experts) for row in rows], more)
    text = f"**{task['label']}**\n\n{table}"
    for row in rows:
        if row.get("against_oracle"):
            text += f"\n\n{method_name(row['method'], experts)} against the oracle's choice of expert: "
            text += f"{signed(row['against_oracle'])} points."
    best = task.get("few_shot_against_best_expert")
    if best is not None:
        text += f"\n\nFew-shot against the best single expert here ({best['expert']}): {signed(best)} points."
    return text


def _classification(classification: Mapping[str, Any]) -> str:
    rows = classification["rows"]
    names = {"base": "base model with a prompt", "svf": "dispatch expert"}
    table = accuracies(rows, [names[row["method"]] for row in rows])
    return f"**Classification of held-out prompts** ({classification['task']})\n\n{table}"


def _shots(task: Mapping[str, Any]) -> str:
    rows = [task["base"], *task["rows"]]
    more = {"search (s)": [number(row.get("search_seconds")) for row in rows]}
    return f"**{task['label']}**\n\n" + accuracies(rows, [method_name(row["method"]) for row in rows], more)


def _timing(task: Mapping[str, Any]) -> str:
    headings = ["", "seeds", "first pass (s)", "second pass (s)", "first / second", "weight syncs"]
    lines = [
        [
            method_name(row["method"]),
            str(row["seeds"]),
            number(row["first_pass_seconds"], 2),
            number(row["second_pass_seconds"], 2),
            number(row["first_pass_seconds"] / max(row["second_pass_seconds"], 1e-9), 2),
            number(row["syncs"], 0),
        ]
        for row in task["rows"]
    ]
    return f"**{task['label']}**, {task['items']} items\n\n{markdown_table(headings, lines)}"


def _what_was_run(results: Mapping[str, Any]) -> str:
    hardware = ", ".join(str(value) for value in results["hardware"].values() if value)
    packages = ", ".join(f"{name} {version}" for name, version in results["packages"].items())
    cells = results["seconds"]
    lines = [
        "## What was run",
        "",
        f"- cells: {cells['cells']}, {cells['processes']:.0f} seconds of processes in all, {cells['jobs']} at once; "
        f"this call took {cells['this_call']:.0f} s and made {cells['made_now']} of them",
        f"- machine: {hardware}",
        f"- packages: {packages}",
        "- all figures: `results.json`; every answer with its verdict: `evaluation/` and `adaptation/`; trained "
        "adapters: `runs/`",
    ]
    return "\n".join(lines)


def _picture(figures: Mapping[str, str], name: str, alt: str) -> str:
    return f"![{alt}]({figures[name]})" if name in figures else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
