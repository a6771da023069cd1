"""Ways to bring vLLM servers up to date with the model in training."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import methodcaller
from typing import Any, Protocol

from torch import Tensor, nn

from svf_rl.errors import SVFError
from svf_rl.generation.processes import process_count
from svf_rl.generation.server.connection import ServerConnection, ServerGoneError
from svf_rl.generation.server.z_update import describe_layout, pack
from svf_rl.generation.weights import adapted_weights, frozen_weights

Outcomes = dict[ServerConnection, int | ServerGoneError]
"""For each server the bytes that were sent to it, or why it has not got the update."""

Held = tuple[Any, ...]
"""What a server holds: which instance of it, which version, and after how many updates, those of other runs too."""


def held(status: Mapping[str, Any]) -> Held:
    """Of what a server says of itself."""
    return tuple(status.get(key) for key in ("instance", "version", "updates"))


class Update(Protocol):
    """The weights of one moment."""

    version: str
    """What servers call them."""
    tensors: int
    """How many of them differ from the checkpoint's."""

    def bring(self, servers: Sequence[ServerConnection]) -> Outcomes:
        """Have `servers` serve these weights."""

    def ensure(self, server: ServerConnection) -> Held:
        """Have `server` serve these weights unless it does, which a server that was restarted does not. Returns what
        it holds then."""

    def take_part(self) -> None:
        """What other processes do while the main one calls `bring`."""


class ZUpdate:
    """`z` alone: the workers of a server rebuild the weights."""

    def __init__(self, model: nn.Module):
        self._layout = describe_layout(model)
        self._z = pack(model)
        self._layout.split(self._z)  # refuses values that are not finite before any server is asked
        self.version = self._layout.version(self._z)
        self.tensors = len(self._layout.matrices)

    def bring(self, servers: Sequence[ServerConnection]) -> Outcomes:
        def one(server: ServerConnection) -> int | ServerGoneError:
            try:
                return self._bring(server, server.status())
            except ServerGoneError as error:
                return error

        with ThreadPoolExecutor(max(1, len(servers))) as pool:
            return dict(zip(servers, pool.map(one, servers), strict=True))

    def ensure(self, server: ServerConnection) -> Held:
        status = server.status()
        if status["version"] != self.version:
            self._bring(server, status)
            status = server.status()
        elif server.is_paused():  # a run that was killed in between
            server.resume()
        return held(status)

    def _bring(self, server: ServerConnection, status: dict[str, Any]) -> int:
        if status["layout"] != self._layout.digest:
            server.check(self._layout.dtype)  # new, or new to this run
            server.set_up(self._layout)
        with _paused(server):
            return server.update(self.version, self._z)

    def take_part(self) -> None:
        """Nothing: every process has all of `z`."""


class FullPush:
    """
    Every changed weight, in full, one matrix at a time: for adapters that `z` does not describe, and to compare.

    Args:
        model (`nn.Module`): The adapted model.
        everything (`bool`): Send the frozen weights too.
        run (`str`): Whose push it is: what another run changed and this one does not is put back.
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
                    except SVFError as error:  # kept, since all processes make the weights together, to the last one
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

    def ensure(self, server: ServerConnection) -> Held:
        if server.status()["version"] != self.version:
            if process_count() > 1:
                raise ServerGoneError("it was restarted, and full weights come at the next update alone")
            self._everything = True
            if isinstance(error := self.bring([server])[server], ServerGoneError):
                raise error
        elif server.is_paused():
            server.resume()
        return held(server.status())

    def take_part(self) -> None:
        self.tensors = sum(1 for _ in self._weights())

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from adapted_weights(self._model)
        if self._everything:
            yield from frozen_weights(self._model)


@contextmanager
def _paused(server: ServerConnection) -> Iterator[None]:
    """Within it requests wait. Where it leaves the server with half of an update, they go on waiting: no one is
    answered until another update has succeeded."""
    server.pause()
    try:
        yield
    finally:
        if server.status()["version"] is not None:
            server.resume()
