"""One comparison from several `raw.json`: seeds or methods that were made in other folders, or on other machines. Pure
functions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.evaluation.adapters import BASE
from svf_rl.reproduce.arguments import PARTS
from svf_rl.reproduce.methods import SVF
from svf_rl.reproduce.raw import LEFT_OUT, Raw
from svf_rl.storage.same_settings import difference

# What makes files one comparison.
_SAME = ("comparison", "model", "lora", "variants", "ablated", "few_shot")
# What makes two probes of one name the same.
_ASKED = ("samples", "temperature", "options")

# Of a list of tables: what tells one from the others, and what is there of each run, or seed.
_TABLES = {
    "probes": (("name", "expert", "task"), "answers"),
    "texts": (("name", "expert"), "scores"),
    "adaptations": (("label",), "seeds"),
}  # fmt: skip


def merge(files: Mapping[str, Raw]) -> dict[str, Any]:
    """
    The files, by name, as if one call had made the runs of all. The base model, which has no seed, is that of the first
    file that has it.

    Raises:
        SVFError: files of different comparisons, or what two files have: a run, or the adaptation of a seed.
    """
    if len(files) == 1:
        return dict(next(iter(files.values())))
    _check_same(files)
    _check_apart(files)
    raws = list(files.values())
    one = raws[0]
    together = {key: _union(raw[key] for raw in raws) for key in ("failed", "experts", "runs")}
    listed = {key: _once(value for raw in raws for value in raw[key]) for key in ("seeds", "parts", "shots", "notes")}
    return {
        **one,
        **together,
        "runs": _in_order(together["runs"], list(together["experts"]), list(one["variants"])),
        "seeds": sorted(listed["seeds"]),
        "parts": [part for part in PARTS if part in listed["parts"]],
        "shots": sorted(listed["shots"]),
        "notes": [note for note in listed["notes"] if not note.startswith(LEFT_OUT)],
        "dispatched": _once(method for raw in raws for method in raw["dispatched"]),
        **{
            key: {name: _union(raw[key].get(name, {}) for raw in raws) for name in _union(raw[key] for raw in raws)}
            for key in ("evaluations", "changes")
        },
        **{key: _tables(key, raws) for key in _TABLES},
        **{key: _values([raw[key] for raw in raws]) for key in ("hardware", "packages")},
        "seconds": _seconds([raw["seconds"] for raw in raws]),
    }


def _check_same(files: Mapping[str, Raw]) -> None:
    """That they are of one comparison, and what is asked under one name is the same."""
    (first, one), *others = files.items()
    probes = {_name(probe, "probes"): probe for probe in one["probes"]}
    for name, other in others:
        asked = [(probes.get(_name(probe, "probes"), probe), probe) for probe in other["probes"]]
        for here, there, keys in [(one, other, _SAME), *((*pair, _ASKED) for pair in asked)]:
            found = difference({key: here[key] for key in keys}, {key: there[key] for key in keys})
            if found:
                raise SVFError(f"{name} is of another comparison than {first} ({found}): give files of one")


def _check_apart(files: Mapping[str, Raw]) -> None:
    """That no run, and no seed's adaptation, is in two of them."""
    owner: dict[str, str] = {}
    for name, raw in files.items():
        adapted = [f"seed {seed} of {task['label']}" for task in raw["adaptations"] for seed in task["seeds"]]
        for what in [*raw["runs"], *adapted]:
            if what in owner:
                raise SVFError(f"{what} is in {owner[what]} and in {name}: give files that have nothing twice")
            owner[what] = name


def _name(table: Raw, key: str) -> tuple[str, ...]:
    """What tells a table of this kind from the others."""
    return tuple(table[name] for name in _TABLES[key][0])


def _union(mappings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All keys, each with the value of the first mapping that has it."""
    found: dict[str, Any] = {}
    for mapping in mappings:
        found = {**found, **{key: value for key, value in mapping.items() if key not in found}}
    return found


def _once(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _in_order(runs: Mapping[str, Raw], experts: Sequence[str], variants: Sequence[str]) -> dict[str, Raw]:
    """By expert, method and seed, as one call has them."""

    def place(item: tuple[str, Raw]) -> tuple[int, int, int]:
        run = item[1]
        method = variants.index(run["method"]) if run["method"] in variants else -2 + (run["method"] != SVF)
        return experts.index(run["expert"]), method, run["seed"]

    return dict(sorted(runs.items(), key=place))


def _tables(key: str, raws: Sequence[Raw]) -> list[dict[str, Any]]:
    """Those of all files, each once with what every file has of it."""
    found: dict[tuple[str, ...], list[Raw]] = {}
    for table in (table for raw in raws for table in raw[key]):
        found.setdefault(_name(table, key), []).append(table)
    return [_gather(tables, _TABLES[key][1]) for tables in found.values()]


def _gather(tables: Sequence[Raw], gathered: str) -> dict[str, Any]:
    """The tables of several files as one."""
    found = _union(table[gathered] for table in tables)
    if gathered == "seeds":
        found = _with_one_base({seed: found[seed] for seed in sorted(found, key=int)})
    whole = {**tables[0], gathered: found}
    if "methods" in whole:
        whole["methods"] = _once(method for table in tables for method in table["methods"])
    return whole


def _with_one_base(seeds: Mapping[str, Raw]) -> dict[str, Any]:
    """Unseen tasks ask the base model with the first seed of a call, and so once a file."""
    kept: dict[str, Any] = {}
    for seed, one in seeds.items():
        again = any(BASE in other["answers"] for other in kept.values())
        answers = {label: lines for label, lines in one["answers"].items() if label != BASE or not again}
        kept[seed] = {**one, "answers": answers}
    return kept


def _values(mappings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Of each key all values, each once."""
    return {key: "; ".join(_once(m[key] for m in mappings if m.get(key))) for key in _union(mappings)}


def _seconds(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sums = {key: round(sum(part[key] for part in parts), 1) for key in ("this_call", "made_now", "cells", "processes")}
    by_cell: dict[str, float] = {}
    for part in parts:
        for cell, seconds in part["by_cell"].items():
            by_cell[cell] = round(by_cell.get(cell, 0) + (seconds or 0), 1)
    return {**sums, "by_cell": by_cell, "jobs": max(part["jobs"] for part in parts)}
