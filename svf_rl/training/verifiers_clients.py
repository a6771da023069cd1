"""What releases of the package `verifiers` differ in: 0.1.10 asks a client of OpenAI's, 0.1.14 one of its own."""

import importlib
import importlib.util
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

from svf_rl.episodes.environments import whole_characters
from svf_rl.errors import SVFError, one_line

Message = dict[str, Any]
Asked = Callable[[Any, Any], Awaitable[Any]]
"""`asked(messages, tools)`: the model's next message, as [`Clients.response`] has made it."""


@dataclass(frozen=True)
class Reply:
    """What the model has said in a turn."""

    name: str
    text: str
    calls: list[tuple[str, str, str]]
    """Id, name and arguments, in JSON."""
    finished: bool
    read: int
    written: int
    """Tokens."""

    @property
    def reason(self) -> str:
        if not self.finished:
            return "length"
        return "tool_calls" if self.calls else "stop"


class Clients(Protocol):
    """Of one release."""

    def client(self, asked: Asked) -> Any:
        """What a rollout is given to ask the model."""

    def response(self, reply: Reply) -> Any:
        """What the client answers."""

    def overlong(self, text: str) -> BaseException:
        """What tells an environment that the context is full."""


def find_clients() -> Clients:
    """Those of the installed release. Raises `SVFError` where there is none that is supported."""
    try:
        importlib.import_module("verifiers.envs.environment")
        if importlib.util.find_spec("verifiers.clients") is None:
            return _OpenAIClients()
        return _OwnClients()
    except ImportError as error:
        raise SVFError(
            f"environments of verifiers need that package, 0.1.10 or 0.1.14: {one_line(error)} (pip install "
            "'svf-rl[verifiers]')"
        ) from error


class _OpenAIClients:
    """Of 0.1.10."""

    def __init__(self) -> None:
        self._openai = importlib.import_module("openai")
        self._completion = importlib.import_module("openai.types.chat").ChatCompletion
        self._httpx = importlib.import_module("httpx")

    def client(self, asked: Asked) -> Any:
        async def create(messages: Any, tools: Any = None, **_: Any) -> Any:
            return await asked(messages, tools)

        return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))

    def response(self, reply: Reply) -> Any:
        calls = [
            {"id": own, "type": "function", "function": {"name": name, "arguments": arguments}}
            for own, name, arguments in reply.calls
        ]
        message = {"role": "assistant", "content": reply.text, **({"tool_calls": calls} if calls else {})}
        usage = {"prompt_tokens": reply.read, "completion_tokens": reply.written}
        return self._completion.model_validate(
            {
                "id": reply.name, "object": "chat.completion", "created": 0, "model": "policy",
                "choices": [{"index": 0, "message": message, "finish_reason": reply.reason}],
                "usage": {**usage, "total_tokens": reply.read + reply.written},
            }
        )  # fmt: skip

    def overlong(self, text: str) -> BaseException:
        known = f"{text}: exceeds the model's context length"  # what 0.1.10 looks for
        response = self._httpx.Response(400, text=known, request=self._httpx.Request("POST", "http://policy"))
        error: BaseException = self._openai.BadRequestError(known, response=response, body=None)
        return error


class _OwnClients:
    """Of 0.1.14."""

    def __init__(self) -> None:
        self._base = importlib.import_module("verifiers.clients").Client
        self._types = importlib.import_module("verifiers.types")
        self._errors = importlib.import_module("verifiers.errors")

    def client(self, asked: Asked) -> Any:
        class Client(self._base):  # type: ignore[name-defined]
            def __init__(self) -> None:
                super().__init__(None)

            async def get_response(
                self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **_: Any
            ) -> Any:
                return await asked(prompt, tools)

            def setup_client(self, config: Any) -> None: ...

            async def to_native_tool(self, tool: Any) -> None: ...

            async def to_native_prompt(self, messages: Any) -> None: ...

            async def get_native_response(self, *_: Any, **__: Any) -> None: ...

            async def raise_from_native_response(self, response: Any) -> None: ...

            async def from_native_response(self, response: Any) -> None: ...

            async def close(self) -> None: ...

        return Client()

    def response(self, reply: Reply) -> Any:
        types = self._types
        calls = [types.ToolCall(id=own, name=name, arguments=arguments) for own, name, arguments in reply.calls]
        message = types.ResponseMessage(
            content=reply.text,
            tool_calls=calls or None,
            finish_reason=reply.reason,
            is_truncated=not reply.finished,
        )
        usage = types.Usage(
            prompt_tokens=reply.read,
            reasoning_tokens=0,
            completion_tokens=reply.written,
            total_tokens=reply.read + reply.written,
        )
        return types.Response(id=reply.name, created=0, model="policy", usage=usage, message=message)

    def overlong(self, text: str) -> BaseException:
        error: BaseException = self._errors.OverlongPromptError(text)
        return error


def compares_groups(environment: Any) -> bool:
    """Whether the environment has rewards that compare the rollouts of a prompt."""
    said = getattr(environment, "requires_group_rollouts", None)
    if said is not None:
        return bool(said)
    rubric = environment.rubric
    if any(one._get_group_reward_func_names() for one in getattr(rubric, "rubrics", [rubric])):
        return True
    # those of an `EnvGroup`, whose rubric knows nothing of theirs
    return any(map(compares_groups, getattr(environment, "env_map", {}).values()))


def wire_message(message: Any) -> Message:
    """A message as chat templates take it."""
    plain = dict(message) if isinstance(message, Mapping) else message.model_dump(exclude_none=True)
    if isinstance(plain.get("content"), str):
        plain["content"] = whole_characters(plain["content"])
    calls = [dict(call.get("function", call)) for call in plain.pop("tool_calls", None) or ()]
    if calls:
        plain["tool_calls"] = [
            {"type": "function", "function": {"name": call["name"], "arguments": json.loads(call["arguments"])}}
            for call in calls
        ]
    return plain


def wire_tool(tool: Any) -> dict[str, Any]:
    """A tool as chat templates take it."""
    if isinstance(tool, Mapping):
        return dict(tool)
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}
