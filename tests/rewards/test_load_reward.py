"""A recipe names a reward in one of three ways, and every mistake in it ends with one clear line."""

import asyncio
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from svf_rl.errors import SVFError
from svf_rl.rewards import load_reward, required_columns, reward

FILE = """
def length(completions, target, *, scale=1.0, **kwargs):
    return [-scale * abs(len(c) - t) for c, t in zip(completions, target)]

not_a_function = 3
"""


@pytest.fixture
def reward_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(FILE)
    return path


def function_returning(values):
    """A loaded reward whose function returns `values`, whatever it is asked."""

    @reward("fixed")
    def fixed(completions):
        return values

    return load_reward("fixed")


def the_line(error: pytest.ExceptionInfo[SVFError]) -> str:
    line = str(error.value)
    assert "\n" not in line
    return line


def test_a_registered_name_is_enough() -> None:
    loaded = load_reward("exact_match")
    assert loaded.__name__ == "exact_match"
    assert loaded.weight == 1.0
    assert loaded(prompts=["p"] * 2, completions=["yes", "no"], answer=["yes", "yes"]) == [1.0, 0.0]


def test_a_mapping_adds_a_weight_and_arguments() -> None:
    loaded = load_reward({"name": "numeric", "weight": 0.5, "wrong": -1.0})
    assert loaded.weight == 0.5
    assert loaded(prompts=["p"] * 2, completions=["7", "8"], answer=["7.0", "7.0"]) == [1.0, -1.0]


@pytest.mark.parametrize("end", ["import sys\nsys.exit(0)", "raise SystemExit", "raise BaseException('no')", "1 / 0"])
def test_a_file_that_ends_while_it_is_imported_is_one_line(tmp_path: Path, end: str) -> None:
    path = tmp_path / "ends.py"
    path.write_text(FILE + end + "\n")
    with pytest.raises(SVFError, match="could not import reward") as error:
        load_reward(f"{path}:length")
    assert "ends.py, line" in the_line(error)


def test_a_function_in_any_file_is_found_by_path(reward_file: Path) -> None:
    loaded = load_reward({"name": f"{reward_file}:length", "scale": 2})
    assert loaded.__name__ == "length"
    assert loaded(prompts=["p"], completions=["abc"], completion_ids=[[1]], target=[1], trainer_state=None) == [-4.0]


def test_a_path_is_relative_to_the_working_directory(reward_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reward_file.parent)
    assert load_reward("my_rewards.py:length")(completions=["abc"], target=[3]) == [0.0]


def test_a_package_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package_of_rewards").mkdir()
    (tmp_path / "package_of_rewards" / "some.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_reward("package_of_rewards.some:length").__name__ == "length"


def test_a_function_gets_only_what_it_names() -> None:
    @reward("plain")
    def plain(completions, answer):
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    loaded = load_reward("plain")
    assert loaded(prompts=["p"], completions=["a"], completion_ids=[[0]], answer=["a"], other=[1]) == [1.0]


def test_a_column_never_takes_the_place_of_an_option() -> None:
    loaded = load_reward("numeric")
    assert loaded(completions=["7"], answer=["7"], level=["easy"], wrong=["x"]) == [1.0]


def test_an_async_function_stays_async_as_trl_sees_it() -> None:
    from trl.trainer.utils import get_callable_name, is_async_callable

    @reward("judge")
    async def judge(completions, **kwargs):
        await asyncio.sleep(0)
        return [1 for _ in completions]

    loaded = load_reward("judge")
    assert is_async_callable(loaded)
    assert get_callable_name(loaded) == "judge"
    assert asyncio.run(loaded(completions=["a", "b"])) == [1.0, 1.0]
    assert not is_async_callable(load_reward("exact_match"))
    assert not inspect.iscoroutinefunction(load_reward("exact_match"))


def test_required_columns_are_those_that_no_one_else_fills(reward_file: Path) -> None:
    assert required_columns(load_reward("exact_match")) == {"answer"}
    assert required_columns(load_reward({"name": "exact_match", "column": "gold"})) == {"gold"}
    assert required_columns(load_reward(f"{reward_file}:length")) == {"target"}
    assert required_columns(load_reward({"name": f"{reward_file}:length", "target": [3]})) == set()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None], [1.0, None]),
        ((True, 0.5), [1.0, 0.5]),
        ([np.float32(0.5), np.bool_(True)], [0.5, 1.0]),
        ([torch.tensor(0.25), torch.tensor(1)], [0.25, 1.0]),
    ],
)
def test_numbers_of_every_kind_and_none_are_rewards(values, expected) -> None:
    assert function_returning(values)(completions=["a", "b"]) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "returned 1 values for 2 completions"),
        ([1.0] * 3, "returned 3 values for 2 completions"),
        (1.0, "returned 'float' instead of a list of 2 values"),
        (torch.ones(2, 1), "returned Tensor of shape (2, 1) instead of (2,)"),
        (["good", 1.0], "returned 'good'; each value must be a number or None"),
        ([float("nan"), 1.0], "returned nan; return None for a sample without a score"),
        ([np.float64("inf"), 1.0], "returned inf; return None"),
    ],
)
def test_other_return_values_are_refused(values, message: str) -> None:
    with pytest.raises(SVFError) as error:
        function_returning(values)(completions=["a", "b"])
    assert message in the_line(error)
    assert "'fixed'" in the_line(error)


class OfBaseException(BaseException):
    """As libraries for checking answers derive their time-outs."""


@pytest.mark.parametrize("exception", [KeyError("gold"), OfBaseException("too\nlate"), SystemExit(0)])
def test_what_the_function_raises_is_named_and_kept(exception: BaseException) -> None:
    @reward("raising")
    def raising(completions):
        raise exception

    with pytest.raises(SVFError, match=f"reward 'raising' raised {type(exception).__name__}: ") as error:
        load_reward("raising")(completions=["a"])
    assert error.value.__cause__ is exception
    the_line(error)


def test_an_interrupt_is_no_error_of_the_reward() -> None:
    @reward("interrupted")
    def interrupted(completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_reward("interrupted")(completions=["a"])


def test_what_an_async_function_raises_is_named() -> None:
    @reward("raising_async")
    async def raising_async(completions):
        raise KeyError("gold")

    with pytest.raises(SVFError, match="reward 'raising_async' raised KeyError: 'gold'"):
        asyncio.run(load_reward("raising_async")(completions=["a"]))


def test_a_missing_column_is_named() -> None:
    with pytest.raises(SVFError, match="needs the column 'answer'; the dataset has: question, solution"):
        load_reward("exact_match")(prompts=["p"], completions=["a"], question=["q"], solution=["s"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("exact_mach", "unknown reward 'exact_mach'; did you mean 'exact_match'?"),
        ("{file}", "is a file without a function name; write {file}:FUNCTION"),
        ("nowhere.py:length", "reward file nowhere.py does not exist"),
        ("{file}:lenght", "{file} has no function 'lenght'; did you mean 'length'?"),
        ("{file}:not_a_function", "is not a function but 'int'"),
        ("no_such_package.rewards:f", "could not import reward no_such_package.rewards: ModuleNotFoundError"),
        ({"weight": 1.0}, "a reward needs a name"),
        ({"name": "exact_match", "weight": "1e-3"}, "weight must be a number, got '1e-3'"),
        ({"name": "exact_match", "colum": "gold"}, "has no argument 'colum'; did you mean 'column'?"),
        ({"name": "exact_match", "column": 3}, "column must be the name of a column, got 3"),
        ({"name": "exact_match", "ignore_case": "false"}, "ignore_case must be true or false, not 'false'"),
        ({"name": "numeric", "correct": "much"}, "correct must be a number, not 'much'"),
        ({"name": "exact_match", "completions": []}, "has no argument 'completions'"),
    ],
)
def test_a_mistake_in_the_recipe_is_found_when_it_is_loaded(reward_file: Path, spec, message: str) -> None:
    if isinstance(spec, str):
        spec = spec.format(file=reward_file)
    with pytest.raises(SVFError) as error:
        load_reward(spec)
    assert message.format(file=reward_file) in the_line(error)


@pytest.mark.parametrize("code", ["import no_such_package", "def f(:", "raise RuntimeError('two\\nlines')"])
def test_a_file_that_cannot_be_imported_is_named(tmp_path: Path, code: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(SVFError, match=r"could not import reward .*broken\.py: \w+Error: ") as error:
        load_reward(f"{path}:f")
    the_line(error)
    path.write_text("def f(completions): return [0.0 for _ in completions]")
    assert load_reward(f"{path}:f")(completions=["a"]) == [0.0]


def test_one_name_is_registered_once() -> None:
    with pytest.raises(SVFError, match="reward 'exact_match' is registered already"):

        @reward("exact_match")
        def another(completions):
            return [0.0]
