"""What tools say to the calls in the messages of a model, with TRL's meaning: an error is read by the model."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from svf_rl.episodes.environments import whole_characters
from svf_rl.episodes.rollout import EpisodeCounts
from svf_rl.episodes.user_calls import TimedOut, UserCalls
from svf_rl.errors import Stopped, SVFError
from svf_rl.generation.prompts import parts_text
from svf_rl.rewards.user_code import message_of

Tools = Mapping[str, Callable[..., Any]]
Messages = list[dict[str, Any]]

# Of one message. A model that repeats itself makes thousands, one after another.
MOST_CALLS = 64


class ToolCalls:
    """Makes the calls of episodes; `hung` gets the environments in which one did not end in time."""

    def __init__(self, user: UserCalls, hung: Callable[[Any], None]) -> None:
        self._user, self._hung = user, hung

    def answer(self, asked: Sequence[tuple[Messages, Tools]], counts: EpisodeCounts) -> list[Messages]:
        """
        The messages of the tools in each of several episodes: first those of plain functions, one after another, then
        those of coroutines, which run together.

        Args:
            asked (`Sequence`): Of each episode, the calls in the model's last message, and its tools by their names.
            counts ([`EpisodeCounts`]): Are added to.
        """
        said: list[Messages] = [[] for _ in asked]
        waiting: list[tuple[int, str, Any]] = []
        for episode, (calls, tools) in enumerate(asked):
            for number, call in enumerate(calls):
                counts.calls += 1
                name, tool, arguments = _read(call, tools)
                if number >= MOST_CALLS:
                    tool = partial(_refuse, f"There are more than {MOST_CALLS} calls in this message.")
                try:
                    result = tool(**arguments) if inspect.iscoroutinefunction(tool) else self._called(tool, arguments)
                except (SVFError, Stopped, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001  (a tool is not our code: the model reads what it raised)
                    result = self._failure(tool, name, error, counts)
                if inspect.iscoroutine(result):
                    waiting.append((episode, name, result))
                else:
                    said[episode].append({"role": "tool", "name": name, "content": result})
        results = self._user.gather([coroutine for *_, coroutine in waiting])
        for (episode, name, _), value in zip(waiting, results, strict=True):
            if isinstance(value, SVFError):
                raise value
            failed = isinstance(value, BaseException)
            tool = asked[episode][1][name]
            content = self._failure(tool, name, value, counts) if failed else _content(value)
            said[episode].append({"role": "tool", "name": name, "content": content})
        return said

    def _called(self, tool: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
        return self._user.call(lambda: _content(tool(**arguments)))

    def _failure(self, tool: Callable[..., Any], name: str, error: BaseException, counts: EpisodeCounts) -> str:
        counts.failures += 1
        if not isinstance(error, TimedOut):
            return str({"error": message_of(error)})
        counts.timeouts += 1
        if inspect.ismethod(tool):
            self._hung(tool.__self__)
        return str({"error": f"{name} {error}"})


def _read(call: Mapping[str, Any], tools: Tools) -> tuple[str, Callable[..., Any], Any]:
    """Name, tool and arguments of a call; one of something that is not there is refused by its tool."""
    if call.get("type") != "function":
        said = f"Unsupported tool call type: {call.get('type')}"
        return call.get("name", "unknown"), partial(_refuse, said), {}
    function = call.get("function", call)
    name = function["name"]
    return name, tools.get(name, partial(_refuse, f"Tool {name} not found.")), copy.deepcopy(function["arguments"])


def _refuse(said: str, /, **_: Any) -> None:
    raise ValueError(said)


def _content(result: Any) -> str:
    """What a tool returned, as the model reads it."""
    text = parts_text(result)
    return whole_characters(str(result) if text is None else text)
