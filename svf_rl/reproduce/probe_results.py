"""The tables of probes: further answers, the log-likelihood of a text, what training moved. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any

from svf_rl.evaluation.adapters import BASE
from svf_rl.metrics.statistics import estimate_mean, pass_at_k
from svf_rl.reproduce.estimates import as_difference, over_seeds, share_over_seeds
from svf_rl.reproduce.probes import pass_ks
from svf_rl.reproduce.raw import Answers, Raw, decode
from svf_rl.reproduce.rows import base_of, known, known_mean, make_row, name_variant


def collect_probe(raw: Raw, probe: Raw) -> dict[str, Any]:
    """One table of a probe. With several samples an item counts with its share of right ones."""
    answers = {name: decode(lines) for name, lines in probe["answers"].items()}
    found: dict[str, dict[int, Answers]] = {BASE: {0: answers[BASE]}} if BASE in answers else {}
    for name, run in raw["runs"].items():
        if name in answers and run["method"] in probe["methods"]:
            found.setdefault(run["method"], {})[run["seed"]] = answers[name]
    rows = []
    for method in _shown(raw, probe, answers):
        row = make_row(method, found.get(method, {}), {0: of} if (of := base_of(method, answers)) else {})
        if probe["samples"] > 1:
            of_method, ks = found.get(method, {}), pass_ks(probe["samples"])
            row["pass_at_k"] = {
                k: {seed: known_mean(_passes(k, of).values()) for seed, of in of_method.items()} for k in ks
            }
            row["pass_at_k_over_seeds"] = {k: share_over_seeds(known(row["pass_at_k"][k].values())) for k in ks}
            row["pass_at_k_interval"] = {k: _over_items([_passes(k, of) for of in of_method.values()]) for k in ks}
        rows.append(row)
    named = [name_variant(row, raw) for row in rows]
    keys = ("name", "task", "expert", "samples", "temperature", "options")
    return {**{key: probe[key] for key in keys}, "rows": named}


def _shown(raw: Raw, table: Raw, found: Mapping[str, Any]) -> list[str]:
    """The methods of a table; the base model where it was asked, whether or not that failed."""
    failed = any(name.startswith("probe-") for name in raw["failed"])
    return [*([BASE] if BASE in found or failed else []), *table["methods"]]


def _passes(k: int, items: Answers) -> dict[int, float]:
    """pass@k of each item with so many verdicts."""
    verdicts = {item: known(answers) for item, answers in items.items()}
    return {item: pass_at_k(len(found), int(sum(found)), k) for item, found in verdicts.items() if len(found) >= k}


def _over_items(by_seed: Sequence[Mapping[int, float]]) -> list[float] | None:
    """The interval of the mean over the items, of each the mean over the seeds; `None` where they know no spread."""
    items = sorted({item for values in by_seed for item in values})
    means = known(known_mean(values.get(item) for values in by_seed) for item in items)
    return as_difference(estimate_mean(means))["interval"] if means else None


def collect_text(raw: Raw, text: Raw) -> dict[str, Any]:
    """
    One table of a text: mean log-likelihood of a token by method, and its difference to the base model's, with the
    bootstrap's interval over the windows of the text. A last window that is shorter takes no part, and no seed whose
    model gives a window no finite likelihood: `diverged` counts these.
    """
    whole = [k for k, n in enumerate(text["tokens"]) if n == max(text["tokens"])]
    scores = {name: [values[k] for k in whole] for name, values in text["scores"].items()}
    rows = []
    for method in _shown(raw, text, scores):
        base = base_of(method, scores)
        made = {0: base} if method == BASE and base else _of_method(raw, text["expert"], method, scores)
        by_seed = {seed: values for seed, values in made.items() if None not in values}
        found = list(by_seed.values())
        row: dict[str, Any] = {"method": method, "seeds": len(found), "diverged": len(made) - len(found)}
        row["loglikelihood"] = known_mean(value for values in found for value in values)
        row["by_seed"] = {seed: sum(values) / len(values) for seed, values in by_seed.items()}
        row["interval_over_seeds"] = over_seeds(row["by_seed"].values())
        if method != BASE and found and base and None not in base:
            differences = [sum(values[k] for values in found) / len(found) - base[k] for k in range(len(base))]
            row["against_base"] = as_difference(estimate_mean(differences))
        rows.append(row)
    named = [name_variant(row, raw) for row in rows]
    tokens = sum(text["tokens"][k] for k in whole)
    return {**{key: text[key] for key in ("name", "expert", "text")}, "tokens": tokens, "rows": named}


def collect_changes(raw: Raw, expert: str) -> dict[str, Any]:
    """What the methods moved on one task: means over the matrices and the seeds, with the entropy at the first and last
    update."""
    found, rows = raw["changes"][expert], []
    curves_of_found = {name: run["curves"] for name, run in raw["runs"].items() if name in found and "curves" in run}
    for method in dict.fromkeys(run["method"] for run in raw["runs"].values() if run["expert"] == expert):
        runs = list(_of_method(raw, expert, method, found).values())
        entropies = [
            curve
            for curves in _of_method(raw, expert, method, curves_of_found).values()
            if (curve := known(curves.get("entropy", ())))
        ]
        if not runs:
            continue
        layers = [layer for layer in runs[0]["layer"] if layer is not None]
        third = (max(layers) + 1) / 3 if layers else 0
        rows.append(
            {
                "method": method,
                "seeds": len(runs),
                **{key: known_mean(v for run in runs for v in run[key]) for key in _MEASURED},
                "relative_over_seeds": over_seeds(known(known_mean(run["relative"]) for run in runs)),
                "entropy": [known_mean(curve[place] for curve in entropies) for place in (0, -1)],
                "thirds": [
                    known_mean(
                        value
                        for run in runs
                        for layer, value in zip(run["layer"], run["relative"], strict=True)
                        if layer is not None and int(layer / third) == part
                    )
                    for part in range(3)
                ],
            }
        )
    return {"expert": expert, "task": raw["experts"][expert], "rows": [name_variant(row, raw) for row in rows]}


_MEASURED = ("relative", "stable_rank", "effective_rank", "diagonal")


def _of_method(raw: Raw, expert: str, method: str, found: Mapping[str, Any]) -> dict[int, Any]:
    """By seed what was found of the runs of a method."""
    return {
        run["seed"]: found[name]
        for name, run in raw["runs"].items()
        if (run["expert"], run["method"]) == (expert, method) and name in found
    }
