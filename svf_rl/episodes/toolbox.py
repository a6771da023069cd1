"""What a model may call and act in, and how its chat template tells it so."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import (
    add_response_schema,
    get_training_chat_template,
    is_chat_template_prefix_preserving,
)

from svf_rl.episodes.environments import check_tool_names, checked_factories, tool_methods
from svf_rl.episodes.user_calls import UserCalls
from svf_rl.generation.prompts import render_prompt

Tool = Callable[..., Any]
Messages = list[dict[str, Any]]


@dataclass
class Toolbox:
    """
    Tools and environments as TRL's constructor sets them up.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of the model; it can read calls of tools.
        calls ([`UserCalls`]): Makes all calls of a user's code.
        tools (`list`): Plain functions, which every row has.
        factories (`dict`, *optional*): What makes environments, by the names that rows have; of one without a name by
            `None`.
        pool (`dict`): The instances of each that were made; `None` in the place of one that is not used again.
        listed (`dict`): The tools that a prompt lists, by the name of its environment.
        template (`dict`): Arguments of the chat template.
        suffix (`Callable`): The tokens between the model's message and its next, given messages of tools.
        max_iterations (`int`): Turns after the first.

    Raises:
        SVFError: a tool and a method of an environment have the same name.
    """

    tokenizer: PreTrainedTokenizerBase
    calls: UserCalls
    tools: list[Tool]
    suffix: Callable[[Messages], list[int]]
    max_iterations: int
    factories: dict[Any, Callable[..., Any]] | None = None
    pool: dict[Any, list[Any]] = field(default_factory=dict)
    listed: dict[Any, list[Tool]] = field(default_factory=dict)
    template: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kinds: list[Any] = list(dict.fromkeys(type(instances[0]) for instances in self.pool.values()))
        """The classes of the environments."""
        for kind in self.kinds:
            check_tool_names(self.tools, kind)

    @property
    def several(self) -> bool:
        """Whether rows name their environments."""
        return self.factories is not None and None not in self.factories

    @property
    def empty(self) -> bool:
        """Whether there is nothing that a model could call."""
        return not (self.tools or any(self.listed.values()))

    @property
    def rewards(self) -> bool:
        """Whether an environment has a reward of its own."""
        return any(inspect.isfunction(getattr(kind, "get_reward", None)) for kind in self.kinds)

    def shown(self, name: Any) -> list[Tool]:
        """The tools that a prompt of that environment lists."""
        return self.tools if self.factories is None else self.listed[name]

    def names(self, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Those of the rows' environments; `None` where there are not several."""
        return [row.get("environment") if self.several else None for row in rows]

    def template_of(self, name: Any) -> dict[str, Any]:
        """The arguments of the chat template for a prompt of that environment."""
        shown = self.shown(name)
        return {**self.template, "tools": shown} if shown else self.template

    def encode(self, prompts: Sequence[Any], names: Sequence[Any]) -> list[list[int]]:
        """The tokens of texts or conversations."""
        if isinstance(prompts[0], str):
            return self.tokenizer(text=list(prompts))["input_ids"]
        pairs = zip(prompts, names, strict=True)
        texts = [render_prompt(self.tokenizer, prompt, **self.template_of(name)) for prompt, name in pairs]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]


def fill_toolbox(
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Tool] | None,
    factory: Any,
    calls: UserCalls,
    *,
    template: Mapping[str, Any],
    max_iterations: int,
    seed: int,
) -> Toolbox:
    """A toolbox without a trainer. Raises `SVFError` for an environment that cannot be made, is none, or has a method
    with the name of a tool."""
    from trl import GRPOTrainer  # takes seconds

    own = list(tools or ())
    checked = checked_factories(factory, calls, seed)
    factories: Any = checked if checked is None or isinstance(checked, Mapping) else {None: checked}
    pool = {name: [make()] for name, make in (factories or {}).items()}
    listed = {name: own + tool_methods(instances[0]) for name, instances in pool.items()}
    chat_template = None
    if own or any(listed.values()):
        known = (getattr(tokenizer, name, None) for name in ("response_template", "response_schema"))
        if all(one is None for one in known):
            tokenizer = add_response_schema(tokenizer)
        if not is_chat_template_prefix_preserving(tokenizer):
            chat_template = get_training_chat_template(tokenizer)
    asked = SimpleNamespace(
        processing_class=tokenizer, _tokenizer=tokenizer, _is_vlm=False, chat_template=chat_template,
        chat_template_kwargs=dict(template),
    )  # fmt: skip
    return Toolbox(
        tokenizer, calls, own, partial(GRPOTrainer._get_tool_suffix_ids, asked), max_iterations, factories, pool,
        listed, {"chat_template": chat_template, **template},
    )  # fmt: skip
