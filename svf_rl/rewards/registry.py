"""How a recipe names a reward: a registered name, a function of an installed package, or a function in a file."""

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from svf_rl.errors import Stopped, SVFError
from svf_rl.rewards.reward import AsyncReward, Reward, nearest
from svf_rl.rewards.user_code import describe

F = TypeVar("F", bound=Callable[..., Any])

_registered: dict[str, Callable[..., Any]] = {}


def reward(name: str, column_arguments: Sequence[str] = ()) -> Callable[[F], F]:
    """Register the decorated function under `name`, so that a recipe can say `rewards: [name]`.

    Args:
        name (`str`): the name in recipes.
        column_arguments (`Sequence[str]`, *optional*): those arguments of the function whose value is the name of a
            dataset column that it reads, so that a dry run can look for that column.

    Raises:
        SVFError: another function has that name already.
    """

    def register(function: F) -> F:
        full_name, other = (f"{f.__module__}.{f.__qualname__}" for f in (function, _registered.get(name, function)))
        # The same function is registered again when its module is imported a second time.
        if other != full_name:
            raise SVFError(f"reward {name!r} is registered already, by {other}; choose another name")
        _registered[name] = function
        function.column_arguments = tuple(column_arguments)  # type: ignore[attr-defined]
        return function

    return register


def load_reward(spec: str | Mapping[str, Any]) -> Reward:
    """Load a reward as a recipe names it.

    Args:
        spec (`str` or `Mapping[str, Any]`): `"exact_match"` (a registered name), `"package.module:function"` (found
            from the working directory too), `"path/to/file.py:function"`, or a mapping of `name` (one of these),
            optionally `weight`, and the function's arguments: `{name: numeric, weight: 0.5}`.

    Returns:
        [`Reward`]: callable in TRL's signature, with `__name__` and `weight`.

    Raises:
        SVFError: no such name, file, module or function, code that fails to import, or an argument that does not fit.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    arguments = dict(spec)
    name = arguments.pop("name", None)
    weight = arguments.pop("weight", 1.0)
    if not isinstance(name, str):
        raise SVFError(f"a reward needs a name, such as exact_match or path/to/file.py:function, got {name!r}")
    function = _find_registered(name) if ":" not in name else load_function(name)
    return _made(function, name.rpartition(":")[2], weight, arguments)


def as_reward(given: Any) -> Any:
    """A plain function as a [`Reward`] of its own name, and a registered name as what it names; anything else, such as
    a reward model, as it is."""
    if isinstance(given, str):
        import_built_ins()
        return load_reward(given) if given in _registered else given
    if isinstance(given, Reward) or not callable(given) or hasattr(given, "parameters"):
        return given
    inner = given.func if isinstance(given, partial) else given
    return _made(given, getattr(inner, "__name__", type(inner).__name__), 1.0, {})


def _made(function: Callable[..., Any], name: str, weight: float, arguments: Mapping[str, Any]) -> Reward:
    # As TRL does it: for a callable object, `async` stands at its `__call__`.
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(function.__call__)  # type: ignore[operator]
    return (AsyncReward if is_async else Reward)(function, name, weight, arguments)


def _find_registered(name: str) -> Callable[..., Any]:
    if name.endswith(".py"):
        raise SVFError(f"reward {name!r} is a file without a function name; write {name}:FUNCTION")
    import_built_ins()
    if name not in _registered:
        raise SVFError(f"unknown reward {name!r}{nearest(name, _registered)}")
    return _registered[name]


def load_function(name: str, what: str = "reward") -> Callable[..., Any]:
    """
    The function (or class) that a recipe names `file.py:function` or `package.module:function`.

    Args:
        name (`str`): as above; modules are found from the working directory too.
        what (`str`, *optional*, defaults to `"reward"`): what it is for, in messages.

    Raises:
        SVFError: no such file, module or function, or code that fails to import.
    """
    location, colon, function_name = name.rpartition(":")
    if not colon:
        raise SVFError(f"{what} {name!r} names no function: write it as file.py:function")
    is_file = location.endswith(".py")
    # `accelerate launch` puts the script's folder on the path, but users keep their modules in the working directory.
    if not is_file and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = _import_file(Path(location), what) if is_file else importlib.import_module(location)
    except (SVFError, Stopped, KeyboardInterrupt):
        raise
    except BaseException as error:  # the user's module may fail in any way while it is imported, or call `sys.exit`
        raise SVFError(f"could not import {what} {location}: {describe(error)}") from error
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if function is None:
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise SVFError(f"{location} has no function {function_name!r}{nearest(function_name, functions)}")
    if not callable(function):
        raise SVFError(f"{what} {name!r} is not a function but {type(function).__name__!r}")
    return function


def source_digest(function: Callable[..., Any]) -> str | None:
    """SHA-256 of the file in which a user's function or class is written; `None` where it is not in one."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # a callable object, whose class has the file
        file = inspect.getsourcefile(type(function))
    return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()


def import_built_ins() -> None:
    """Import every module of this room: a new reward is one new file, and no list of imports has to grow."""
    for module in pkgutil.walk_packages([str(Path(__file__).parent)], f"{__package__}."):
        importlib.import_module(module.name)


def _import_file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise SVFError(f"{what} file {path} does not exist (working directory: {Path.cwd()})")
    path = path.resolve()
    # One module per file, so that two rewards from one file share its state.
    name = f"svf_rl_reward_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
