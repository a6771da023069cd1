"""Ways to update the weights of vLLM servers to those of the trained model."""

import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import methodcaller
from typing import Any

from torch import nn

from svf_rl.errors import SVFError
from svf_rl.generation.processes import process_count
from svf_rl.generation.server.connection import ServerConnection, ServerGoneError
from svf_rl.generation.server.z_update import describe_layout, pack
from svf_rl.generation.weights import stored_weights

Outcomes = dict[ServerConnection, int | ServerGoneError]
"""For each server the bytes that were sent to it, or why it did not get the update."""


class Update:
    """The weights of one moment, and how servers get them."""

    version: str
    """The servers' name for them."""
    tensors: int
    """How many of them differ from the checkpoint's."""

    def bring(self, servers: Sequence[ServerConnection]) -> Outcomes:
        """Let `servers` serve these weights."""
        raise NotImplementedError

    def take_part(self) -> None:
        """What other processes do while the main one calls `bring`: by default nothing."""

    def bring_one(self, server: ServerConnection, status: dict[str, Any]) -> int:
        """Let `server`, which has other weights by its `status`, serve these; returns the bytes sent. Raises
        `ServerGoneError`."""
        raise NotImplementedError

    def ensure(self, server: ServerConnection) -> tuple[Any, ...]:
        """Let `server` serve these weights if it does not (a restarted server does not). Returns its state then."""
        if server.serves_rows and server.has_row(self.version):
            return server.state()
        status = server.status()
        if status["version"] != self.version or server.serves_rows:
            self.bring_one(server, status)
        elif server.is_paused():  # by a run that was killed during an update
            server.resume()
        return server.state()


class ZUpdate(Update):
    """Only `z`: the workers of a server write a row of it, or rebuild the weights."""

    def __init__(self, model: nn.Module):
        self._layout = describe_layout(model)
        self._z = pack(model)
        self._layout.split(self._z)  # refuses values that are not finite before any server is asked
        self.version = self._layout.version(self._z)
        self.tensors = len(self._layout.matrices)

    def bring(self, servers: Sequence[ServerConnection]) -> Outcomes:
        def one(server: ServerConnection) -> int | ServerGoneError:
            try:
                return self.bring_one(server, server.status())
            except ServerGoneError as error:
                return error

        with ThreadPoolExecutor(max(1, len(servers))) as pool:
            return dict(zip(servers, pool.map(one, servers), strict=True))

    def bring_one(self, server: ServerConnection, status: dict[str, Any]) -> int:
        if self._layout.digest not in status.get("layouts", [status.get("layout")]):
            server.check(self._layout.dtype)  # a new server, or new to this run
            server.set_up(self._layout)
        if server.serves_rows:
            return server.put(self._layout.digest, self.version, self._z)
        server.pause()
        try:
            return server.update(self.version, self._z)
        finally:  # with half of an update requests keep waiting, until another update has succeeded
            if server.status()["version"] is not None:
                server.resume()


class FullPush(Update):
    """Every changed weight in full, matrix by matrix, and the frozen ones too where it is `everything`: for adapters
    that `z` does not describe, and for comparison. Weights that another run than `run` changed are restored."""

    def __init__(self, model: nn.Module, everything: bool, run: str):
        self._model, self._everything, self._run = model, everything, run
        self.version = uuid.uuid4().hex

    def bring(self, servers: Sequence[ServerConnection]) -> Outcomes:
        outcomes: Outcomes = dict.fromkeys(servers, 0)
        broken: SVFError | None = None

        def each(act: Callable[[ServerConnection], int | None]) -> None:
            nonlocal broken
            for server, outcome in outcomes.items():
                if isinstance(outcome, int) and broken is None:
                    try:
                        outcomes[server] = outcome + (act(server) or 0)
                    except ServerGoneError as error:
                        outcomes[server] = error
                    # raised later: all processes rebuild the weights together, to the last one
                    except SVFError as error:
                        broken = error

        each(methodcaller("pause"))
        each(methodcaller("begin_push", getattr(self._model, "base_model_prefix", ""), self._run))
        self.tensors = 0
        for name, weight in stored_weights(self._model, self._everything):
            each(methodcaller("push", name, weight))
            self.tensors += 1
            del weight  # before the next one is rebuilt
        each(methodcaller("commit", self.version, self.tensors))
        each(methodcaller("resume"))
        if broken is not None:
            raise broken
        return outcomes

    @staticmethod
    def check_servers(servers: Sequence[ServerConnection]) -> None:
        """Raises `SVFError` where one of them has no weights that could be replaced."""
        for server in servers:
            if server.has_factors:
                raise SVFError(
                    f"the vLLM server {server.url} computes with factors and takes z alone, and what is to be served "
                    "is more: start it with svf-rl serve RECIPE --vllm_weights merged"
                )

    def bring_one(self, server: ServerConnection, status: dict[str, Any]) -> int:
        self.check_servers([server])  # one that was restarted may be of the other kind
        if process_count() > 1:
            raise ServerGoneError("it was restarted, and full weights are sent only at the next update")
        self._everything = True
        outcome = self.bring([server])[server]
        if isinstance(outcome, ServerGoneError):
            raise outcome
        return outcome

    def take_part(self) -> None:
        self.tensors = sum(1 for _ in stored_weights(self._model, self._everything))
