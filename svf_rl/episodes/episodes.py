"""The loop over the turns of answers that call tools or act in an environment, with the meaning that TRL's GRPO trainer
gives it: each turn comes from whoever is asked, and what a user's code does wrong costs a sample and not the run."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import parse_response

from svf_rl.episodes.environments import Environments, tool_methods
from svf_rl.episodes.rollout import EpisodeCounts, Rollout
from svf_rl.episodes.tool_calls import ToolCalls
from svf_rl.episodes.toolbox import Toolbox
from svf_rl.errors import SVFError, one_line
from svf_rl.generation import Completion
from svf_rl.generation.prompts import TEMPLATE_ERRORS

Ask = Callable[[list[list[int]], Sequence[int], int, int], list[Completion]]
"""`ask(prompts, places, turn, room)`: a completion of each prompt with at most `room` tokens; `places` says which of
the rows they belong to, and `turn` how many turns came before."""


@dataclass
class _Episode:
    """One row's answer under way. `mask`: 1 for the model's tokens, 0 for others'."""

    place: int
    prompt_ids: list[int]
    shown: list[Callable[..., Any]]
    """The tools that the prompt lists."""
    tools: dict[str, Callable[..., Any]]
    """By their names, those of the row's own environment."""
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    outgrown: bool = False
    """It ended for want of room, after a call or before its first turn."""

    def add(self, ids: Sequence[int], mask: int, logprobs: Sequence[float] | None) -> None:
        self.ids = [*self.ids, *ids]
        self.mask = [*self.mask, *[mask] * len(ids)]
        if self.logprobs is not None and logprobs is not None:
            self.logprobs = [*self.logprobs, *logprobs]

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What the model has called in its last message."""
        return (self.messages[-1].get("tool_calls") if self.messages else None) or []


First = tuple[list[list[int]], list[Completion], list[list[int]] | None, dict[str, list[Any]]]
"""Tokens of prompts and a completion each; masks, where others wrote a part of these; and what else a function gave."""


class Episodes:
    """
    Plays episodes.

    Args:
        toolbox ([`Toolbox`]): What can be called.
        max_tokens (`int`): Of an episode, with what tools say.
        longest (`int`, *optional*): Tokens of prompt and completion, of which the last must be left to the model.
        together (`bool`): Whether several processes make one engine, which all of them ask alike.
    """

    def __init__(self, toolbox: Toolbox, max_tokens: int, longest: int | None = None, together: bool = False) -> None:
        self.toolbox, self.environments = toolbox, Environments(toolbox)
        self.max_tokens, self.longest = max_tokens, sys.maxsize if longest is None else longest
        self._together = together
        self._tools = ToolCalls(toolbox.calls, self.environments.leave)

    def play(self, rows: list[dict[str, Any]], ask: Ask) -> Rollout:
        """An answer to each row's prompt, in as many turns as it takes. `environments.current` are those of the rows
        afterwards, as rewards see them."""
        prompts = self.environments.reset(rows)
        prompt_ids, completions, masks, extra = self._first(prompts, ask)
        if self.toolbox.empty:
            return self._of_one_turn(prompts, prompt_ids, completions, masks, extra)
        own: list[Any] = masks or [None] * len(completions)
        episodes = [self._begin(i, prompt_ids[i], c, own[i]) for i, c in enumerate(completions)]
        counts = self._turns(episodes, ask)
        logprobs = [episode.logprobs for episode in episodes if episode.logprobs is not None]
        return Rollout(
            prompts,
            prompt_ids,
            [episode.ids for episode in episodes],
            [episode.messages for episode in episodes],
            [episode.finished for episode in episodes],
            logprobs if len(logprobs) == len(episodes) else None,
            [episode.mask for episode in episodes],
            extra,
            counts,
        )

    def room(self, prompt_ids: Sequence[int], ids: Sequence[int] = ()) -> int:
        """How many tokens may follow those of an episode."""
        return min(self.max_tokens, self.longest - len(prompt_ids)) - len(ids)

    def _first(self, prompts: list[Any], ask: Ask) -> First:
        """The first turn of each row. What `reset` has said no check of prompts has seen: it may leave no room."""
        prompt_ids = self.toolbox.encode(prompts, self.environments.names)
        if self.environments.current is not None:
            full = [self.room(ids) < 1 for ids in prompt_ids]
            self.environments.fail_without_room(full, self.longest)
            # nobody reads such a prompt, and it would make its batch as wide
            prompt_ids = [ids[:1] if none else ids for ids, none in zip(prompt_ids, full, strict=True)]
        return prompt_ids, self._answered(prompt_ids, ask), None, {}

    def _complete(
        self, prompts: list[list[int]], places: Sequence[int], turn: int, room: int, ask: Ask
    ) -> list[Completion]:
        return ask(prompts, places, turn, room) if prompts or self._together else []

    def _answered(self, prompt_ids: list[list[int]], ask: Ask) -> list[Completion]:
        """A row whose environment has failed is asked for nothing."""
        acting = self.environments.current is not None
        rooms = [self.room(ids) if acting else self.max_tokens for ids in prompt_ids]
        places = [i for i, failed in enumerate(self.environments.failed) if not failed]
        most = max((rooms[i] for i in places), default=1)
        answers = self._complete([prompt_ids[i] for i in places], places, 0, most, ask)
        found = {i: _cut(answer, rooms[i]) for i, answer in zip(places, answers, strict=True)}
        silent = all(answer.logprobs is None for answer in answers)
        none = Completion([self.toolbox.tokenizer.eos_token_id], None if silent else [0.0], False)
        return [found.get(i, none) for i in range(len(prompt_ids))]

    def _of_one_turn(
        self, prompts: list[Any], prompt_ids: list[list[int]], completions: list[Completion], masks: Any, extra: Any
    ) -> Rollout:
        rollout = Rollout.of(prompts, prompt_ids, completions, self.toolbox.tokenizer)
        return replace(rollout, tool_masks=masks, extra=extra)

    def _begin(self, place: int, prompt_ids: list[int], first: Completion, mask: list[int] | None) -> _Episode:
        shown = self.toolbox.shown(self.environments.names[place])
        own = list(self.toolbox.tools)
        if self.environments.current is not None:
            own += tool_methods(self.environments.current[place])
        episode = _Episode(place, prompt_ids, shown, {tool.__name__: tool for tool in own})
        episode.logprobs = None if first.logprobs is None else []
        if self.environments.failed[place]:
            episode.add(first.token_ids, 0, first.logprobs)
            episode.messages = [{"role": "assistant", "content": ""}]
            episode.outgrown = self.environments.full[place]
            return episode
        self._take(episode, first)
        if mask is not None:
            episode.mask = list(mask)
        return episode

    def _take(self, episode: _Episode, completion: Completion) -> None:
        """The model's next message."""
        read = episode.prompt_ids + episode.ids
        episode.add(completion.token_ids, 1, completion.logprobs)
        episode.finished = completion.finished
        if completion.token_ids:
            message = read_message(self.toolbox.tokenizer, completion.token_ids, read, episode.shown)
            episode.messages.append(message)

    def _turns(self, episodes: list[_Episode], ask: Ask) -> EpisodeCounts:
        """Play on from the first turn: call what the model has called, and let it go on, while it calls anything."""
        counts = EpisodeCounts(len(episodes))
        under_way = [episode for episode in episodes if episode.calls]
        turn = 0
        while self._any(under_way) and turn < self.toolbox.max_iterations:
            turn += 1
            answers = self._tools.answer([(e.calls, e.tools) for e in under_way], counts)
            under_way = [e for e, said in zip(under_way, answers, strict=True) if self._fits(e, said)]
            prompts = [episode.prompt_ids + episode.ids for episode in under_way]
            rooms = [self.room(episode.prompt_ids, episode.ids) for episode in under_way]
            places = [episode.place for episode in under_way]
            completions = self._complete(prompts, places, turn, max(rooms, default=1), ask)
            for episode, completion, room in zip(under_way, completions, rooms, strict=True):
                self._take(episode, _cut(completion, room))
                episode.outgrown = not episode.finished
            under_way = [episode for episode in under_way if episode.calls]
        counts.outgrown = sum(episode.outgrown for episode in episodes)
        return counts

    def _any(self, under_way: list[_Episode]) -> bool:
        return any(gather_object([bool(under_way)])) if self._together else bool(under_way)

    def _fits(self, episode: _Episode, said: list[dict[str, Any]]) -> bool:
        """Give the model what the tools have said, if there is room for it and for an answer."""
        try:
            suffix = self.toolbox.suffix(said)
        except TEMPLATE_ERRORS as error:
            raise SVFError(f"the chat template cannot show the model what a tool says: {one_line(error)}") from error
        room = self.room(episode.prompt_ids, episode.ids)
        if len(suffix) <= room:
            episode.messages += said
            episode.add(suffix, 0, [0.0] * len(suffix))
            if len(suffix) < room:
                return True
        episode.finished, episode.outgrown = False, True
        return False


def read_message(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], before: list[int], shown: Sequence[Any]
) -> dict[str, Any]:
    """The message in tokens `ids`, which follow `before`, with calls of the tools `shown`. A call with arguments that
    nobody could write again is text, as a malformed one."""
    try:
        message: dict[str, Any] = parse_response(tokenizer, ids, prefix=before, tools=shown)
        json.dumps(message, ensure_ascii=False, default=str).encode()
    except (RecursionError, UnicodeEncodeError):  # lists in lists, halves of characters
        return {"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}
    return message


def _cut(completion: Completion, room: int) -> Completion:
    if len(completion.token_ids) <= room:
        return completion
    logprobs = completion.logprobs
    return Completion(completion.token_ids[:room], None if logprobs is None else logprobs[:room], False)
