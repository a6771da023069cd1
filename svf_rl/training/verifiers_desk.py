"""Where all rollouts of environments of `verifiers` ask for the model's next message."""

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from trl.chat_template_utils import add_response_schema

from svf_rl.episodes.episodes import read_message
from svf_rl.errors import SVFError
from svf_rl.generation import Completion
from svf_rl.generation.prompts import encode_prompts
from svf_rl.training.verifiers_clients import Clients, Message, Reply, wire_message, wire_tool

if TYPE_CHECKING:
    from svf_rl.training.trainer import SVFReinforceTrainer


@dataclass
class _Thread:
    """What one rollout has said until now."""

    prompt_ids: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] | None = field(default_factory=list)
    read: list[Message] = field(default_factory=list)
    """The messages of the last request."""
    said: Message | None = None
    turns: int = 0


class Desk:
    """Of the rollouts of a batch: when all of them wait for the model, it is asked for all."""

    def __init__(self, trainer: "SVFReinforceTrainer", count: int, clients: Clients) -> None:
        self._trainer, self._clients = trainer, clients
        self.rows = trainer.episodes.rows
        self.requests: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        """Of the model, for the thread that trains; `None` at the end."""
        self._threads = [_Thread() for _ in range(count)]
        self._asked: dict[int, tuple[list[Message], list[dict[str, Any]], asyncio.Future[Any]]] = {}
        self.changed = asyncio.Event()

    async def ask(self, place: int, prompt: Sequence[Any], tools: Sequence[Any] | None) -> Any:
        """The answer to a rollout's request, once all others wait too."""
        messages = [wire_message(message) for message in prompt]
        shown = [wire_tool(tool) for tool in tools or ()]
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[place] = (messages, shown, answer)
        self.changed.set()
        return await answer

    async def serve(self, played: Sequence[asyncio.Future[Any]], seconds: float) -> None:
        """Answer until all have ended. One that neither ends nor asks within `seconds` is cancelled."""
        while running := [place for place, one in enumerate(played) if not one.done()]:
            if all(place in self._asked for place in running):
                await self._answer()
                continue
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), seconds)
            except TimeoutError:
                for place in running:
                    if place not in self._asked:
                        played[place].cancel()

    async def _answer(self) -> None:
        asked, self._asked = self._asked, {}
        ready: list[tuple[int, list[dict[str, Any]], asyncio.Future[Any]]] = []
        for place, (messages, tools, answer) in sorted(asked.items()):
            if answer.done():
                continue
            if self._take_in(place, messages, tools):
                ready.append((place, tools, answer))
            else:
                answer.set_exception(self._clients.overlong("the episode has outgrown its context"))
        by_turn: dict[int, list[int]] = {}
        for place, *_ in ready:
            by_turn.setdefault(self._threads[place].turns, []).append(place)
        found: dict[int, Completion] = {}
        for turn, places in by_turn.items():
            prompts = [self._threads[place].prompt_ids + self._threads[place].ids for place in places]
            room = max(self._room(place) for place in places)
            found |= zip(places, await self._generate(prompts, places, turn, room), strict=True)
        for place, tools, answer in ready:
            if not answer.done():
                answer.set_result(self._response(place, found[place], tools))

    async def _generate(self, *asked: Any) -> list[Completion]:
        completions: Future[list[Completion]] = Future()
        self.requests.put(lambda: completions.set_result(self._trainer.generate(*asked)))
        return await asyncio.wrap_future(completions)

    def _room(self, place: int) -> int:
        thread = self._threads[place]
        return self._trainer.episodes.room(thread.prompt_ids, thread.ids)

    def _take_in(self, place: int, messages: list[Message], tools: list[dict[str, Any]]) -> bool:
        """Whether there is room for what the environment has said and for an answer."""
        thread, trainer = self._threads[place], self._trainer
        if thread.said is None:
            template = {"chat_template": trainer.chat_template, **trainer.chat_template_kwargs}
            shown = {"tools": tools} if tools else {}
            (thread.prompt_ids,) = encode_prompts(trainer._tokenizer, [messages], **template, **shown)
        else:
            before = len(thread.read)
            new = messages[before + 1 :]
            answered = messages[before] if new else {}
            if messages[:before] != thread.read or not _is_said(answered, thread.said):
                raise SVFError("the environment rewrites its messages between turns, which is not supported")
            names = {call["id"]: call["function"]["name"] for call in thread.said.get("tool_calls") or ()}
            named = [{"name": names.get(message.get("tool_call_id"), "tool"), **message} for message in new]
            suffix = trainer._get_tool_suffix_ids(named)
            if len(suffix) >= self._room(place):
                return False
            thread.ids += suffix
            thread.mask += [0] * len(suffix)
            if thread.logprobs is not None:
                thread.logprobs += [0.0] * len(suffix)
        thread.read = messages
        return self._room(place) > 0

    def _response(self, place: int, completion: Completion, tools: list[dict[str, Any]]) -> Any:
        thread, tokenizer = self._threads[place], self._trainer._tokenizer
        if tools and not (getattr(tokenizer, "response_template", None) or getattr(tokenizer, "response_schema", None)):
            add_response_schema(tokenizer)
        room, read = self._room(place), thread.prompt_ids + thread.ids
        ids = completion.token_ids[:room]
        finished = completion.finished and len(completion.token_ids) <= room
        thread.ids += ids
        thread.mask += [1] * len(ids)
        own = completion.logprobs
        thread.logprobs = None if own is None or thread.logprobs is None else thread.logprobs + own[:room]
        thread.turns += 1
        text = tokenizer.decode(ids, skip_special_tokens=True)
        said = read_message(tokenizer, ids, read, tools) if tools else {"content": text}
        thread.said = said
        calls = [call["function"] | {"call": call} for call in said.get("tool_calls") or () if "function" in call]
        for number, call in enumerate(calls):
            call["call"]["id"] = f"call_{place}_{thread.turns}_{number}"
        return self._clients.response(
            Reply(
                f"{place}_{thread.turns}",
                said["content"],
                [(call["call"]["id"], call["name"], json.dumps(call["arguments"])) for call in calls],
                finished,
                len(read),
                len(ids),
            )
        )

    def whole(self, place: int, prompt: list[Message]) -> _Thread:
        """What a rollout came to; one that has asked for nothing has a token that does not count."""
        thread = self._threads[place]
        if not thread.prompt_ids:
            names = self._trainer.episodes.environments.names[place : place + 1]
            thread.prompt_ids = self._trainer.tokenize([prompt], names)[0]
        if not thread.ids:
            if self._room(place) < 1:  # nobody reads such a prompt, and it would make its batch as wide
                thread.prompt_ids = thread.prompt_ids[:1]
            thread.ids, thread.mask, thread.logprobs = [self._trainer._tokenizer.eos_token_id], [0], [0.0]
        return thread


def _is_said(message: Message, said: Message) -> bool:
    """Whether an environment gives the model's message back as it was."""
    return message.get("role") == "assistant" and (message.get("content") or "") == (said["content"] or "")
