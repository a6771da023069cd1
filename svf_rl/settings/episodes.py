"""Tools, environments and rollout functions as a recipe names them."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import (
    DocstringParsingException,
    TypeHintParsingException,
    get_json_schema,
)
from trl.chat_template_utils import add_response_schema, supports_tool_calling

from svf_rl.described import described
from svf_rl.episodes.arguments import BUILT_IN, ToolArguments
from svf_rl.episodes.environments import check_tool_names
from svf_rl.errors import SVFError, one_line
from svf_rl.rewards.registry import load_function
from svf_rl.rewards.reward import nearest


@dataclass(kw_only=True)
class EpisodeArguments(ToolArguments):
    """What makes an answer one of several turns."""

    rollout_func: str | None = described(
        None, "Function that makes whole episodes, in TRL's signature, such as my_rollouts.py:play."
    )


@dataclass(frozen=True)
class EpisodeParts:
    """What a recipe names, loaded, as arguments of the trainer."""

    tools: list[Callable[..., Any]] | None = None
    environment_factory: Callable[[], Any] | dict[str, Callable[[], Any]] | None = None
    rollout_func: Callable[..., Any] | None = None

    def __bool__(self) -> bool:
        return any((self.tools, self.environment_factory, self.rollout_func))

    @property
    def factories(self) -> list[Callable[[], Any]]:
        factory = self.environment_factory or {}
        return list(factory.values()) if isinstance(factory, Mapping) else [factory]

    def describe(self) -> str:
        """For the dry run."""
        parts = {
            "tools": [tool.__name__ for tool in self.tools or ()],
            "environments": [getattr(make, "__name__", "made by a function") for make in self.factories],
            "rollouts": [self.rollout_func.__name__] if self.rollout_func else [],
        }
        return "; ".join(f"{name} {', '.join(names)}" for name, names in parts.items() if names)


def load_episodes(arguments: EpisodeArguments) -> EpisodeParts:
    """Load what the recipe names. Raises `SVFError` as [`load_tools`] does."""
    parts = load_tools(arguments)
    with _named("rollout_func"):
        if arguments.rollout_func is not None:
            parts = replace(parts, rollout_func=load_function(arguments.rollout_func, "function"))
    return parts


def load_tools(arguments: ToolArguments) -> EpisodeParts:
    """Load tools and environments. Raises `SVFError` for what is not there, a function that a model cannot be told of,
    a class that is no environment, or two things that a model would call by the same name."""
    factory: Any = None
    with _named("tools"):
        tools = [_load_tool(name) for name in arguments.tool_names]
    check_named_once(tools)
    with _named("environment"):
        if isinstance(arguments.environment, Mapping):
            if not arguments.environment:
                raise SVFError("it is empty: leave it out, or name at least one")
            factory = {name: _load_environment(spec) for name, spec in arguments.environment.items()}
        elif arguments.environment is not None:
            factory = _load_environment(arguments.environment)
        parts = EpisodeParts(tools or None, factory)
        for make in parts.factories:
            if inspect.isclass(make):  # what a function makes is first known when it is called
                check_tool_names(tools, make)
    return parts


@contextmanager
def _named(key: str) -> Iterator[None]:
    try:
        yield
    except SVFError as error:
        raise SVFError(f"{key}: {error}") from error


def check_tool(tool: Callable[..., Any]) -> None:
    """Raises `SVFError` for a function that a model cannot be told of."""
    try:
        get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException, ValueError, TypeError, NameError) as error:
        raise SVFError(
            f"tool {tool.__name__}: {one_line(error)} (a model is told of a tool by its type hints and its docstring, "
            "with a line for each argument below Args:)"
        ) from error


def check_named_once(tools: Sequence[Callable[..., Any]]) -> None:
    """Raises `SVFError` where two of `tools` have the same name."""
    given = [tool.__name__ for tool in tools]
    twice = [name for name in given if given.count(name) > 1]
    if twice:
        raise SVFError(f"tools: two are named {twice[0]}, and a model calls a tool by its name")


def check_objective(objective: str, parts: EpisodeParts) -> None:
    """Raises `SVFError` for an objective that makes no episodes."""
    if parts and objective == "next_token":
        raise SVFError(
            "objective: next_token trains on right answers of one turn: remove tools, environment and rollout_func"
        )


def check_rewarded(rewards: Sequence[Any], parts: EpisodeParts) -> None:
    """Raises `SVFError` where nothing gives a reward. What a function makes is not known."""
    classes = [make for make in parts.factories if inspect.isclass(make)]
    if rewards or not classes or len(classes) < len(parts.factories):
        return
    if not any(inspect.isfunction(getattr(one, "get_reward", None)) for one in classes):
        raise SVFError(f"there is no reward: name one in rewards, or define get_reward(self) in {classes[0].__name__}")


def check_template(tokenizer: PreTrainedTokenizerBase, parts: EpisodeParts) -> None:
    """Raises `SVFError` where the model's chat template cannot show tools, or nobody can read its calls."""
    if not (parts.tools or parts.environment_factory):
        return
    if not supports_tool_calling(tokenizer):
        raise SVFError(
            f"the chat template of {tokenizer.name_or_path} shows no calls of tools and no answers to them: use a "
            "model that was made for tools"
        )
    known = [getattr(tokenizer, name, None) for name in ("response_template", "response_schema")]
    if all(one is None for one in known):
        try:
            add_response_schema(copy.deepcopy(tokenizer))
        except ValueError as error:
            raise SVFError(
                f"nobody knows how {tokenizer.name_or_path} writes calls of tools: TRL knows the chat templates of "
                "Qwen, Llama 3, GLM, GPT-OSS, Nemotron, LFM2 and Gemma 4; another tokenizer needs a response_template"
            ) from error


def tools_of(template: Mapping[str, Any], tools: Sequence[Callable[..., Any]] | None) -> dict[str, Any]:
    """The arguments of a chat template that also lists `tools`."""
    return {**template, "tools": list(tools)} if tools else dict(template)


def _load_tool(name: str) -> Callable[..., Any]:
    if ":" not in name and name not in BUILT_IN:
        raise SVFError(f"unknown tool {name!r}{nearest(name, BUILT_IN)}; one of your own is named file.py:function")
    tool = load_function(BUILT_IN.get(name, name), "tool")
    if not inspect.isfunction(tool):
        raise SVFError(f"tool {name!r} is a {type(tool).__name__}: name a function")
    check_tool(tool)
    return tool


def _load_environment(name: str) -> Callable[[], Any]:
    if not isinstance(name, str):
        raise SVFError(f"{name!r} is no class: name one as file.py:Class")
    make = load_function(name, "environment")
    if inspect.isclass(make) and not inspect.isfunction(getattr(make, "reset", None)):
        raise SVFError(
            f"environment {name!r} has no method reset: define reset(self, **row), which returns a text for the "
            "prompt, or None"
        )
    return make
