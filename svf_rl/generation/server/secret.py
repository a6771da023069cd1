"""The secret of a vLLM server: who has it may change the server's weights, and nobody else."""

import hmac
import json
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from svf_rl.errors import SVFError
from svf_rl.storage.files import write_file
from svf_rl.svf.cache import default_cache_dir

HEADER = "x-svf-rl-secret"
_VALUE, _FILE = "SVF_RL_SERVER_SECRET", "SVF_RL_SERVER_SECRET_FILE"
_OPEN_PATHS = ("/health", "/v1/")

Message = MutableMapping[str, Any]


def read_secret() -> str | None:
    """
    `$SVF_RL_SERVER_SECRET`, or the content of `$SVF_RL_SERVER_SECRET_FILE`, which is by default a file of this user in
    the factor cache, since servers and training share that; `None` where there is neither.

    Raises:
        SVFError: the file cannot be read, or others can read it or have written it.
    """
    if value := os.environ.get(_VALUE):
        return value
    path = _path()
    try:
        with path.open(encoding="ascii") as file:
            status, content = os.fstat(file.fileno()), file.read().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SVFError(f"cannot read the secret of the vLLM servers in {path} ({error}): set {_FILE}") from error
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise SVFError(f"{path} must be your own and no one else's to read (mode 600): remove it, or set {_FILE}")
    return content or None


def make_secret() -> None:
    """Write a secret where `read_secret` looks for one, unless it finds one. Raises `SVFError` where it cannot."""
    if read_secret() is None:
        write_file(_path(), f"{secrets.token_hex(32)}\n", f"set {_FILE} to a file of your own", private=True)


def check_secret(given: object) -> None:
    """Raises `SVFError` unless `given` is this server's secret."""
    secret = read_secret()
    if secret is None:
        raise SVFError(f"this server has no secret: start it with svf-rl serve RECIPE, or set {_VALUE}")
    text = given if isinstance(given, str) else ""
    if not hmac.compare_digest(text.encode(errors="backslashreplace"), secret.encode()):
        raise SVFError(
            f"the secret of this server was not given: SVF_RL_CACHE, {_FILE} and {_VALUE} must be the same for server "
            "and training"
        )


class RequireSecret:
    """ASGI middleware of the server: without the secret, in a header of each request, only completions and `/health`
    are answered. What else vLLM's development mode offers (`/collective_rpc`, `/pause`, ...) acts on the server."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self._app = app

    async def __call__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        path = str(scope.get("path", "")).removeprefix(scope.get("root_path", ""))
        if scope["type"] == "http" and not path.startswith(_OPEN_PATHS):
            given = dict(scope["headers"]).get(HEADER.encode(), b"")
            try:
                check_secret(given.decode("latin-1"))
            except SVFError as error:
                headers = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": json.dumps({"error": str(error)}).encode()})
                return
        await self._app(scope, receive, send)


def _path() -> Path:
    chosen = os.environ.get(_FILE)
    return Path(chosen).expanduser() if chosen else default_cache_dir() / f".server-secret-{os.getuid()}"
