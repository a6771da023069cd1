"""One vLLM server over HTTP: the `svf_` methods of its workers, pause and resume, and its errors."""

import base64
import json
import re
import time
from dataclasses import asdict
from typing import Any

import httpx
import torch
from torch import Tensor

from svf_rl.errors import SVFError, one_line
from svf_rl.generation.server.secret import HEADER, read_secret
from svf_rl.generation.server.z_update import ROWS, Layout

EXTENSION = "svf_rl.generation.worker_extension.SVFWorkerExtension"
# Seconds after which a server counts as dead; the longer time is for calls that read files or wait for requests.
_SHORT, LONG = 60.0, 1800.0
_HOW = f"start it with svf-rl serve RECIPE, or with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls {EXTENSION}"
# of a worker in another process than vLLM's engine, and of one within it
_NO_METHOD = re.compile(r"has no attribute 'svf_|Method 'svf_\w+' is not implemented")
_NOT_VLLM = "{} answers, but not as a vLLM server does: give the address of one"


class ServerGoneError(Exception):
    """The server does not answer, or its engine has died."""


class NoExtensionError(SVFError):
    """A vLLM server whose workers lack our methods."""


class ServerConnection:
    """A vLLM server with this package's worker extension, at an address such as `http://localhost:8000`."""

    takes_z = True
    serves_rows = False
    """Whether a version is a row of its own there, which requests name."""
    max_model_len = 0
    max_num_seqs = 256
    request_keys: frozenset[str] = frozenset()
    """What `/v1/completions` accepts, by the server's own description."""

    def __init__(self, url: str):
        self.url = url
        # No connection is kept open: one that the server is just closing would look like a dead server.
        self._http = httpx.Client(
            base_url=url,
            timeout=httpx.Timeout(_SHORT, connect=10.0),
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
        )

    @property
    def has_factors(self) -> bool:
        """Whether it computes with them: it takes `z` alone then."""
        return self.serves_rows

    def is_up(self) -> bool:
        """Whether the server answers within a few seconds."""
        try:
            self._request("GET", "/health", timeout=5.0)
        except ServerGoneError:
            return False
        return True

    def check(self, dtype: str) -> None:
        """
        Read what is served, and check that a model with weights of `dtype` (`"bfloat16"`) can be trained with it.

        Raises:
            SVFError: not a vLLM server, one without the extension, or one with unsuitable settings; in one line.
            ServerGoneError: no answer.
        """
        try:
            self._request("GET", "/v1/models")["data"][0]["id"]
            schemas = self._request("GET", "/openapi.json")["components"]["schemas"]
            self.request_keys = frozenset(schemas["CompletionRequest"]["properties"])
        except (KeyError, IndexError, TypeError) as error:
            raise SVFError(_NOT_VLLM.format(self.url)) from error
        settings = self._settings()
        self.max_model_len, self.max_num_seqs = settings["max_model_len"], settings["max_num_seqs"]
        wrong = None
        if settings["dtype"] != dtype:
            wrong = f"--dtype {dtype}, since the trained model has that type and it serves {settings['dtype']}"
        elif settings["logprobs_mode"] != "processed_logprobs":
            wrong = "--logprobs-mode processed_logprobs: training needs those of the sampling distribution"
        elif settings["device"] == "cpu" and settings["chunked_prefill"]:
            wrong = "--no-enable-chunked-prefill: on the CPU vLLM fails on seeded requests with it"
        elif settings["replicas"] > 1:
            wrong = "--data-parallel-size 1, and start one server for each GPU instead: vLLM answers for one replica"
        if wrong:
            raise SVFError(f"restart the vLLM server {self.url} with {wrong}")

    def _settings(self) -> dict[str, Any]:
        """Type and length of the model, and how it is served."""
        return self.status()

    def transfer(self) -> str | None:
        """The backend of vLLM's own weight transfer that the server was started with."""
        config = self._server_info()["weight_transfer_config"]
        return None if config is None else str(config["backend"])

    def own_settings(self) -> dict[str, Any]:
        """What vLLM itself says of how it serves."""
        info = self._server_info()
        return {
            **{key: info["model_config"][key] for key in ("max_model_len", "logprobs_mode")},
            "dtype": str(info["model_config"]["dtype"]).removeprefix("torch."),
            "max_num_seqs": info["scheduler_config"]["max_num_seqs"],
            "chunked_prefill": info["scheduler_config"]["enable_chunked_prefill"],
            "device": str(info["device_config"]["device"]),
            "replicas": info["parallel_config"]["data_parallel_size"],
        }

    def _server_info(self) -> dict[str, Any]:
        """vLLM's configuration, as its development mode tells it."""
        return self._request("GET", "/server_info", params={"config_format": "json"})["vllm_config"]

    def status(self) -> dict[str, Any]:
        """The workers' `svf_status`, see `_call`."""
        status = self._call("svf_status")[0]
        self.serves_rows = "rows" in status  # a restarted server may be of the other kind
        return status

    def state(self) -> tuple[Any, ...]:
        """Instance, version, and number of updates, in which those of other runs count too. Nothing for rows: an answer
        is of the version that it was asked for."""
        if self.serves_rows:
            return ()
        status = self.status()
        return tuple(status.get(key) for key in ("instance", "version", "updates"))

    def is_paused(self) -> bool:
        """Whether requests wait for `resume`."""
        return bool(self._request("GET", "/is_paused")["is_paused"])

    def pause(self) -> None:
        """Finish the running requests, and let later ones wait; caches are emptied."""
        self._request("POST", "/pause", params={"mode": "wait"}, timeout=LONG)

    def empty_cache(self) -> None:
        """Drop cached prefixes: they were computed in other batches and differ in the last bits."""
        self._request("POST", "/reset_prefix_cache")

    def resume(self) -> None:
        """Answer requests again."""
        self._request("POST", "/resume")

    def set_up(self, layout: Layout) -> None:
        """Send the layout of the next updates to the workers. Raises `SVFError` where they cannot use it."""
        self._call("svf_setup", asdict(layout))

    def update(self, version: str, z: bytes) -> int:
        """Let the workers rebuild their weights; returns the number of bytes sent, as the next four methods do."""
        return self._send("svf_update", version, base64.b64encode(z).decode(), version=version)

    def put(self, layout: str, version: str, z: bytes) -> int:
        """Give the workers a row that requests can name; `layout` is the digest of that of `z`."""
        return self._send("svf_put", layout, version, base64.b64encode(z).decode(), version=version)

    def has_row(self, version: str) -> bool:
        """Whether requests can name it."""
        return any(model["id"] == version for model in self._request("GET", "/v1/models")["data"])

    def begin_push(self, prefix: str, run: str) -> int:
        """Announce full weights (`ServedWeights.begin_push`)."""
        return self._send("svf_begin_push", prefix, run)

    def push(self, name: str, weight: Tensor) -> int:
        """Send one full weight."""
        data = weight.detach().cpu().flatten().view(torch.uint8).numpy().data
        dtype = str(weight.dtype).removeprefix("torch.")
        return self._send("svf_push", name, dtype, list(weight.shape), base64.b64encode(data).decode())

    def commit(self, version: str, tensors: int) -> int:
        """End a push of `tensors` weights, which are now called `version`."""
        return self._send("svf_commit", version, tensors, version=version)

    def _send(self, method: str, *arguments: Any, version: str | None = None) -> int:
        """Call `method` on the workers; returns the bytes sent. Raises `SVFError` unless they then have `version`."""
        status, size = self._call(method, *arguments)
        if version is not None and status["version"] != version:
            raise SVFError(f"the workers of the vLLM server {self.url} have different weights: restart it")
        return size

    def _call(self, method: str, *arguments: Any) -> tuple[dict[str, Any], int]:
        """The workers' answer, and the bytes sent. `version` and `layout` are `None` unless all workers agree;
        `instance` joins theirs."""
        call = {"method": method, "args": arguments, "kwargs": {"secret": read_secret() or ""}}
        body, path = json.dumps(call).encode(), ROWS if method == "svf_put" else "/collective_rpc"
        limit = _SHORT if method == "svf_status" else LONG
        answers = self._request("POST", path, content=body, timeout=limit)["results"]
        for answer in answers:
            if "error" in answer:
                raise SVFError(f"the vLLM server {self.url} cannot be used: {answer['error']}")
        together = {**answers[0], "instance": "+".join(answer["instance"] for answer in answers)}
        for key in ("version", "layout"):
            if any(answer.get(key) != together.get(key) for answer in answers):
                together[key] = None
        return together, len(body)

    def _request(self, method: str, path: str, **options: Any) -> Any:
        end = time.monotonic() + LONG
        headers = {HEADER: read_secret() or ""}
        while True:
            try:
                response = self._http.request(method, path, headers=headers, **options)
                break
            except httpx.ReadTimeout as error:
                # sending a call twice does no harm; the server may still be reading its files for another process
                if path == "/health" or time.monotonic() > end or not self.is_up():
                    raise ServerGoneError(f"{type(error).__name__}: {error}") from error
            except httpx.TransportError as error:
                raise ServerGoneError(f"{type(error).__name__}: {error}") from error
        if response.status_code == 401:
            raise SVFError(f"the vLLM server {self.url} refuses {path}: {one_line(response.text or 'no text')}")
        if response.status_code == 404:
            raise SVFError(f"{self.url} has no {path}, so it cannot get new weights: {_HOW}")
        if response.status_code >= 400:
            self._explain(path, response)
        try:
            return response.json() if response.content else None
        except json.JSONDecodeError as error:
            raise SVFError(_NOT_VLLM.format(self.url)) from error

    def _explain(self, path: str, response: httpx.Response) -> None:
        if path != "/health":
            self._request("GET", "/health", timeout=10.0)
            if _NO_METHOD.search(response.text):
                raise NoExtensionError(
                    f"the vLLM server {self.url} runs without the extension of this package, and TRL's push "
                    f"works on CUDA only: {_HOW}"
                )
        raise ServerGoneError(f"{path} ends with status {response.status_code}: {one_line(response.text or 'no text')}")
