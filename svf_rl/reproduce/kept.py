"""Whether what earlier calls left in the folder of a cell is what is asked for now: of the same settings, and of the
adapters that are there now."""

import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.evaluation.adapters import BASE, find_adapters
from svf_rl.reproduce.methods import DISPATCH, slug
from svf_rl.storage.files import write_json
from svf_rl.storage.json_files import read_json
from svf_rl.storage.same_settings import check_same_settings

_REMEDY = "remove it, and the same command makes it again"
# What goes with a folder, by what is in it: of a training run, and of other cells.
_TRAINED = {"summary.json": "the trained adapter", "checkpoint-*": "its checkpoints"}
_ANSWERED = {"**/*.jsonl": "its answers"}


def check_kept(kind: str, folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """
    Raises `SVFError` where the folder of a cell holds what was made with other settings, `there`, than those of now,
    and is not made again by itself.
    """
    before, now = _deciding(kind, folder, there), _deciding(kind, folder, here)
    for part in before.keys() & now.keys():
        contents = _TRAINED if kind == "training" else _ANSWERED
        lost = next((what for pattern, what in contents.items() if any(part.glob(pattern))), None)
        if lost is not None:
            remedy = f"remove that folder, {lost} with it, to make it again, or give another --out"
            check_same_settings(before[part], now[part], f"{part} was made", remedy)


def _deciding(kind: str, folder: Path, settings: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """By folder the settings that what is in it must agree with; none for kinds that measure again by themselves."""
    if kind == "training":
        return {folder: dict(settings)} if settings else {}
    if kind not in ("evaluation", "adaptation") or not settings:
        return {}
    # how many items are asked for, how fast answers come, and what stands in other files decides none of them
    engine = ("backend", "temperature", "samples", *(["limit"] if kind == "adaptation" else []))
    common = {
        **_less(settings, "adapters", "shots", "reserve", "compare", "base"),
        "options": _less(settings.get("options", {}), "train_items", "validation_items"),
        "few_shot": _less(settings.get("few_shot", {}), "shots"),
        "evaluation": {key: settings.get("evaluation", {}).get(key) for key in engine},
    }
    if kind == "evaluation":
        return {folder: common}
    return {folder / slug(label): {**common, "unseen": task} for label, task in settings.get("unseen", {}).items()}


def _less(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


def narrow(kind: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an earlier call less what it asked for beyond those of now: other adapters, numbers of shots, and
    methods."""
    if kind == "training":  # which asks for nothing
        return dict(there)
    adapters, shots = here.get("adapters", {}), here.get("shots", [])
    return {
        **there,
        "adapters": {name: one for name, one in there.get("adapters", {}).items() if name in adapters},
        "shots": [number for number in there.get("shots", []) if number in shots],
        **{key: there.get(key) and here.get(key) for key in ("compare", "base")},
    }


def replaced(kind: str, spec: Mapping[str, Any]) -> list[str]:
    """The records of a cell other than a training run that another adapter made than the one that is there now: labels,
    or `<unseen task>/<method>`."""
    folders = {**spec.get("adapters", {}), **spec.get("experts", {}), DISPATCH: spec.get("dispatch")}
    now = {name: found for name, folder in folders.items() if folder and (found := _fingerprint(folder))}
    records = made_with(kind, Path(spec["out"])) if now else {}
    return [record for record, used in records.items() if any(now.get(name, one) != one for name, one in used.items())]


def made_with(kind: str, folder: Path) -> dict[str, dict[str, str | None]]:
    """By record the adapters that made it, by name, with their fingerprints."""
    if kind == "evaluation":
        runs = read_json(folder / "settings.json", _REMEDY, missing_ok=True).get("runs", {})
        labels = {run.partition("/")[0]: settings.get("adapter_fingerprint") for run, settings in runs.items()}
        return {label: {label: fingerprint} for label, fingerprint in labels.items() if label != BASE}
    depth = "*/*.json" if kind == "adaptation" else "*.json"
    files = {path: read_json(path, _REMEDY).get("settings", {}) for path in folder.glob(depth)}
    if kind == "adaptation":
        return {f"{p.parent.name}/{p.stem}": settings.get("experts", {}) for p, settings in files.items()}
    return {path.stem: {path.stem: made["adapter"]} for path, made in files.items() if "adapter" in made}


def drop_replaced(kind: str, spec: Mapping[str, Any]) -> None:
    """Take away the records that [`replaced`] names, where they are not measured again by themselves."""
    out, gone = Path(spec["out"]), replaced(kind, spec)
    for record in gone if kind in ("evaluation", "adaptation") else ():
        print(f"made again, its adapter is another one now: {record}", flush=True)
        shutil.rmtree(out / record, ignore_errors=True)  # answers of an evaluation, or the search
        for ending in (".json", ".jsonl") if kind == "adaptation" else ():
            (out / f"{record}{ending}").unlink(missing_ok=True)
    if gone and kind == "evaluation":
        settings = read_json(out / "settings.json", _REMEDY)
        runs = {run: made for run, made in settings["runs"].items() if run.partition("/")[0] not in gone}
        write_json(out / "settings.json", {**settings, "runs": runs})


def _fingerprint(folder: str) -> str | None:
    """Of the adapter in a folder; `None` where there is none."""
    files = [path for path in Path(folder).glob("adapter_*") if path.is_file()]
    return _read_fingerprint(folder, tuple(sorted((path.name, path.stat().st_mtime_ns) for path in files)))


@cache
def _read_fingerprint(folder: str, files: Sequence[tuple[str, int]]) -> str | None:
    """A folder stands in several cells, and is asked for more than once in a call."""
    try:
        return find_adapters([folder])[0].fingerprint if files else None
    except SVFError:  # damaged: whoever needs it says so
        return None
