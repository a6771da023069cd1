"""The multipliers of the singular values as pictures see them: a grid of layers × singular indices."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from svf_rl.errors import SVFError
from svf_rl.svf.expert import read_expert
from svf_rl.svf.mask import Mask

Grid = NDArray[np.float32]

# A panel has about so many pixels: more values than that are averaged, and not dropped.
MOST_COLUMNS, MOST_ROWS = 700, 240

_BESIDE_THE_VALUES = (".svf_fingerprint", ".svf_probe")


@dataclass(frozen=True)
class Panel:
    """
    The multipliers of one kind of module.

    Args:
        kind (`str`): the module's path below its layer, such as `mlp.gate_proj`.
        layers (`list[int]`): the layer of each row.
        values (`ndarray` of shape `(rows, r)`): m, largest singular value first; NaN where a row's matrix has fewer.
    """

    kind: str
    layers: list[int]
    values: Grid


def read_panels(folder: Path) -> list[Panel]:
    """
    The multipliers of a saved SVF adapter, a panel a kind of module; none for LoRA.

    Those of `renormalize: true` are given as they are before that scaling, which the singular values decide.

    Raises:
        SVFError: the adapter is damaged.
    """
    if _config(folder).get("peft_type") != "SVF":
        return []
    expert = read_expert(folder)
    mask = Mask(expert.config.parameterization, expert.config.max_multiplier)
    return panels({name: mask(z, z) for name, z in expert.z.items()})


def panels(multipliers: Mapping[str, Tensor]) -> list[Panel]:
    """Multipliers `(r,)` by module path, as a panel a kind of module, in the order of the layers."""
    rows: dict[str, list[tuple[list[int], Tensor]]] = defaultdict(list)
    for name, m in multipliers.items():
        numbers = [int(number) for number in re.findall(r"(?<=\.)\d+(?=\.|$)", name)]
        below = re.split(r"\.\d+(?:\.|$)", name, maxsplit=1)[-1]
        rows[re.sub(r"(?<=\.)\d+(?=\.|$)", "*", below)].append((numbers, m))  # the experts of a mixture are one kind
    result = []
    for kind, found in rows.items():
        found.sort(key=lambda row: row[0])
        values = np.full((len(found), max(len(m) for _, m in found)), math.nan, dtype=np.float32)
        for row, (_, m) in zip(values, found, strict=True):
            row[: len(m)] = m.float().numpy()
        result.append(Panel(kind, [numbers[0] if numbers else 0 for numbers, _ in found], values))
    return result


def shrunk(values: Grid) -> tuple[Grid, int, int]:
    """
    The grid as a panel shows it: means over blocks of neighbouring rows and columns, where there are too many.

    Returns:
        the grid, and the rows and columns of a block; the last block may be smaller.
    """
    rows, columns = (-(-size // most) for size, most in zip(values.shape, (MOST_ROWS, MOST_COLUMNS), strict=True))
    if rows == columns == 1:
        return values, 1, 1
    present = np.isfinite(values)
    sums, counts = (_blocks(part, rows, columns) for part in (np.where(present, values, 0.0), present))
    with np.errstate(invalid="ignore"):  # 0 / 0 where a block is empty
        return (sums / counts).astype(np.float32), rows, columns


def trained_values(folder: Path) -> int:
    """How many numbers were trained: `z`, LoRA's matrices, or for a combination of experts its weights α."""
    combination = _config(folder).get("combination")
    if combination:
        return int(np.size(combination["alpha"]))
    try:
        with safe_open(folder / "adapter_model.safetensors", "np") as file:
            names = [name for name in file.keys() if not name.endswith(_BESIDE_THE_VALUES)]  # noqa: SIM118
            return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    except (OSError, SafetensorError) as error:
        raise SVFError(f"{folder / 'adapter_model.safetensors'} is damaged: {error}") from error


def _blocks(values: NDArray, rows: int, columns: int) -> NDArray:
    down = np.add.reduceat(values.astype(np.float64), np.arange(0, values.shape[0], rows), axis=0)
    return np.add.reduceat(down, np.arange(0, values.shape[1], columns), axis=1)


def _config(folder: Path) -> dict:
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SVFError(f"{file} is damaged or missing: {error}") from error
    if not isinstance(config, dict):
        raise SVFError(f"{file} is damaged: it is no mapping")
    return config
