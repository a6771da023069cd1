"""The multipliers of the singular values as pictures see them: a grid of layers × singular indices."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from svf_rl.models.kinds import kind_of
from svf_rl.runs.run_folder import read_adapter_config
from svf_rl.svf.mask import Mask

Grid = NDArray[np.float32]

# A panel has about so many pixels: more values than that are averaged, and not dropped.
MOST_COLUMNS, MOST_ROWS = 700, 240


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
    config = read_adapter_config(folder)
    expert = kind_of(config).read_expert(folder, config)
    if expert is None:
        return []
    mask = Mask(expert.config.parameterization, expert.config.max_multiplier)
    return make_panels({name: mask(z, z) for name, z in expert.z.items()})


def make_panels(multipliers: Mapping[str, Tensor]) -> list[Panel]:
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


def shrink(values: Grid) -> tuple[Grid, int, int]:
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


def _blocks(values: NDArray, rows: int, columns: int) -> NDArray:
    down = np.add.reduceat(values.astype(np.float64), np.arange(0, values.shape[0], rows), axis=0)
    return np.add.reduceat(down, np.arange(0, values.shape[1], columns), axis=1)
