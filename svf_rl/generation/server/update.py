"""Ways to update the weights of vLLM servers to those of the trained model."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import methodcaller
from typing import Any

from torch import Tensor, nn

from svf_rl.errors import SVFError
from svf_rl.generation.processes import process_count
from svf_rl.generation.server.connection import ServerConnection, ServerGoneError
from svf_rl.generation.server.z_update import describe_layout, pack
from svf_rl.generation.weights import adapted_weights, frozen_weights

Outcomes = dict[ServerConnection, int | ServerGoneError]
"""For each server the bytes that were sent to it, or why it did not get the update."""

ServerState = tuple[Any, ...]
"""A server's instance, version, and number of updates, including those by other runs."""


def read_state(server: ServerConnection) -> ServerState:
    """The state by the server's own status."""
    status = server.status()
    return tuple(status.get(key) for key in ("instance", "version", "updates"))


class Update(ABC):
    """The weights of one moment."""

    version: str
    """The servers' name for them."""
    tensors: int
    """How many of them differ from the checkpoint's."""

    @abstractmethod
    def bring(self, servers: Sequence[ServerConnection]) -> Outcomes:
        """Let `servers` serve these weights."""

    @abstractmethod
    def take_part(self) -> None:
        """What other processes do while the main one calls `bring`."""

    @abstractmethod
    def _repair(self, server: ServerConnection, status: dict[str, Any]) -> None:
        """Let `server`, which has other weights, serve these."""

    def ensure(self, server: ServerConnection) -> ServerState:
        """Let `server` serve these weights if it does not (a restarted server does not). Returns its state then."""
        status = server.status()
        if status["version"] != self.version:
            self._repair(server, status)
        elif server.is_paused():  # by a run that was killed during an update
            server.resume()
        return read_state(server)


class ZUpdate(Update):
    """Only `z`: the workers of a server rebuild the weights."""

    def __init__(self, model: nn.Module):
        self._layout = describe_layout(model)
        self._z = pack(model)
        self._layout.split(self._z)  # refuses values that are not finite before any server is asked
        self.version = self._layout.version(self._z)
        self.tensors = len(self._layout.matrices)

    def bring(self, servers: Sequence[ServerConnection]) -> Outcomes:
        def one(server: ServerConnection) -> int | ServerGoneError:
            try:
                return self._send(server, server.status())
            except ServerGoneError as error:
                return error

        with ThreadPoolExecutor(max(1, len(servers))) as pool:
            return dict(zip(servers, pool.map(one, servers), strict=True))

    def _repair(self, server: ServerConnection, status: dict[str, Any]) -> None:
        self._send(server, status)

    def _send(self, server: ServerConnection, status: dict[str, Any]) -> int:
        if status["layout"] != self._layout.digest:
            server.check(self._layout.dtype)  # a new server, or new to this run
            server.set_up(self._layout)
        with _paused(server):
            return server.update(self.version, self._z)

    def take_part(self) -> None:
        """Nothing: every process has all of `z`."""


class FullPush(Update):
    """
    Every changed weight in full, matrix by matrix: for adapters that `z` does not describe, and for comparison.

    Args:
        model (`nn.Module`): The adapted model.
        everything (`bool`): Send the frozen weights too.
        run (`str`): Who pushes: weights that another run changed and this one does not are restored.
    """

    def __init__(self, model: nn.Module, everything: bool, run: str):
        self._model, self._everything, self._run = model, everything, run
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._prefix = getattr(base, "base_model_prefix", "")
        self.version = uuid.uuid4().hex
        self.tensors = 0

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
                    except (
                        SVFError
                    ) as error:  # raised later: all processes rebuild the weights together, to the last one
                        broken = error

        each(methodcaller("pause"))
        each(methodcaller("begin_push", self._prefix, self._run))
        self.tensors = 0
        for name, weight in self._weights():
            each(methodcaller("push", name, weight))
            self.tensors += 1
            del weight  # before the next one is rebuilt
        each(methodcaller("commit", self.version, self.tensors))
        each(methodcaller("resume"))
        if broken is not None:
            raise broken
        return outcomes

    def _repair(self, server: ServerConnection, status: dict[str, Any]) -> None:
        if process_count() > 1:
            raise ServerGoneError("it was restarted, and full weights are sent only at the next update")
        self._everything = True
        if isinstance(error := self.bring([server])[server], ServerGoneError):
            raise error

    def take_part(self) -> None:
        self.tensors = sum(1 for _ in self._weights())

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from adapted_weights(self._model)
        if self._everything:
            yield from frozen_weights(self._model)


@contextmanager
def _paused(server: ServerConnection) -> Iterator[None]:
    """Within it requests wait. If it leaves the server with half of an update, they keep waiting until another update
    has succeeded."""
    server.pause()
    try:
        yield
    finally:
        if server.status()["version"] is not None:
            server.resume()
