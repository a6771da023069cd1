"""`svf-rl experts`: saved adapters side by side, read without their base model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from svf_rl.errors import SVFError
from svf_rl.metrics.statistics import Interval
from svf_rl.models.kinds import kind_of
from svf_rl.runs.provenance import base_name, find_base, list_tasks
from svf_rl.runs.run_folder import read_adapter_config, read_summary
from svf_rl.storage.path_names import path_names
from svf_rl.svf.cache import FactorCache
from svf_rl.svf.core import DIAGONAL
from svf_rl.svf.expert import Expert, check_same_base, expert_folder
from svf_rl.svf.mask import Mask
from svf_rl.svf.saved_config import WEIGHTS
from svf_rl.text_table import aligned

_WORDS = ("", "expert", "kind", "base model", "task", "modules")


@dataclass(frozen=True)
class Statistics:
    """Of the multipliers `m` of one kind of module, over all its singular values in all layers."""

    mean: float
    std: float
    min: float
    max: float
    matrices: int


@dataclass(frozen=True)
class Row:
    """One adapter. What its files do not say is `None`."""

    name: str  # the end of its path that tells it from the others
    kind: str  # `SVF`, `SVF combination`, or PEFT's name of another method
    base_model: str  # as a name that means something elsewhere
    task: str | None  # what it was trained on
    base_accuracy: float | None  # on the held-out items, before its training
    accuracy: float | None  # after it
    interval: Interval | None  # Wilson's 95 % interval of `accuracy`
    items: int | None  # the held-out ones
    bytes: int  # of the weights file
    values: int  # trained values in it
    modules: dict[str, Statistics]  # of `m` by kind of module; empty for other methods than SVF
    note: str | None  # what the statistics leave out


@dataclass(frozen=True)
class Similarity:
    """
    Experts of one base model and the same targets, and between each two the cosine of their `m − 1`, all matrices
    together; `None` where an expert changes nothing. (Of `m` itself the cosine is close to 1 for any two experts.)
    """

    names: list[str]
    cosine: list[list[float | None]]


@dataclass(frozen=True)
class ExpertsTable:
    """What `svf-rl experts` prints. `apart` says why there is more than one group in `similarity`."""

    rows: list[Row]
    similarity: list[Similarity]
    apart: list[str]

    def __str__(self) -> str:
        parts = [aligned([_overview(row) for row in self.rows], left=_WORDS)]
        statistics = [line for row in self.rows for line in _statistics(row)]
        if statistics:
            parts.append("Multipliers m of the singular values:\n" + aligned(statistics, left=_WORDS))
        for group in self.similarity:
            lines = []
            for name, row in zip(group.names, group.cosine, strict=True):
                figures = ["none" if value is None else f"{value:.3f}" for value in row]
                lines.append({"": name, **dict(zip(group.names, figures, strict=True))})
            parts.append("Cosine similarity of m - 1:\n" + aligned(lines, left=_WORDS))
        notes = [f"note: {row.name}: {row.note}" for row in self.rows if row.note]
        notes += [f"note: {reason}" for reason in self.apart]
        return "\n\n".join([*parts, "\n".join(notes)] if notes else parts)


def experts_table(paths: Sequence[str]) -> ExpertsTable:
    """
    Read the adapters and compare them.

    Args:
        paths (`Sequence[str]`): folders, or names on the Hub, of SVF adapters; others of PEFT get a row alone.

    Raises:
        SVFError: a path holds no adapter, a damaged one, or is named twice.
    """
    names = path_names(paths)
    rows, experts = [], []
    for name, path in zip(names, paths, strict=True):
        folder = expert_folder(path)
        config = read_adapter_config(folder)
        kind, summary = kind_of(config), read_summary(folder)
        expert = kind.read_expert(folder, config, name)
        m: dict[str, Tensor] = {}
        note = None
        if expert is not None:
            m, note = _multipliers(expert)
            experts.append((expert, torch.cat(list(m.values())) - 1))
        few = expert is None or expert.config.core != DIAGONAL
        values = kind.count_values(folder, config) if few else sum(map(len, m.values()))
        row = Row(
            name=name,
            kind=kind.label(config),
            base_model=base_name(find_base(config, summary)),
            task=", ".join(list_tasks(summary.recipe)) or None,
            base_accuracy=summary.base_accuracy,
            accuracy=summary.accuracy,
            interval=summary.after.interval if summary.after else None,
            items=summary.items,
            bytes=(folder / WEIGHTS).stat().st_size,
            values=values,
            modules=_by_module(m),
            note=note,
        )
        rows.append(row)
    groups, apart = _groups(experts)
    return ExpertsTable(rows, [_similarity(group) for group in groups if len(group) > 1], apart)


def _multipliers(expert: Expert) -> tuple[dict[str, Tensor], str | None]:
    """
    `m` (r,) of each matrix, fp32, and what is to be said about them.

    A renormalised expert's `m` depends on the singular values. The factor cache has them on a machine where the base
    model was decomposed; elsewhere `m` is given before the renormalisation, and the note says so.
    """
    mask = Mask.of(expert.config)
    plain = Mask(mask.parameterization, mask.max_multiplier, renormalize=False)
    before = {name: plain(z, torch.ones_like(z)) for name, z in expert.z.items()}
    if not mask.renormalize:
        return before, None
    scaled = {}
    for name, z in expert.z.items():
        s = _singular_values(expert.fingerprints[name])
        if s is None or s.shape != z.shape:
            return before, "m before its renormalisation: the factor cache lacks the base model's singular values"
        scaled[name] = mask(z, s)
    return scaled, None


def _singular_values(fingerprint: str) -> Tensor | None:
    """`s` (r,) in whatever type the factors were stored; U and V, the bulk of the file, are not read."""
    cache = FactorCache()
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        path = cache.path(fingerprint, dtype)
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor("s")
        except (OSError, SafetensorError):
            continue
    return None


def _by_module(m: dict[str, Tensor]) -> dict[str, Statistics]:
    result: dict[str, Statistics] = {}
    by_kind: dict[str, list[Tensor]] = {}
    for path, values in m.items():
        by_kind.setdefault(path.rpartition(".")[2], []).append(values.double())
    for kind, parts in by_kind.items():
        values = torch.cat(parts)
        spread = values.std(correction=0).item()
        result[kind] = Statistics(values.mean().item(), spread, values.min().item(), values.max().item(), len(parts))
    return result


Deviation = tuple[Expert, Tensor]
"""An expert and its `m − 1`, one after the other for all its matrices."""


def _groups(experts: Sequence[Deviation]) -> tuple[list[list[Deviation]], list[str]]:
    """Experts that share base and targets, and for each further group why it stands apart from the first one."""
    groups: list[list[Deviation]] = []
    apart: list[str] = []
    for expert in experts:
        reason = None
        for group in groups:
            try:
                check_same_base([group[0][0], expert[0]])
            except SVFError as error:
                reason = reason or str(error)
                continue
            group.append(expert)
            break
        else:
            groups.append([expert])
            if reason is not None:
                apart.append(f"no similarity with {expert[0].name}: {reason}")
    return groups, apart


def _similarity(group: Sequence[Deviation]) -> Similarity:
    d = torch.stack([deviation for _, deviation in group]).double()  # (K, all singular values)
    norms = d.norm(dim=1)
    cosine = (d @ d.T) / (norms[:, None] * norms).clamp_min(torch.finfo(torch.float64).tiny)
    known = (norms > 0).tolist()
    return Similarity(
        [expert.name for expert, _ in group],
        [[c if known[i] and known[j] else None for j, c in enumerate(row)] for i, row in enumerate(cosine.tolist())],
    )


def _overview(row: Row) -> dict[str, str]:
    def figure(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.3f}"

    return {
        "expert": row.name,
        "kind": row.kind,
        "base model": row.base_model,
        "task": row.task or "unknown",
        "before": figure(row.base_accuracy),
        "after": figure(row.accuracy),
        "95 %": "" if row.interval is None else f"{row.interval[0]:.3f}-{row.interval[1]:.3f}",
        "items": "" if row.items is None else str(row.items),
        "values": f"{row.values:,}",
        "kB": f"{row.bytes / 1000:,.1f}",
    }


def _statistics(row: Row) -> list[dict[str, str]]:
    return [
        {
            "expert": row.name if index == 0 else "",
            "modules": kind,
            "matrices": str(s.matrices),
            "mean": f"{s.mean:.4f}",
            "std": f"{s.std:.4f}",
            "min": f"{s.min:.4f}",
            "max": f"{s.max:.4f}",
        }
        for index, (kind, s) in enumerate(row.modules.items())
    ]
