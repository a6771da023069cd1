"""Small parts of ASGI: a request's body, and answers as OpenAI's clients expect them."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LARGEST_BODY = 32 << 20
"""Of a request, in bytes."""


class BodyTooLarge(Exception):
    """A body of more than [`LARGEST_BODY`]."""


class Disconnected(Exception):
    """The client went before its body was whole."""


async def read_body(receive: Receive) -> bytes:
    """Raises `BodyTooLarge` or `Disconnected`."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > LARGEST_BODY:
            raise BodyTooLarge
        if not message.get("more_body", False):
            return b"".join(parts)


def with_body(scope: Message, receive: Receive, body: bytes) -> tuple[Message, Receive]:
    """The request with another body, or once more with its own."""
    headers = [
        (name, value) for name, value in scope["headers"] if name not in (b"content-length", b"transfer-encoding")
    ]
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:  # what comes now is that the client goes
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}, replay


async def answer(send: Send, status: int, content: bytes, *headers: tuple[bytes, bytes]) -> None:
    head = [(b"content-length", str(len(content)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": content})


async def answer_json(send: Send, content: object, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    await answer(send, status, json.dumps(content).encode(), (b"content-type", b"application/json"), *headers)


async def answer_error(send: Send, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
    """An error object of OpenAI's."""
    kinds = {401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError"}
    error = {"message": message, "type": kinds.get(status, "BadRequestError"), "param": None, "code": status}
    await answer_json(send, {"error": error}, status, *headers)
