"""A vLLM server that somebody has started with plain vLLM, and this package installed: `z` by its weight transfer."""

import base64
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from svf_rl.errors import SVFError, one_line
from svf_rl.generation.server.connection import LONG, ServerConnection
from svf_rl.generation.server.z_update import Layout
from svf_rl.storage.files import write_file


class TransferConnection(ServerConnection):
    """
    A vLLM server that was started with `VLLM_SERVER_DEV_MODE=1`, `--load-format svf --enable-lora` and
    `--weight-transfer-config '{"backend": "svf"}'`. Requests wait during an update. vLLM stores the version of the
    weights; a restarted server has lost it, and its layout too.

    Args:
        url (`str`): Address.
        folder (`str`, *optional*): Where `z` is left for the server, which must have been told of the same folder;
            default: it is sent with the call.
    """

    def __init__(self, url: str, folder: str | None = None):
        super().__init__(url)
        self._folder = None if folder is None else Path(folder).expanduser()
        self._layout: str | None = None
        self._last = ""  # the version that was brought last

    @property
    def has_factors(self) -> bool:
        return True

    def _settings(self) -> dict[str, Any]:
        return self.own_settings()

    def status(self) -> dict[str, Any]:
        version = self._request("GET", "/weight_info")["weight_version"]
        return {"instance": "", "version": version, "layout": self._layout if version == self._last else None}

    def set_up(self, layout: Layout) -> None:
        self._do("/init_weight_transfer_engine", {"init_info": {"layout": asdict(layout)}})
        self._layout = layout.digest

    def update(self, version: str, z: bytes) -> int:
        info: dict[str, Any] = {"layout": self._layout, "version": version}
        if self._folder is None:
            info["z"] = base64.b64encode(z).decode()
        else:
            write_file(self._folder / f"{version}.z", z, "give another vllm_server_folder")
        try:
            self._do("/start_weight_update", {})
        except SVFError:  # a run that was killed may have left one open
            self._do("/finish_weight_update", {})
            self._do("/start_weight_update", {})
        self._do("/update_weights", {"update_info": info})
        self._do("/finish_weight_update", {"weight_version": version})
        if self._folder is not None and self._last not in ("", version):
            (self._folder / f"{self._last}.z").unlink(missing_ok=True)
        self._last = version
        return len(info.get("z", z))

    def _do(self, path: str, body: dict[str, Any]) -> None:
        self._request("POST", path, json=body, timeout=LONG)

    def _explain(self, path: str, response: httpx.Response) -> None:
        """The engine of a server that lives has refused: nothing that another server, or a restart, would mend."""
        if path == "/health" or not self.is_up():
            super()._explain(path, response)
        raise SVFError(
            f"the vLLM server {self.url} cannot be used: {path} ends with status {response.status_code}: "
            f"{one_line(response.text or 'no text')}; its log says why"
        )
