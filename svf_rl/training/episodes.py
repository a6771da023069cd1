"""Answers of several turns: tools, environments and rollout functions, with the meaning that TRL's GRPO trainer gives
them.

TRL's constructor finds the tools and the environments, its chat templates and its parser write and read calls of tools.
The loop over the turns is one of ours: each turn comes from the synced generator, with the seed of its sample and turn,
and what a user's code does wrong costs a sample and not the run.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from trl.chat_template_utils import parse_response

from svf_rl.errors import SVFError, one_line
from svf_rl.generation import Completion
from svf_rl.training.environments import Environments, tool_methods
from svf_rl.training.rollout import EpisodeCounts, Rollout
from svf_rl.training.rollout_function import call_rollout_function
from svf_rl.training.tool_calls import ToolCalls

if TYPE_CHECKING:
    from svf_rl.training.trainer import SVFReinforceTrainer

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
    """It ended for want of room, after a call."""

    def add(self, ids: Sequence[int], mask: int, logprobs: Sequence[float] | None) -> None:
        self.ids = [*self.ids, *ids]
        self.mask = [*self.mask, *[mask] * len(ids)]
        if self.logprobs is not None and logprobs is not None:
            self.logprobs = [*self.logprobs, *logprobs]

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What the model has called in its last message."""
        return (self.messages[-1].get("tool_calls") if self.messages else None) or []


class Episodes:
    """Plays the episodes of a trainer, whose tools, environments and `rollout_func` TRL's constructor has set up."""

    def __init__(self, trainer: "SVFReinforceTrainer") -> None:
        self._trainer, self.environments = trainer, Environments(trainer)
        self._tools = ToolCalls(trainer, lambda environment: self.environments.hung.append(environment))
        self._ask: Ask | None = None
        self.rows: list[dict[str, Any]] = []
        """Those that are being answered, for a `rollout_func` that reads more than their prompts."""

    def generate(
        self, prompt_ids: list[list[int]], places: Sequence[int] | None, turn: int, room: int
    ) -> list[Completion]:
        """As `trainer.generate`."""
        if self._ask is None:
            raise SVFError("trainer.generate is for a rollout_func, while it is called")
        chosen = range(len(prompt_ids)) if places is None else places
        if len(chosen) != len(prompt_ids) or not all(0 <= place < len(self.rows) for place in chosen):
            raise SVFError(
                f"trainer.generate was given {len(prompt_ids)} prompts and places {list(chosen)!r:.80}: give for each "
                f"which of the {len(self.rows)} prompts of the rollout_func it belongs to"
            )
        return self._ask(prompt_ids, chosen, turn, room)

    def play(self, rows: list[dict[str, Any]], ask: Ask) -> Rollout:
        """An answer to each row's prompt, in as many turns as it takes. `trainer.environments` are those of the rows
        afterwards, as rewards see them."""
        trainer = self._trainer
        prompts = self.environments.reset(rows)
        with self._asking(ask, rows):
            if trainer.rollout_func is not None:
                given = call_rollout_function(trainer, copy.deepcopy(prompts))
                prompt_ids, completions, masks, extra = given
            else:
                prompt_ids, masks, extra = trainer.tokenize(prompts, trainer._batch_environments), None, {}
                completions = self._first_turn(prompt_ids)
            if not trainer.tools:
                return self._of_one_turn(prompts, prompt_ids, completions, masks, extra)
            own: list[Any] = masks or [None] * len(completions)
            episodes = [self._begin(i, prompt_ids[i], c, own[i]) for i, c in enumerate(completions)]
            counts = self._turns(episodes)
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

    # ---- turns --------------------------------------------------------------------------------------------------

    @contextmanager
    def _asking(self, ask: Ask, rows: list[dict[str, Any]]) -> Iterator[None]:
        self._ask, self.rows = ask, rows
        try:
            yield
        finally:
            self._ask = None

    @property
    def _together(self) -> bool:
        """Whether several processes make one engine, which all of them call alike."""
        args = self._trainer.args
        return args.use_vllm and args.vllm_mode == "colocate" and args.vllm_tensor_parallel_size > 1

    def _complete(self, prompts: list[list[int]], places: Sequence[int], turn: int, room: int) -> list[Completion]:
        assert self._ask is not None
        return self._ask(prompts, places, turn, room) if prompts or self._together else []

    def _first_turn(self, prompt_ids: list[list[int]]) -> list[Completion]:
        """A row whose environment has failed is asked for nothing."""
        places = [i for i, failed in enumerate(self.environments.failed) if not failed]
        answers = self._complete([prompt_ids[i] for i in places], places, 0, self._trainer.sampling.max_tokens)
        found = dict(zip(places, answers, strict=True))
        silent = all(answer.logprobs is None for answer in answers)
        none = Completion([self._trainer._tokenizer.eos_token_id], None if silent else [0.0], False)
        return [found.get(i, none) for i in range(len(prompt_ids))]

    def _of_one_turn(
        self, prompts: list[Any], prompt_ids: list[list[int]], completions: list[Completion], masks: Any, extra: Any
    ) -> Rollout:
        rollout = Rollout.of(prompts, prompt_ids, completions, self._trainer._tokenizer)
        return replace(rollout, tool_masks=masks, extra=extra)

    def _begin(self, place: int, prompt_ids: list[int], first: Completion, mask: list[int] | None) -> _Episode:
        trainer = self._trainer
        shown = trainer.tools
        own = list(trainer._standalone_tools)
        if trainer.environment_factories is not None:
            shown = trainer._env_tools[trainer._batch_environments[place]]
            own += tool_methods(trainer.environments[place])
        episode = _Episode(place, prompt_ids, shown, {tool.__name__: tool for tool in own})
        episode.logprobs = None if first.logprobs is None else []
        if self.environments.failed[place]:
            episode.add(first.token_ids, 0, first.logprobs)
            episode.messages = [{"role": "assistant", "content": ""}]
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
            episode.messages.append(
                parse_response(self._trainer._tokenizer, completion.token_ids, prefix=read, tools=episode.shown)
            )

    def _turns(self, episodes: list[_Episode]) -> EpisodeCounts:
        """Play on from the first turn: call what the model has called, and let it go on, while it calls anything."""
        trainer, counts = self._trainer, EpisodeCounts(len(episodes))
        under_way = [episode for episode in episodes if episode.calls]
        turn = 0
        while self._any(under_way) and turn < trainer.max_tool_calling_iterations:
            turn += 1
            answers = self._tools.answer([(e.calls, e.tools) for e in under_way], counts)
            under_way = [e for e, said in zip(under_way, answers, strict=True) if self._fits(e, said)]
            prompts = [episode.prompt_ids + episode.ids for episode in under_way]
            rooms = [self._room(episode) for episode in under_way]
            places = [episode.place for episode in under_way]
            completions = self._complete(prompts, places, turn, max(rooms, default=1))
            for episode, completion, room in zip(under_way, completions, rooms, strict=True):
                self._take(episode, _cut(completion, room))
                episode.outgrown = not episode.finished
            under_way = [episode for episode in under_way if episode.calls]
        counts.outgrown = sum(episode.outgrown for episode in episodes)
        return counts

    def _any(self, under_way: list[_Episode]) -> bool:
        return any(gather_object([bool(under_way)])) if self._together else bool(under_way)

    def _room(self, episode: _Episode) -> int:
        return self._trainer.sampling.max_tokens - len(episode.ids)

    def _fits(self, episode: _Episode, said: list[dict[str, Any]]) -> bool:
        """Give the model what the tools have said, if there is room for it and for an answer."""
        trainer = self._trainer
        try:
            suffix = trainer._get_tool_suffix_ids(said)
        except ValueError as error:
            raise SVFError(f"the chat template cannot show the model what a tool says: {one_line(error)}") from error
        total = len(episode.prompt_ids) + len(episode.ids) + len(suffix)
        if len(suffix) <= self._room(episode) and total < self._longest:
            episode.messages += said
            episode.add(suffix, 0, [0.0] * len(suffix))
            if self._room(episode):
                return True
        episode.finished, episode.outgrown = False, True
        return False

    @property
    def _longest(self) -> int:
        """Tokens of prompt and completion, of which the last must be left to the model."""
        config = self._trainer.accelerator.unwrap_model(self._trainer.model).config.get_text_config()
        limits = (
            getattr(self._trainer.generator, "max_length", None),
            getattr(config, "max_position_embeddings", None),
        )
        return min((limit for limit in limits if limit is not None), default=sys.maxsize)


def _cut(completion: Completion, room: int) -> Completion:
    if len(completion.token_ids) <= room:
        return completion
    logprobs = completion.logprobs
    return Completion(completion.token_ids[:room], None if logprobs is None else logprobs[:room], False)
