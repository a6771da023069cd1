"""The adapters of the worker of a vLLM server that computes with factors: each version of each run's `z` is a row."""

import uuid
from collections.abc import Sequence
from typing import Any

import torch

from svf_rl.errors import SVFError
from svf_rl.generation.server.known_layouts import KnownLayouts
from svf_rl.generation.server.z_update import Layout
from svf_rl.generation.vllm.factored.adapters import AdapterRows


class ServedRows:
    """
    Rows by the numbers of the requests for them. No weight ever changes.

    Args:
        rows ([`AdapterRows`]): Of this worker's engine.
        layouts ([`KnownLayouts`]): Of the same engine.
    """

    def __init__(self, rows: AdapterRows, layouts: KnownLayouts):
        self._rows, self._layouts = rows, layouts
        self.instance = uuid.uuid4().hex
        """Different after every start of the server."""
        self.version = ""
        """`Layout.version` of the last update."""
        self.updates = 0

    def status(self) -> dict[str, Any]:
        """Instance, last version, number of updates, digests of the layouts that are known, and how many rows are held:
        by `rows` a client tells such a server from one of whole weights."""
        return {
            "instance": self.instance,
            "version": self.version,
            "updates": self.updates,
            "layouts": list(self._layouts),
            "rows": len(self._rows.list_adapters()),
        }

    def set_up(self, layout: Layout) -> None:
        """Expect updates of `layout`. Raises `SVFError` where its matrices are not those that are served."""
        self._layouts.add(layout)

    @torch.no_grad()
    def put(self, layout: str, version: str, z: bytes, number: int, unused: Sequence[int]) -> None:
        """Answer requests with this number by the weights of `z`, and drop the rows with `unused` numbers. `layout` is
        the digest of one that was set up. Raises `SVFError` where it was not, or `z` is not what `version` names; the
        row is not there then."""
        for one in unused:
            self._rows.remove_adapter(one)
        self._rows.put(number, self._layouts.multipliers(layout, version, z))
        self.version = version
        self.updates += 1

    def begin_push(self, *_: object) -> None:
        """Raises `SVFError`: weights are never replaced here."""
        raise SVFError("it computes with factors and takes z alone: start it with --vllm_weights merged")

    update = push = commit = begin_push
