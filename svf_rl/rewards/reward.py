"""A reward function as the trainer uses it: with its weight and arguments, and every call checked.

The function itself is plain, in TRL's signature::

    f(completions, answer, **kwargs) -> list[float | None]

`completions` is a list with one entry for each sample: a string, or a list of chat messages (`completion_text` reads
both). Every dataset column is passed as a list of the same length under the column's name, together with `prompts`,
`completion_ids`, `trainer_state`, `log_extra` and `log_metric`; the function gets those that it names, or all of them
if it takes `**kwargs`. `None` means "not scorable": the sample is left out of training. `async def` works too.

Keyword-only parameters with a default (`*, column="answer"`) are arguments for the recipe; columns never fill them.
"""

import asyncio
import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from svf_rl.errors import Stopped, SVFError, short_repr
from svf_rl.rewards.references import check_argument, is_number
from svf_rl.rewards.user_code import Messages, describe

_LARGEST = 3.4e38  # of fp32, in which rewards are added

# What TRL passes to every reward function in addition to the dataset's columns.
TRAINER_ARGUMENTS = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
)


class Reward:
    """A loaded reward function, callable as TRL calls it: by keyword, with one list for each column.

    Args:
        function (`Callable`): the reward function, in the signature above.
        name (`str`): shown in errors and in the metrics `rewards/<name>/mean`.
        weight (`float`, *optional*, defaults to `1.0`): its share in the sum of the rewards.
        arguments (`Mapping[str, Any]`, *optional*): values for parameters of the function that are not columns.

    Raises:
        SVFError: the weight is not a finite number, or an argument does not fit the function's signature.
    """

    def __init__(
        self, function: Callable[..., Any], name: str, weight: float = 1.0, arguments: Mapping[str, Any] | None = None
    ) -> None:
        if not is_number(weight) or not abs(weight) <= _LARGEST:
            raise SVFError(f"reward {name!r}: weight must be a number, got {weight!r}")
        self.__name__ = name  # where TRL looks for the name of its metrics
        self.function = function
        self.weight = float(weight)
        self.arguments = dict(arguments or {})
        # those whose value is the name of a dataset column, as `@reward` says
        self.column_arguments: tuple[str, ...] = getattr(function, "column_arguments", ())
        try:
            self.parameters = inspect.signature(function).parameters
        except ValueError as error:  # a few built-ins have no signature
            raise SVFError(f"reward {name!r}: {error}; wrap it in a Python function") from error
        self._check_arguments()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.__name__!r}, weight={self.weight}, arguments={self.arguments})"

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Score `completions`; returns one float or `None` each. Raises `SVFError` when the function misbehaves."""
        keywords = self._keywords(completions, columns)
        with self._errors_of_the_function(completions):
            values = self.function(**keywords)
        return self._checked(values, len(completions))

    @property
    def full(self) -> float | None:
        """What a right answer gets, where the function gives others a part of it; `None` where it does not say."""
        given = {name: p.default for name, p in self.parameters.items()} | self.arguments
        partial = is_number(given.get("correct")) and any(given.get(name) is True for name in ("partial", "share"))
        return float(given["correct"]) if partial else None

    def _check_arguments(self) -> None:
        accepted = _own_parameters(self.parameters)
        for name, value in self.arguments.items():
            # `**kwargs` would swallow any name, so a mistyped argument must be refused here or it is never noticed.
            if name not in accepted:
                raise SVFError(f"reward {self.__name__!r} has no argument {name!r}{nearest(name, accepted)}")
            check_argument(f"reward {self.__name__!r}", name, self.parameters[name].annotation, value)
        for name in self.column_arguments:
            if not isinstance(value := self.arguments.get(name, ""), str):
                raise SVFError(f"reward {self.__name__!r}: {name} must be the name of a column, got {value!r}")

    def _keywords(self, completions: Sequence[Any], columns: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords of one call: the recipe's arguments, and those of TRL's keywords that the function takes."""
        missing = sorted(required_columns(self) - columns.keys())
        if missing:
            present = ", ".join(sorted(columns.keys() - TRAINER_ARGUMENTS)) or "none"
            raise SVFError(f"reward {self.__name__!r} needs the column {missing[0]!r}; the dataset has: {present}")
        takes_all = any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())

        def takes(name: str) -> bool:
            parameter = self.parameters.get(name)
            if parameter is None:
                return takes_all
            is_argument = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
            return name in TRAINER_ARGUMENTS or not is_argument

        told = [Messages(each) if type(each) is list else each for each in completions]
        offered = {"completions": told, **columns}
        return {**{name: value for name, value in offered.items() if takes(name)}, **self.arguments}

    @contextmanager
    def _errors_of_the_function(self, completions: Sequence[Any]) -> Iterator[None]:
        """Turn everything that the user's function raises into one line that names the reward and the place."""
        try:
            yield
        except (SVFError, Stopped, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError):
            raise
        # The function is not our code, so it may raise anything: libraries that check answers derive their time-outs
        # from BaseException, and a `sys.exit(0)` in it must not end a training run as a success.
        except BaseException as error:
            messages = any(isinstance(completion, list) for completion in completions)
            raise SVFError(f"reward {self.__name__!r} raised {describe(error, messages)}") from error

    def _checked(self, values: Any, count: int) -> list[float | None]:
        if getattr(values, "ndim", None) is not None and hasattr(values, "tolist"):  # of numpy, torch, pandas, ...
            if values.ndim != 1:
                shape = tuple(values.shape)
                raise SVFError(
                    f"reward {self.__name__!r} returned {type(values).__name__} of shape {shape} instead of "
                    f"({count},): one value for each completion"
                )
            values = values.tolist()
        if not isinstance(values, list | tuple):
            raise SVFError(
                f"reward {self.__name__!r} returned {type(values).__name__!r} instead of a list of {count} values, "
                "one for each completion"
            )
        if len(values) != count:
            raise SVFError(f"reward {self.__name__!r} returned {len(values)} values for {count} completions")
        return [checked_score(value, f"reward {self.__name__!r}") for value in values]


class AsyncReward(Reward):
    """The same for an `async def` function: TRL awaits all of them together."""

    # A coroutine function itself, since TRL looks at `__call__` to tell the two kinds apart.
    async def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[float | None]:  # type: ignore[override]
        keywords = self._keywords(completions, columns)
        with self._errors_of_the_function(completions):
            values = await self.function(**keywords)
        return self._checked(values, len(completions))


def checked_score(value: Any, who: str) -> float | None:
    """What a reward function, or an environment, gives a sample. Raises `SVFError` for what is neither a number that
    fp32 holds nor `None`."""
    if value is None:
        return None
    if getattr(value, "ndim", None) == 0:  # numpy scalars and 0-d tensors
        value = value.item()
    if not isinstance(value, int | float):
        raise SVFError(f"{who} returned {short_repr(value)}; each value must be a number or None")
    # TRL reads NaN as None, which would hide a broken computation among the samples that are not scorable.
    if not abs(value) <= _LARGEST:
        shown = value if isinstance(value, float) else "a huge integer"
        raise SVFError(f"{who} returned {shown}; return None for a sample without a score")
    return float(value)


def required_columns(reward: Reward) -> set[str]:
    """The dataset columns without which `reward` cannot be called.

    These are the function's parameters without a default that neither the trainer nor the recipe fills, and the
    columns named by its column arguments (`@reward("exact_match", column_arguments=["column"])`).
    """
    parameters = reward.parameters
    unfilled = {
        name
        for name in _own_parameters(parameters)
        if parameters[name].default is inspect.Parameter.empty and name not in reward.arguments
    }
    named = {reward.arguments.get(name, parameters[name].default) for name in reward.column_arguments}
    return unfilled | named


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of one completion: itself if a string, else the content of the last assistant message."""
    if isinstance(completion, str):
        return completion
    contents = [message.get("content") for message in completion if message.get("role") == "assistant"]
    content = contents[-1] if contents else None
    if isinstance(content, list | tuple):  # of parts: {"type": "text", "text": ...}, and images
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return content or ""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown `name`: the nearest of the known ones, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known) or 'none'}"


def _own_parameters(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """The named parameters that the trainer does not fill: columns and arguments."""
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [name for name, p in parameters.items() if name not in TRAINER_ARGUMENTS and p.kind not in variadic]
