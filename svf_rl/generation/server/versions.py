"""The versions that requests to a server of rows can name, in the process that answers HTTP."""

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from vllm.lora.request import LoRARequest

from svf_rl.generation.server.secret import Message, RequireSecret
from svf_rl.generation.server.z_update import ROWS

KEPT = 16
"""How many versions can be named, the last ones of all runs together. A run asks for one at a time, and brings it again
where it was dropped."""


class _Version(LoRARequest, weakref=True):  # type: ignore[call-arg]
    """What vLLM keeps of a version as long as a request for it waits or runs, and we as long as it can be named."""


class ServeVersions(RequireSecret):
    """
    ASGI middleware of the server. What is posted to [`ROWS`], in the form of vLLM's `/collective_rpc` (`svf_put` of
    layout, version and `z`), becomes a row of the worker's, and the version the name of a model for requests. Nobody
    waits: requests that run have rows of their own. A row is dropped when its version can be named no more and the last
    request for it has ended.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        super().__init__(self._answer)
        self._others = app
        self._numbers = count(1)
        self._unused: list[int] = []
        self._one_at_a_time = asyncio.Lock()

    async def _answer(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "http" or scope["path"] != ROWS:
            await self._others(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            call = await request.json()
            (layout, version, z), secret = call["args"], call["kwargs"]["secret"]
        except (ValueError, TypeError, LookupError):
            answer = {"error": f"{ROWS} takes a layout, a version and its z, and the secret"}
        else:
            async with self._one_at_a_time:
                answer = await self._put(request.app.state, layout, version, z, secret)
        await JSONResponse({"results": [answer]})(scope, receive, send)

    async def _put(self, server: Any, layout: str, version: str, z: str, secret: str) -> dict[str, Any]:
        number, unused = next(self._numbers), self._unused.copy()
        (answer,) = await server.engine_client.collective_rpc(
            "svf_put", args=(layout, version, z, number, unused), kwargs={"secret": secret}
        )
        if "error" in answer:
            return answer
        del self._unused[: len(unused)]
        named = server.openai_serving_models.lora_requests
        named.pop(version, None)
        named[version] = _Version(version, number, lora_path=version)
        weakref.finalize(named[version], self._unused.append, number)
        for old in list(named)[:-KEPT]:
            del named[old]
        return answer
