"""What a model may write as a call, and a user's code may return, without an end of the run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from episode_parts import acting, add, by_length, playing, questions, saying
from fakes import refusal
from jinja2 import TemplateError

from svf_rl.episodes.rollout import EpisodeCounts
from svf_rl.episodes.tool_calls import MOST_CALLS, ToolCalls
from svf_rl.episodes.user_calls import UserCalls

__all__ = ["acting", "playing"]

Make = Callable[..., Any]
HALF = "\ud83d"  # of a character of two
ODD = {
    "half a character": '@echo {"text": "\\ud83d"}',
    "lists in lists": f'@echo {{"text": {"[" * 3000}{"]" * 3000}}}',
}


def echo(text: str) -> str:
    """
    Say it again.

    Args:
        text: What to say.
    """
    return text


@pytest.mark.parametrize("call", ODD.values(), ids=ODD.keys())
def test_a_call_that_nobody_could_write_again_is_text(call: str, playing: Make) -> None:
    (messages,) = playing([echo]).play(questions(1), call, "well").completions
    assert messages == [{"role": "assistant", "content": call}]


def test_such_a_call_can_be_logged(acting: Make, tokenizer: Any) -> None:
    trainer = acting(
        questions(), by_length, saying(tokenizer, ODD["half a character"]), tools=[echo], log_completions=True
    )
    trainer.train()
    (table,) = (Path(trainer.args.output_dir) / "completions").glob("*.parquet")
    assert pd.read_parquet(table)["completion"][0][0]["content"] == ODD["half a character"]


def test_whole_characters_are_left_as_they_are(playing: Make) -> None:
    (messages,) = playing([echo]).play(questions(1), '@echo {"text": "é\\ud83d\\ude00"}', "well").completions
    assert messages[1] == {"role": "tool", "name": "echo", "content": "é😀"}


def test_halves_of_characters_that_are_returned_are_left_out(playing: Make) -> None:
    def broken() -> str:
        """Break."""
        return f"a{HALF}b"

    class World:
        def reset(self, **_: Any) -> str:
            return f" Go{HALF}."

    made = playing([broken], World).play(questions(1), "@broken {}", "well")
    assert made.completions[0][1]["content"] == "a?b"
    assert made.prompts[0][-1]["content"] == "What is 0? Go?."


def test_a_tool_that_is_not_there_may_be_given_anything(playing: Make) -> None:
    (messages,) = playing([add]).play(questions(1), '@nothing {"said": 1, "self": 2}', "well").completions
    assert messages[1]["content"] == str({"error": "Tool nothing not found."})


def test_calls_may_be_flat() -> None:
    calls = [{"type": "function", "name": "add", "arguments": {"a": 1, "b": 2}}]
    said = ToolCalls(UserCalls(5), print).answer([(calls, {"add": add})], EpisodeCounts())
    assert said == [[{"role": "tool", "name": "add", "content": "3"}]]


def test_a_message_of_too_many_calls_is_answered_in_part() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    counts = EpisodeCounts()
    (said,) = ToolCalls(UserCalls(5), print).answer([([call] * (MOST_CALLS + 2), {"add": add})], counts)
    assert [message["content"] for message in said[:MOST_CALLS]] == ["3"] * MOST_CALLS
    assert "more than 64 calls" in said[MOST_CALLS]["content"]
    assert (len(said), counts.calls, counts.failures) == (MOST_CALLS + 2, MOST_CALLS + 2, 2)


def test_a_tool_that_changes_its_arguments_leaves_the_call_as_the_model_wrote_it() -> None:
    def largest(numbers: list[int]) -> int:
        numbers.sort()
        return numbers.pop()

    call = {"type": "function", "function": {"name": "largest", "arguments": {"numbers": [3, 1, 2]}}}
    said = ToolCalls(UserCalls(5), print).answer([([call], {"largest": largest})], EpisodeCounts())
    assert said == [[{"role": "tool", "name": "largest", "content": "3"}]]
    assert call["function"]["arguments"] == {"numbers": [3, 1, 2]}


def test_a_tool_and_a_method_of_one_name_are_refused(playing: Make) -> None:
    class World:
        def reset(self, **_: Any) -> None:
            pass

        def add(self, a: int, b: int) -> int:
            return a * b

    said = refusal(playing, [add], World)
    assert said == (
        "World has a method add, and one of tools has that name too: a model calls a tool by its name, so rename one"
    )


def test_a_template_that_refuses_an_answer_is_one_line(playing: Make) -> None:
    made = playing([add])

    def refuse(messages: Any) -> Any:
        raise TemplateError("no tools")

    made.episodes.toolbox = replace(made.episodes.toolbox, suffix=refuse)
    said = refusal(made.play, questions(1), '@add {"a": 1, "b": 2}')
    assert said == "the chat template cannot show the model what a tool says: no tools"


def test_an_environment_may_say_nothing_as_an_empty_list(playing: Make) -> None:
    class World:
        def reset(self, **_: Any) -> list[Any]:
            return []

    assert playing([add], World).play(questions(1), "well").prompts == [questions(1)[0]["prompt"]]
