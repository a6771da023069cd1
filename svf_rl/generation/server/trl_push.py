"""A vLLM server without this package's extension: TRL's push of full weights over NCCL, which needs CUDA."""

from contextlib import ExitStack
from typing import Any

import requests
import torch
from torch import Tensor

from svf_rl.errors import SVFError, one_line
from svf_rl.generation.server.connection import ServerConnection, ServerGoneError


class TRLPushConnection(ServerConnection):
    """
    A vLLM server that was started for TRL: with `VLLM_SERVER_DEV_MODE=1` and
    `--weight-transfer-config '{"backend": "nccl"}'`. `group_port`, of the trainer's connection to the server's workers,
    is a different one for each server.

    vLLM stores the version of the weights; a restarted server has lost it.
    """

    takes_z = False

    def __init__(self, url: str, group_port: int):
        super().__init__(url)
        self._group_port = group_port
        self._client: Any = None
        self._push = ExitStack()
        self._last = ""

    def _settings(self) -> dict[str, Any]:
        if self.transfer() is None:
            raise SVFError(
                f"the vLLM server {self.url} cannot get new weights: start it with svf-rl serve RECIPE, or with "
                """--weight-transfer-config '{"backend": "svf"}', or '{"backend": "nccl"}' for TRL's push"""
            )
        return {**self.own_settings(), "replicas": 1}  # TRL's push reaches all of them

    def status(self) -> dict[str, Any]:
        return {"instance": "", "version": self._request("GET", "/weight_info")["weight_version"], "layout": None}

    def begin_push(self, prefix: str, run: str) -> int:
        if self._client is None or self.status()["version"] != self._last:  # new or restarted: connect again
            if self._client is not None:
                self._client.close_communicator()
            self._client = _client(self.url, self._group_port)
            self._client.init_communicator(torch.cuda.current_device())
        try:
            self._push.enter_context(self._client.weight_update())
        except ServerGoneError:  # a run that was killed during its push may have left it open
            self._request("POST", "/finish_weight_update", json={})
            self._push.enter_context(self._client.weight_update())
        return 0

    def push(self, name: str, weight: Tensor) -> int:
        self._client.update_named_param(name, weight)
        return weight.nbytes

    def commit(self, version: str, tensors: int) -> int:
        self._push.close()
        self._request("POST", "/update_weight_version", json={"new_version": version})
        self._last = version
        return 0


def _client(url: str, group_port: int) -> Any:
    """TRL's client, whose requests fail as ours do: TRL raises plain exceptions."""
    from trl.generation.vllm_client import VLLMClient

    class Client(VLLMClient):
        def _post(self, url: str, **options: Any) -> dict[str, Any]:
            try:
                response = self.session.post(url, **options)
            except requests.RequestException as error:
                raise ServerGoneError(f"{type(error).__name__}: {error}") from error
            if response.status_code != 200:
                raise ServerGoneError(
                    f"{url} ends with status {response.status_code}: {one_line(response.text or 'no text')}"
                )
            return response.json()

    return Client(url, group_port=group_port)
