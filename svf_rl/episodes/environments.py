"""The environments of a batch: drawn from a pool, reset, asked for their rewards; one that fails costs a sample and
not the run."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from svf_rl.episodes.failures import Failures
from svf_rl.episodes.random_state import own_random_numbers
from svf_rl.episodes.user_calls import TimedOut, UserCalls
from svf_rl.errors import Stopped, SVFError
from svf_rl.generation import sample_seed
from svf_rl.generation.prompts import parts_text
from svf_rl.rewards.reward import checked_score
from svf_rl.rewards.user_code import describe

if TYPE_CHECKING:
    from svf_rl.episodes.toolbox import Toolbox

NO_PROMPT = [{"role": "user", "content": ""}]
"""Of a row without one, whose environment brings it."""


class Environments:
    """Those of a toolbox."""

    def __init__(self, toolbox: "Toolbox") -> None:
        self._box, self._user = toolbox, toolbox.calls
        self.current: list[Any] | None = None
        """Of each row at hand; `None` where nothing makes any."""
        self.names: list[Any] = []
        """Of each row at hand: the name of its environment, where there are several."""
        self.failed: list[str] = []
        """Of each row at hand: how its environment's `reset` or `get_reward` has failed; empty where it has not."""
        self.full: list[bool] = []
        """Of each row at hand: whether `reset` has failed by leaving no room for an answer."""
        self.failures = Failures()
        self._abandoned = self._user.abandoned

    def reset(self, rows: list[dict[str, Any]]) -> list[Any]:
        """Give each row an environment and reset it; the prompts, with what their environments say first."""
        self.failed, self.full = [""] * len(rows), [False] * len(rows)
        self.names = self._box.names(rows)
        if self._box.factories is None:
            return [row["prompt"] for row in rows]
        prompts: list[Any] = [row.get("prompt") or NO_PROMPT for row in rows]
        self.current = self._draw(self.names)
        for i, (environment, row) in enumerate(zip(self.current, rows, strict=True)):
            given = {key: v for key, v in row.items() if key != "environment"} if self._box.several else row
            said = self._tried(environment, "reset", given)
            if isinstance(said, BaseException):
                self._fail(i, "reset", said)
            elif said is not None:
                last, text = prompts[i][-1], _text_of(said, environment)
                more = text if isinstance(last["content"], str) else [{"type": "text", "text": text}]
                prompts[i] = [*prompts[i][:-1], {**last, "content": last["content"] + more}]
        return prompts

    def rewards(self) -> list[Callable[..., list[float | None]]]:
        """Of each class of environments with a `get_reward`."""
        kinds = self._box.kinds
        return [self._reward_of(kind) for kind in kinds if inspect.isfunction(getattr(kind, "get_reward", None))]

    def fail_without_room(self, full: Sequence[bool], longest: int) -> None:
        """`full`: of each row at hand, whether its prompt leaves no room for an answer among `longest` tokens."""
        for row, own in enumerate(full):
            if own and not self.failed[row]:
                self.full[row] = True
                self._note_failure(row, f"reset says so much that no answer fits within {longest} tokens")

    def leave(self, environment: Any) -> None:
        """Do not use it again: something still runs in it that did not end in time."""
        for pool in self._box.pool.values():
            pool[:] = [None if one is environment else one for one in pool]

    def _reward_of(self, kind: Any) -> Callable[..., list[float | None]]:
        def get_reward(environments: list[Any], **_: Any) -> list[float | None]:
            places = [i for i, one in enumerate(environments) if type(one) is kind and not self.failed[i]]
            if inspect.iscoroutinefunction(kind.get_reward):
                found = self._user.gather([_awaited(environments[i].get_reward) for i in places])
            else:
                found = [self._tried(environments[i], "get_reward", {}) for i in places]
            rewards: list[float | None] = [None] * len(environments)
            for i, value in zip(places, found, strict=True):
                if isinstance(value, SVFError):
                    raise value
                if isinstance(value, BaseException):
                    self._fail(i, "get_reward", value)
                else:
                    rewards[i] = checked_score(value, f"{kind.__name__}.get_reward")
            return rewards

        return get_reward

    def _draw(self, names: list[Any]) -> list[Any]:
        """Instances that are used again and again, a new one only where there are too few, in the place of one that was
        left, or where they are of a thread that was left behind."""
        box, drawn = self._box, []
        assert box.factories is not None
        if self._abandoned != self._user.abandoned:
            self._abandoned = self._user.abandoned
            for instances in box.pool.values():
                instances.clear()
        used: dict[Any, int] = {}
        for name in names:
            pool, number = box.pool[name], used.get(name, 0)
            if number == len(pool):
                pool.append(None)
            if pool[number] is None:
                pool[number] = box.factories[name](number)
            used[name] = number + 1
            drawn.append(pool[number])
        return drawn

    def _tried(self, environment: Any, method: str, given: Mapping[str, Any]) -> Any:
        """What the method returns, or raises."""
        try:
            return self._user.call(lambda: getattr(environment, method)(**given))
        except (SVFError, Stopped, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  (an environment is not our code)
            return error

    def _fail(self, row: int, method: str, error: BaseException) -> None:
        assert self.current is not None
        if isinstance(error, TimedOut):
            self.leave(self.current[row])
        said = str(error) if isinstance(error, TimedOut) else f"raised {describe(error)}"
        self._note_failure(row, f"{method} {said}")

    def _note_failure(self, row: int, what: str) -> None:
        assert self.current is not None
        self.failed[row] = f"{type(self.current[row]).__name__}.{what}"
        self.failures.note(self.failed[row])


def check_environment_names(what: str, rows: Dataset, factories: Mapping[Any, Any], argument: str) -> None:
    """Raises `SVFError` where rows do not name their environments, among several that `argument` names."""
    if "environment" not in rows.column_names:
        raise SVFError(f"{what} has no column 'environment', which says which of {argument} a row is for")
    names = list(factories)
    unknown = [value for value in rows["environment"][:] if value not in names]
    if unknown:
        known = ", ".join(map(str, names))
        raise SVFError(f"{what}: environment {unknown[0]!r} is not among those of {argument}: {known}")


def tool_methods(environment: Any) -> list[Callable[..., Any]]:
    """The methods of an environment that the model can call."""
    return [getattr(environment, name) for name in _callable_names(type(environment))]


def check_tool_names(tools: Sequence[Callable[..., Any]], kind: type) -> None:
    """Raises `SVFError` where a class of environments has a method that is called as one of the plain `tools` is."""
    taken = {tool.__name__ for tool in tools}.intersection(_callable_names(kind))
    if taken:
        raise SVFError(
            f"{kind.__name__} has a method {min(taken)}, and one of tools has that name too: a model calls a tool by "
            "its name, so rename one"
        )


def _callable_names(kind: type) -> list[str]:
    names = [name for name, _ in inspect.getmembers(kind, predicate=inspect.isfunction)]
    return [name for name in names if name not in ("reset", "get_reward") and not name.startswith("_")]


def checked_factories(environment_factory: Any, calls: UserCalls, seed: int, process: int = 0) -> Any:
    """`environment_factory` as TRL's constructor takes it: what it makes is checked, and made in the thread in which it
    is called later. What an instance draws is decided by the seed, the process and its number, which may be given, so
    that it does not matter when it is made. Raises `SVFError` for what is no factory."""
    if environment_factory is None:
        return None
    if isinstance(environment_factory, Mapping):
        if not environment_factory:
            raise SVFError("environment_factory is an empty dict: leave it out, or give at least one environment")
        return {
            name: _checked(factory, calls, f"environment {name!r}", seed, process)
            for name, factory in environment_factory.items()
        }
    return _checked(environment_factory, calls, "environment_factory", seed, process)


def _checked(factory: Any, calls: UserCalls, name: str, seed: int, process: int) -> Callable[..., Any]:
    if not callable(factory):
        raise SVFError(f"{name} is a {type(factory).__name__}: give a class, or a function that makes an environment")

    def make(number: int = 0) -> Any:
        try:
            with own_random_numbers(sample_seed(seed, name, process, number)):
                environment = calls.call(factory, limited=False)
        except (SVFError, Stopped, KeyboardInterrupt):
            raise
        except BaseException as error:  # a user's code may raise anything
            raise SVFError(f"{name} could not be made: it raised {describe(error)}") from error
        reset = getattr(type(environment), "reset", None)
        if not inspect.isfunction(reset) or inspect.iscoroutinefunction(reset):
            raise SVFError(
                f"{name} makes a {type(environment).__name__}, which has no method reset: define reset(self, **row), "
                "which returns a text for the prompt, or None"
            )
        return environment

    return make


def whole_characters(text: str) -> str:
    """`text` with a `?` in place of each half of a character, which no tokenizer takes."""
    return text.encode(errors="replace").decode()


def _text_of(said: Any, environment: Any) -> str:
    if isinstance(said, list) and not said:  # no parts
        return ""
    text = said if isinstance(said, str) else parts_text(said)
    if text is None:
        raise SVFError(
            f"{type(environment).__name__}.reset returned {type(said).__name__}: return a text for the prompt, or None"
        )
    return whole_characters(text)


async def _awaited(function: Callable[[], Any]) -> Any:
    """What an `async` function returns or raises, the error of a call that it does not take included."""
    return await function()
