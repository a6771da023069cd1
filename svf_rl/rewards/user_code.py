"""Errors in a user's own code, as one line that says where it is wrong."""

import sysconfig
import traceback
from pathlib import Path
from typing import Any

from svf_rl.errors import one_line

_PACKAGE = str(Path(__file__).parents[1])
_INSTALLED = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))

MESSAGES = (
    "each completion is a list of chat messages here, since the prompts are: read its text with "
    "svf_rl.rewards.completion_text(completion)"
)


class Messages(list[Any]):
    """The chat messages of one completion. Looking for text in them finds nothing, whatever they say, so that is an
    error here: a reward that takes a completion for text would else be 0 for ever."""

    def __contains__(self, item: object) -> bool:
        if isinstance(item, int | float):
            raise TypeError(MESSAGES)
        return super().__contains__(_no_text(item))

    def __eq__(self, other: object) -> bool:
        return super().__eq__(_no_text(other))

    __hash__ = None  # a list has none

    def count(self, value: Any) -> int:
        return super().count(_no_text(value))

    def index(self, value: Any, *where: Any) -> int:
        return super().index(_no_text(value), *where)


def _no_text(value: object) -> object:
    if isinstance(value, str):
        raise TypeError(MESSAGES)
    return value


def message_of(error: BaseException) -> str:
    """What an error of the user's code says; nothing where that fails too."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  (its class is not our code)
        return ""


def describe(error: BaseException, messages: bool = False) -> str:
    """
    What `error` says, and the file and line of the user's code where it came up: the innermost that is neither of
    Python, nor of an installed package, nor ours.

    Args:
        error (`BaseException`): raised by the user's code, or while it was imported.
        messages (`bool`, *optional*, defaults to `False`): completions were lists of chat messages, which is the likely
            cause of an error of type.
    """
    if isinstance(error, SyntaxError) and error.filename:
        place, said = f"{error.filename}, line {error.lineno}", error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if _is_users(frame.filename)]
        place, said = (f"{own[-1].filename}, line {own[-1].lineno}" if own else ""), message_of(error)
    text = ": ".join([type(error).__name__, *([one_line(said)] if said else [])]) + (f" ({place})" if place else "")
    likely = messages and isinstance(error, TypeError | AttributeError) and MESSAGES not in text
    likely = likely and "as left operand, not" not in text  # a number is looked for in a text
    return f"{text}; {MESSAGES}" if likely else text


def _is_users(filename: str) -> bool:
    file = str(Path(filename))
    return not file.startswith(("<", _PACKAGE, *_INSTALLED))
