"""What a classifier of requests reads: the question alone, after a system message that names the classes."""

from collections.abc import Mapping, Sequence

from svf_rl.errors import SVFError
from svf_rl.tasks.task import chat


def last_user_message(conversation: Sequence[Mapping[str, str]]) -> str:
    """What is asked: the last turn of the user. The system message says how to answer and would give the task away, and
    the beginning of an answer would be gone on with."""
    turns = [message["content"] for message in conversation if message["role"] == "user"]
    if not turns:
        raise SVFError("a conversation has no turn of the user, so that there is nothing to classify: give it one")
    return turns[-1]


def classification(conversation: Sequence[Mapping[str, str]], system_prompt: str) -> list[dict[str, str]]:
    """The conversation in which the class of `conversation` is asked for."""
    return chat(last_user_message(conversation), system_prompt)
