"""What a classifier of requests reads: only the question, after a system message that names the classes."""

from collections.abc import Mapping, Sequence

from svf_rl.errors import SVFError
from svf_rl.tasks.task import chat


def last_user_message(conversation: Sequence[Mapping[str, str]]) -> str:
    """The last turn of the user. The classifier must not see the rest: the system message would reveal the task, and a
    prefilled answer would be continued."""
    turns = [message["content"] for message in conversation if message["role"] == "user"]
    if not turns:
        raise SVFError("a conversation has no user turn, so there is nothing to classify: add one")
    return turns[-1]


def classification(conversation: Sequence[Mapping[str, str]], system_prompt: str) -> list[dict[str, str]]:
    """The conversation that asks for the class of `conversation`."""
    return chat(last_user_message(conversation), system_prompt)
