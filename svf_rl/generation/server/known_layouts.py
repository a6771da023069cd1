"""From the bytes of an update to the multipliers of a server that computes with factors."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from svf_rl.errors import SVFError
from svf_rl.generation.server.z_update import Layout
from svf_rl.generation.vllm.factored.table import MultiplierTable
from svf_rl.svf.mask import multiplier_of_all

_KEPT = 16
"""Layouts that are kept, the last ones. Runs with other settings have others."""


class KnownLayouts:
    """
    What updates may be of.

    Args:
        table ([`MultiplierTable`]): Of the worker's engine.
        fingerprints (`Mapping[str, str]`): Of the matrices that it serves in factors, by path in the model's files.
        model (`str`): The checkpoint that the server was started with: folder or Hub name.
        dtype (`torch.dtype`): Type of the server's weights.
    """

    def __init__(self, table: MultiplierTable, fingerprints: Mapping[str, str], model: str, dtype: torch.dtype):
        self._table, self._fingerprints, self._model, self._dtype = table, fingerprints, model, dtype
        self._layouts: dict[str, Layout] = {}

    def __iter__(self) -> Iterator[str]:
        """Their digests."""
        return iter(self._layouts)

    def add(self, layout: Layout) -> None:
        """Expect updates of `layout`. Raises `SVFError` where its matrices are not those that are served."""
        layout.check(self._model, self._dtype)
        for matrix in layout.matrices:
            path = _path(matrix.name)
            if path not in self._fingerprints:
                raise SVFError(
                    f"it does not serve {path} in factors, which the adapter adapts: start it with the recipe of the "
                    "run and its keys (svf-rl serve RECIPE --key value), or with --vllm_weights merged; vLLM's own "
                    "takes --model-loader-extra-config '{\"targets\": ...}'"
                )
            matrix.check_served(self._fingerprints[path], self._model)
            columns = self._table.columns[path]
            matrix.check_rank(columns.stop - columns.start)
        self._layouts.pop(layout.digest, None)
        self._layouts[layout.digest] = layout
        for digest in list(self._layouts)[:-_KEPT]:
            del self._layouts[digest]

    def multipliers(self, layout: str, version: str, z: bytes) -> dict[str, Tensor]:
        """`m` (r,) of each matrix. `layout` is the digest of one that is known. Raises `SVFError` where it is not, or
        `z` is not what `version` names."""
        if layout not in self._layouts:
            raise SVFError("it does not have the layout of the adapter: call svf_setup first")
        known, s, multipliers = self._layouts[layout], self._table.singular_values, {}
        for matrix, masks_and_z in zip(known.matrices, known.unpack(version, z), strict=True):
            path = _path(matrix.name)
            multipliers[path] = multiplier_of_all(s[self._table.columns[path]], masks_and_z)
        return multipliers


def _path(name: str) -> str:
    return name.removesuffix(".weight")
