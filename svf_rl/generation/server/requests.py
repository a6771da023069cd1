"""Many requests to several vLLM servers at once."""

import asyncio
import json
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
from tqdm import tqdm

from svf_rl.errors import SVFError, one_line
from svf_rl.generation.server.connection import ServerConnection, ServerGoneError

# A long batch may take hours, so a request has no time limit; instead the server must keep answering health checks.
_INTERVAL, _PATIENCE = 5.0, 60.0

Answer = dict[str, Any]
"""The first choice of an answer. `None` in its place: the server has no row any more of the version in question."""


def send_requests(
    requests: Mapping[ServerConnection, Sequence[dict[str, Any]]], progress: bool = False
) -> dict[ServerConnection, list[Answer | None] | ServerGoneError]:
    """Send each server its requests, bodies for `/v1/completions` with one prompt each, all at once. Returns for each
    server the first choice of each answer, in order, or why it failed. Raises `SVFError` where a server refused a
    request."""
    total = sum(map(len, requests.values()))
    with tqdm(total=total, unit="request", disable=not progress, leave=False) as bar:
        outcomes = _run(_gather(*(_send_watched(server, bodies, bar) for server, bodies in requests.items())))
    return dict(zip(requests, outcomes, strict=True))


async def _gather(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    return await asyncio.gather(*work)


async def _send_watched(
    server: ServerConnection, bodies: Sequence[dict[str, Any]], bar: Any
) -> list[Answer | None] | ServerGoneError:
    """The answers of one server, or why it failed; it must answer health checks meanwhile."""
    # aiohttp: with hundreds of connections httpx takes ten times the CPU time
    connector = aiohttp.TCPConnector(limit=server.max_num_seqs)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_PATIENCE)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        work = asyncio.gather(*(_request(client, server.url, body, bar) for body in bodies))
        watch = asyncio.create_task(_watch_health(server.url))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else watch.result()
        except ServerGoneError as error:
            return error
        finally:
            work.cancel()
            watch.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)


async def _request(client: aiohttp.ClientSession, url: str, body: dict[str, Any], bar: Any) -> Answer | None:
    try:
        async with client.post(f"{url}/v1/completions", json=body) as response:
            status, text = response.status, await response.text()
    except (aiohttp.ClientError, OSError) as error:
        raise ServerGoneError(f"{type(error).__name__}: {error}") from error
    said = one_line(text or "no text")
    if status >= 500:
        raise ServerGoneError(f"status {status}: {said}")
    if status == 404 and "model" in body:
        return None
    if status >= 400:
        raise SVFError(f"the vLLM server {url} refused a request: {said}")
    choice = json.loads(text)["choices"][0]
    if choice["finish_reason"] not in ("stop", "length"):  # "abort": by another client, or by a shutdown
        raise ServerGoneError(f"a request ended with {choice['finish_reason']!r}")
    bar.update()
    return choice


async def _watch_health(url: str) -> list[Answer | None]:
    """Raises `ServerGoneError` when the server has not answered a health check for `_PATIENCE` seconds."""
    timeout = aiohttp.ClientTimeout(total=_INTERVAL)
    async with aiohttp.ClientSession(timeout=timeout) as client:
        silent = 0.0
        while silent < _PATIENCE:
            await asyncio.sleep(_INTERVAL)
            try:
                async with client.get(f"{url}/health") as response:
                    status = response.status
            except (aiohttp.ClientError, OSError):  # a time-out is an OSError
                silent += 2 * _INTERVAL
                continue
            silent = 0.0
            if status >= 500:
                raise ServerGoneError(f"/health ends with status {status}")
    raise ServerGoneError(f"no health check answered for {_PATIENCE:g} s")


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of `coroutine`, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
