"""vLLM's weight-transfer engine `svf`, in the worker of a server that somebody has started with plain vLLM."""

import base64
import binascii
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from svf_rl.errors import SVFError
from svf_rl.generation.server.known_layouts import KnownLayouts
from svf_rl.generation.server.z_update import Layout
from svf_rl.generation.vllm.factored.table import BASE

FOLDER = "SVF_RL_TRANSFER_FOLDER"
"""Variable with the folder that updates may come from, which whoever starts the server names."""


@dataclass
class LayoutInfo(WeightTransferInitInfo):
    """`layout`: of the updates to come, as `dataclasses.asdict` gives it."""

    layout: dict[str, Any]


@dataclass
class ZInfo(WeightTransferUpdateInfo):
    """`layout`: the digest of one that was announced; `version`: the name of these `z`; `z`: their bytes in base64, or
    nothing where they are the file of that name in the server's folder."""

    layout: str
    version: str
    z: str | None = None


class SVFTransferEngine(WeightTransferEngine[LayoutInfo, ZInfo]):
    """
    The base model of the server becomes that of the last `z`; named adapters stay what they are. The factors are never
    touched: an update is one row of the table, written whole between two steps of the engine, so that a request which
    no pause has ended goes on with the new one, as with any engine of vLLM's.

    Raises:
        SVFError: the server computes with whole weights.
    """

    init_info_cls = LayoutInfo
    update_info_cls = ZInfo
    supports_draft_weight_update = False

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: torch.nn.Module
    ):
        super().__init__(config, vllm_config, device, model)
        self._table: Any = getattr(model, "svf_table", None)
        if self._table is None:
            raise SVFError(
                "weight transfer with the backend svf writes rows of factors, and this server computes with whole "
                "weights: add --load-format svf --enable-lora"
            )
        served: Any = vllm_config.model_config
        self._layouts = KnownLayouts(self._table, model.svf_fingerprints, served.model, served.dtype)

    def init_transfer_engine(self, init_info: LayoutInfo) -> None:
        self._layouts.add(Layout.from_json(init_info.layout))

    def start_weight_update(self) -> None: ...

    def finish_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))  # nothing here is done beside the device's own order

    @torch.no_grad()
    def receive_weights(self, update_info: ZInfo) -> None:
        z = _read(update_info)
        row = self._table.row_of(self._layouts.multipliers(update_info.layout, update_info.version, z))
        self._table.values[BASE] = row

    def shutdown(self) -> None: ...


def _read(update: ZInfo) -> bytes:
    if update.z is not None:
        try:
            return base64.b64decode(update.z, validate=True)
        except binascii.Error as error:
            raise SVFError(f"the z of an update are not in base64 ({error})") from error
    folder = os.environ.get(FOLDER)
    if not folder:
        raise SVFError(f"an update lies in a folder, and this server was told of none: set {FOLDER}")
    if not re.fullmatch("[0-9a-f]{64}", update.version):  # it becomes part of a path
        raise SVFError(f"{update.version!r} is no version")
    path = Path(folder) / f"{update.version}.z"
    try:
        return path.read_bytes()
    except OSError as error:
        raise SVFError(f"cannot read an update in {FOLDER} ({error}): it must be the folder of the trainer") from error
