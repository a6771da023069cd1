"""One comparison from several `raw.json`: seeds or methods that were made in other folders, or on other machines. Pure
functions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.evaluation.adapters import BASE
from svf_rl.reproduce.arguments import PARTS
from svf_rl.reproduce.methods import LORA, SVF
from svf_rl.reproduce.plan import NOT_ADAPTED
from svf_rl.reproduce.raw import LEFT_OUT, Raw
from svf_rl.storage.same_settings import difference

# What makes files one comparison, beside the settings of what several have.
_SAME = ("comparison", "model", "lora", "variants", "ablated", "few_shot")

# Of a list of tables: what tells one from the others, and what is there of each run, or seed.
_TABLES = {
    "probes": (("name", "expert", "task"), "answers"),
    "texts": (("name", "expert"), "scores"),
    "adaptations": (("label",), "seeds"),
}  # fmt: skip


def merge(files: Sequence[tuple[str, Raw]]) -> dict[str, Any]:
    """
    What `files`, with their names, hold together, in their order. The base model, which has no seed, is that of the
    first file that has it. What failed in one file and was made in another is made.

    Raises:
        SVFError: files of different comparisons or other settings, or what two of them have: a run, or a seed's
            adaptation.
    """
    if len(files) == 1:
        return dict(files[0][1])
    _check_same(files)
    _check_apart(files)
    raws = [raw for _, raw in files]
    first = raws[0]
    every = [run for raw in raws for run in raw["runs"].items()]
    runs = _union([sorted(every, key=lambda run: "failed" in run[1])])  # what was made before what failed
    failed = _union(raw["failed"].items() for raw in raws)
    listed = {key: _once(value for raw in raws for value in raw[key]) for key in ("parts", "shots", "notes")}
    experts = _union(raw["experts"].items() for raw in raws)
    methods = [SVF, LORA, *first["variants"]]
    by_place = sorted(
        runs.items(),
        key=lambda run: (list(experts).index(run[1]["expert"]), methods.index(run[1]["method"]), run[1]["seed"]),
    )
    return {
        **first,
        "experts": experts,
        "runs": dict(by_place),
        "failed": {name: why for name, why in failed.items() if not any(_made(name, raw) for raw in raws)},
        "settings": _union(raw["settings"].items() for raw in raws),
        "seeds": _seeds_by_part([raw["seeds"] for raw in raws]),
        "parts": [part for part in PARTS if part in listed["parts"]],
        "shots": sorted(listed["shots"]),
        "notes": [note for note in listed["notes"] if not note.startswith((LEFT_OUT, NOT_ADAPTED))],
        "dispatched": _once(method for raw in raws for method in raw["dispatched"]),
        **{
            key: {
                name: _union(raw[key].get(name, {}).items() for raw in raws)
                for name in _once(n for r in raws for n in r[key])
            }
            for key in ("evaluations", "changes")
        },
        **{key: _tables(key, raws, methods) for key in _TABLES},
        **{key: _values([raw[key] for raw in raws]) for key in ("hardware", "packages")},
        "seconds": _seconds([raw["seconds"] for raw in raws]),
    }


def _made(cell: str, raw: Raw) -> bool:
    """Whether a training run, or a seed's adaptation, is in a file. A table's cell is of other runs in each."""
    seeds = [(f"adaptation-seed{seed}", one) for task in raw["adaptations"] for seed, one in task["seeds"].items()]
    adapted = any(name == cell and one["summary"] is not None for name, one in seeds)
    return adapted or "failed" not in raw["runs"].get(cell, {"failed": "not asked for"})


def _check_same(files: Sequence[tuple[str, Raw]]) -> None:
    """That they are of one comparison, and that what several have was made with the same settings."""
    first, one = files[0]
    seen: dict[str, tuple[str, Raw]] = {}
    for name, raw in files:
        if found := difference({key: one[key] for key in _SAME}, {key: raw[key] for key in _SAME}):
            raise SVFError(f"{name} is of another comparison than {first} ({found}): give files of one")
        for what, settings in raw["settings"].items():
            other, there = seen.setdefault(what, (name, settings))
            if found := difference(there, settings):
                raise SVFError(f"{what} is of other settings in {name} than in {other} ({found}): leave one out")


def _check_apart(files: Sequence[tuple[str, Raw]]) -> None:
    """That no run, and no seed's adaptation, was made in two of them."""
    owner: dict[str, str] = {}
    for name, raw in files:
        runs = [run for run, made in raw["runs"].items() if "failed" not in made]
        adapted = [f"seed {seed} of {task['label']}" for task in raw["adaptations"] for seed in _adapted(task["seeds"])]
        for what in (*runs, *adapted):
            if what in owner:
                raise SVFError(f"{what} is in {owner[what]} and in {name}: leave one of them out")
            owner[what] = name


def _adapted(seeds: Mapping[str, Raw]) -> dict[str, Raw]:
    """Those of which something was made."""
    return {seed: one for seed, one in seeds.items() if one["answers"] or one["summary"] is not None}


def _union(mappings: Iterable[Iterable[tuple[str, Any]]]) -> dict[str, Any]:
    """All keys, each with the value that comes first."""
    found: dict[str, Any] = {}
    for mapping in mappings:
        for key, value in mapping:
            found.setdefault(key, value)
    return found


def _once(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _seeds_by_part(mappings: Sequence[Mapping[str, list[int]]]) -> dict[str, list[int]]:
    seeds_of = {part: {seed for mapping in mappings for seed in mapping.get(part, ())} for part in PARTS}
    return {part: sorted(seeds) for part, seeds in seeds_of.items() if seeds}


def _tables(key: str, raws: Sequence[Raw], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Those of all files, each once with what every file has of it."""
    names, gathered = _TABLES[key]
    same: dict[tuple[str, ...], list[Raw]] = {}
    for table in (table for raw in raws for table in raw[key]):
        same.setdefault(tuple(table[name] for name in names), []).append(table)
    found = []
    for tables in same.values():
        # a text that could not be read in one call knows no tokens
        whole = next((table for table in tables if table.get("tokens")), tables[0])
        if key == "adaptations":
            found.append({**whole, gathered: _adaptations([table[gathered] for table in tables])})
        else:
            used = {method for table in tables for method in table["methods"]}
            answers = _union(table[gathered].items() for table in tables)
            found.append({**whole, "methods": [m for m in methods if m in used], gathered: answers})
    return found


def _adaptations(parts: Sequence[Mapping[str, Raw]]) -> dict[str, Raw]:
    """The seeds of an unseen task; each call asks the base model with its first one, and so once a file."""
    made = _union([*(_adapted(part).items() for part in parts), *(part.items() for part in parts)])
    asked = next((seed for part in parts for seed in part if BASE in made[seed]["answers"]), None)

    def less(one: Raw) -> Raw:
        return {**one, "answers": {label: lines for label, lines in one["answers"].items() if label != BASE}}

    return {seed: made[seed] if seed == asked else less(made[seed]) for seed in sorted(made, key=int)}


def _values(mappings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Of each key all values, each once."""
    return {
        key: "; ".join(_once(value for m in mappings for value in m.get(key, "").split("; ") if value))
        for key in _once(key for mapping in mappings for key in mapping)
    }


def _seconds(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sums = {key: round(sum(part[key] for part in parts), 1) for key in ("this_call", "made_now", "cells", "processes")}
    by_cell: dict[str, float] = {}
    for part in parts:
        for cell, seconds in part.get("by_cell", {}).items():
            by_cell[cell] = round(by_cell.get(cell, 0) + (seconds or 0), 1)
    return {**sums, "by_cell": by_cell, "jobs": max(part["jobs"] for part in parts)}
