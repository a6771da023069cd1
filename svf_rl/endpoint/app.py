"""The middleware that makes an endpoint of vLLM's server.

vLLM answers as single adapters by itself. What comes here first is the key, and a request whose model is `auto` or a
mixture: it goes on to vLLM with the name of what was chosen, which so stands in the answer's `model`, and in a header.
"""

import asyncio
import base64
import binascii
import hmac
import json
import logging
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from svf_rl.adaptation.classifier import ClassifierPrompt, classification_ids
from svf_rl.endpoint.asgi import (
    App,
    BodyTooLarge,
    Disconnected,
    Message,
    Receive,
    Send,
    answer,
    answer_error,
    answer_json,
    read_body,
    with_body,
)
from svf_rl.endpoint.classify import Class, classify
from svf_rl.endpoint.conversations import check_whole_characters, messages_of, prompt_of
from svf_rl.endpoint.engine import ServedEngine
from svf_rl.endpoint.few_shot import FewShotJob, read_task
from svf_rl.endpoint.metrics import CLASSIFYING, REQUESTS
from svf_rl.endpoint.mixtures import KEPT, NamedMixtures
from svf_rl.endpoint.model_names import parse_mixture
from svf_rl.endpoint.settings import AUTO, BASE, CLASSIFIER, KEY, EndpointSettings
from svf_rl.errors import SVFError, one_line
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.loading import load_tokenizer

_COMPLETIONS = "/v1/completions"
_ANSWERS = ("/v1/chat/completions", _COMPLETIONS)
_LOADS = "/v1/load_lora_adapter"
_SAGEMAKER = "/adapters"  # which loads them too, under other names
_ADAPT = "/v1/adapt"
_OPEN = ("/health",)
_LOG = logging.getLogger("svf_rl.endpoint")
_PAGE = Path(__file__).parent / "page.html"


class Endpoint:
    """ASGI middleware of vLLM's server, which `svf-rl serve MODEL --expert NAME=DIR` starts."""

    def __init__(self, app: App):
        self._app = app
        self._settings = EndpointSettings.from_environment()
        self._key = os.environ.get(KEY, "")
        self._tokenizer: Any = load_tokenizer(
            ModelArguments(
                self._settings.model, self._settings.revision, trust_remote_code=self._settings.trust_remote_code
            )
        )
        self._labels = [
            (label, self._tokenizer(rf"\boxed{{{label}}}", add_special_tokens=False)["input_ids"])
            for label in self._settings.classes
        ]
        self._mixtures = NamedMixtures()
        self._adapted = NamedMixtures()  # found by searches: other mixtures do not put them out
        self._jobs: dict[str, FewShotJob] = {}
        if not _LOG.handlers:
            _LOG.addHandler(logging.StreamHandler())
            _LOG.setLevel(logging.INFO)
            _LOG.propagate = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path = str(scope.get("path", "")).removeprefix(scope.get("root_path", ""))
        method = scope.get("method")
        is_open = path in _OPEN or method == "OPTIONS"  # by which a browser asks whether it may send the key
        if not is_open and not self._knows(dict(scope["headers"]).get(b"authorization", b"")):
            await _refuse(scope, send)
            return
        if (method, path) == ("GET", "/"):
            await answer(send, 200, _PAGE.read_bytes(), (b"content-type", b"text/html; charset=utf-8"))
        elif (method, path) == ("GET", "/v1/svf"):
            await answer_json(send, {"model": self._settings.model, "experts": list(self._settings.experts)})
        elif path.startswith(_SAGEMAKER):
            await answer_error(send, 403, f"adapters are loaded by {_LOADS} alone")
        elif path.startswith(f"{_ADAPT}/") and method in ("GET", "DELETE"):
            await self._tell(send, path.removeprefix(f"{_ADAPT}/"), method == "DELETE")
        elif method == "POST" and path in (*_ANSWERS, _LOADS, _ADAPT):
            try:
                body = await read_body(receive)
            except BodyTooLarge:
                await answer_error(send, 413, "the body of the request is too large")
            except Disconnected:
                return
            else:
                await self._post(path, scope, receive, send, body)
        else:
            await self._app(scope, receive, send)

    def _knows(self, authorization: bytes) -> bool:
        """Whether a request has the key: as a bearer's token, or as the password that a browser asks for."""
        if not self._key:
            return True
        scheme, _, given = authorization.decode("latin-1").partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given.encode(errors="backslashreplace"), self._key.encode())

    async def _post(self, path: str, scope: Message, receive: Receive, send: Send, body: bytes) -> None:
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            call = None  # vLLM says what is wrong with it
        if not isinstance(call, dict):
            call = {}
        if path == _LOADS:
            if problem := self._outside(call.get("lora_path")):
                await answer_error(send, 403, problem)
                return
            await self._app(*with_body(scope, receive, body), send)
            return
        engine = ServedEngine(scope["app"].state)
        if path == _ADAPT:
            await self._adapt(engine, send, call)
            return
        started, name, found = time.perf_counter(), call.get("model"), None
        try:
            if name == AUTO:
                with CLASSIFYING.time():
                    found = await self._classify(engine, path, call)
                chosen = found.label if found.label in self._settings.experts else BASE
                body = json.dumps({**call, "model": chosen}).encode()
            else:
                chosen = name if isinstance(name, str) and name else BASE  # as vLLM has it
                await self._have_mixture(engine.models, chosen)
        except SVFError as error:
            REQUESTS.labels("unknown", "refused", 400).inc()
            await answer_error(send, 400, str(error))
            return
        status = 0

        async def send_with_choice(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = [(b"x-svf-rl-model", chosen.encode("ascii", "backslashreplace"))] if status == 200 else []
                if found is not None:
                    told.append(
                        (b"x-svf-rl-class", f"{found.label} {found.probability:.4f}".encode("ascii", "replace"))
                    )
                message = {**message, "headers": [*message.get("headers", []), *told]}
            await send(message)

        try:
            await self._app(*with_body(scope, receive, body), send_with_choice)
        finally:
            self._count(scope, chosen, found, status, time.perf_counter() - started)

    def _outside(self, path: object) -> str | None:
        """Why an adapter is not loaded from there."""
        root = Path(self._settings.adapters or "")
        if isinstance(path, str) and "\0" not in path and Path(path).resolve().is_relative_to(root.resolve()):
            return None
        return "adapters are loaded from the folder alone that the server was started with (--adapters)"

    async def _classify(self, engine: ServedEngine, path: str, call: Mapping[str, Any]) -> Class:
        check_whole_characters(call)
        conversation = prompt_of(call) if path == _COMPLETIONS else messages_of(call)
        asked = ClassifierPrompt(self._settings.system_prompt, self._settings.labels, self._settings.examples)
        (prompt,) = classification_ids(self._tokenizer, [conversation], asked)
        longest = engine.longest - max(len(ids) for _, ids in self._labels) - 1
        if len(prompt) > longest:
            raise SVFError(
                f"the request has {len(prompt)} tokens for the classifier, which reads {longest}: name an expert"
            )
        # without one the base model classifies, whatever was loaded later by that name
        adapter = CLASSIFIER if self._settings.classifier is not None else None
        return await classify(prompt, self._labels, partial(engine.next_token, adapter))

    async def _have_mixture(self, models: Any, name: str) -> None:
        """Let vLLM know a mixture by its name. Raises `SVFError` for one that cannot be made."""
        known = name in models.lora_requests and name not in self._mixtures
        if known or models.is_base_model(name):
            return
        mixture = parse_mixture(name, self._settings.experts)
        if mixture is not None:
            await self._mixtures.add(models, name, mixture)

    async def _adapt(self, engine: ServedEngine, send: Send, call: Mapping[str, Any]) -> None:
        """Begin a search."""
        loop = asyncio.get_running_loop()
        try:
            check_whole_characters(call)
            task = await loop.run_in_executor(None, read_task, call, self._tokenizer, engine.longest)
        except SVFError as error:
            await answer_error(send, 400, one_line(error))
            return
        if any(job.status == "running" for job in self._jobs.values()):
            await answer_error(send, 429, "a search is running already: wait for it, or DELETE it")
            return

        async def publish(job: FewShotJob) -> None:
            assert job.mixture is not None
            try:
                await self._adapted.add(engine.models, job.name, job.mixture)
            except SVFError as error:
                job.stop("failed", one_line(error))
            else:
                job.stop("done")

        job = FewShotJob(task, self._settings.experts, self._tokenizer, engine.complete, publish)
        self._jobs[job.id] = job
        for old in list(self._jobs)[:-KEPT]:
            del self._jobs[old]
        await answer_json(send, job.to_dict(), 202)

    async def _tell(self, send: Send, name: str, cancel: bool) -> None:
        job = self._jobs.get(name)
        if job is None:
            await answer_error(send, 404, "there is no such search (any more)")
            return
        if cancel:
            job.stop()
        await answer_json(send, job.to_dict())

    def _count(self, scope: Message, chosen: str, found: Class | None, status: int, seconds: float) -> None:
        known = chosen in self._settings.experts or chosen in (BASE, CLASSIFIER)
        mixed = chosen in self._mixtures or chosen in self._adapted
        kind = chosen if known else "mixture" if mixed else "other"
        REQUESTS.labels(kind, AUTO if found else "named", status).inc()
        line: dict[str, object] = {"time": round(time.time(), 3), "path": scope["path"], "status": status}
        line |= {"model": chosen[:200], "seconds": round(seconds, 4)}
        if found is not None:
            line |= {"class": found.label, "probability": round(found.probability, 4)}
        _LOG.info(json.dumps(line))


async def _refuse(scope: Message, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    asks = (b"www-authenticate", b'Basic realm="svf-rl", charset="UTF-8"')
    await answer_error(send, 401, "give the key of this server, as in Authorization: Bearer KEY", asks)
