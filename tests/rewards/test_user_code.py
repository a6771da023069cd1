"""A user's own reward: where an error in it is, completions that are messages, and a whole batch's rewards at once."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from svf_rl.errors import SVFError
from svf_rl.rewards import Reward, load_reward

MESSAGES = [[{"role": "assistant", "content": "yes, 4"}], [{"role": "assistant", "content": "no"}]]


@pytest.fixture
def reward(tmp_path: Path) -> Callable[[str], Reward]:
    """`reward(source)`: the function `f` of a file with that text."""

    def load(source: str) -> Reward:
        number = len(list(tmp_path.iterdir()))
        (tmp_path / f"mine{number}.py").write_text(source)
        return load_reward(f"{tmp_path}/mine{number}.py:f")

    return load


@pytest.mark.parametrize(
    ("body", "line", "said"),
    [
        ("return {}['gold']", 2, "KeyError: 'gold'"),
        ("x = 1\n    return [1 / 0 for _ in completions]", 3, "ZeroDivisionError: division by zero"),
        (
            "import json\n    return json.loads('{')",
            3,
            "JSONDecodeError: Expecting property name",
        ),  # within the library
        ("import re\n    return [re.search(1, c) for c in completions]", 3, "TypeError: first argument must be string"),
        ("def inner():\n        raise ValueError('deep')\n    return inner()", 3, "ValueError: deep"),
        ("raise RuntimeError", 2, "RuntimeError"),
        ("raise ValueError('two\\nlines ' + 'long ' * 1000 + 'the remedy')", 2, "ValueError: two lines long"),
        ("import sys\n    sys.exit(0)", 3, "SystemExit: 0"),
        ("class Bad(Exception):\n        __str__ = None\n    raise Bad", 4, "Bad"),
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_error_names_file_and_line_of_the_users_code(
    reward, tmp_path: Path, kind: str, body: str, line: int, said: str
) -> None:
    loaded = reward(f"{kind} f(completions, **kwargs):\n    {body}\n")
    is_async = kind == "async def"
    with pytest.raises(SVFError) as error:
        asyncio.run(loaded(completions=["a"])) if is_async else loaded(completions=["a"])  # type: ignore[arg-type]
    text = str(error.value)
    assert text.startswith(f"reward 'f' raised {said}")
    assert f"({tmp_path}/mine0.py, line {line})" in text
    assert text.isprintable()
    assert "the remedy" in text or "remedy" not in body


def test_the_line_is_that_of_a_helper_file_where_the_error_is_there(reward, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "helper_of_mine.py").write_text("def grade(text):\n    return int(text)\n")
    loaded = reward(
        "import helper_of_mine\ndef f(completions):\n    return [helper_of_mine.grade(c) for c in completions]\n"
    )
    with pytest.raises(SVFError, match=r"helper_of_mine\.py, line 2\)"):
        loaded(completions=["x"])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(completions:\n", r"SyntaxError: .*\(.*mine0\.py, line 1\)"),
        ("\nimport nosuchmodule_of_mine\n", r"ModuleNotFoundError: .* \(.*mine0\.py, line 2\)"),
        ("x = 1\ny = x['a']\n", r"TypeError: .* \(.*mine0\.py, line 2\)"),
    ],
)
def test_an_error_while_the_file_is_imported_names_the_line_too(reward, source: str, said: str) -> None:
    with pytest.raises(SVFError, match=said):
        reward(source)


@pytest.mark.parametrize(
    "expression",
    [
        "completion.strip()", "'yes' in completion", "completion == 'yes'", "completion.split()[0]", "'a' + completion",
        "re.search('yes', completion)", "completion.index('yes')", "completion.count('yes') and completion.lower()",
        "float(completion)",
    ],
)  # fmt: skip
def test_messages_that_are_taken_for_text_are_one_clear_line(reward, expression: str) -> None:
    loaded = reward(
        f"import re\ndef f(completions):\n    return [float(bool({expression})) for completion in completions]\n"
    )
    with pytest.raises(SVFError, match=r"read its text with svf_rl\.rewards\.completion_text") as error:
        loaded(completions=MESSAGES)
    assert "mine0.py, line 3)" in str(error.value)


def test_messages_are_else_the_lists_that_they_were(reward) -> None:
    loaded = reward(
        "import copy, json\nfrom svf_rl.rewards import completion_text\ndef f(completions):\n"
        "    assert all(isinstance(c, list) and c == list(c) and c[0] in c and not c == [] for c in completions)\n"
        "    assert json.loads(json.dumps(completions)) == copy.deepcopy(completions)\n"
        "    assert completions[0] != completions[1]\n"
        "    return [float('yes' in completion_text(c)) for c in completions]\n"
    )
    assert loaded(completions=MESSAGES) == [1.0, 0.0]
    assert json.dumps(MESSAGES)  # those that were given are left alone


WHOLE = {
    "numpy": np.array([1.0, 0.0]),
    "numpy float16": np.array([1, 0], dtype=np.float16),
    "numpy bool": np.array([True, False]),
    "numpy objects": np.array([1.0, None], dtype=object),
    "torch": torch.tensor([1.0, 0.0]),
    "torch bfloat16": torch.tensor([1.0, 0.0], dtype=torch.bfloat16),
    "torch integers": torch.tensor([1, 0], dtype=torch.int8),
    "torch bool": torch.tensor([True, False]),
    "torch with a gradient": torch.tensor([1.0, 0.0], requires_grad=True) * 1,
    "pandas": pandas.Series([1.0, 0.0]),
    "a list of scalars": [np.float32(1), torch.tensor(0)],
    "a tuple": (True, 0),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_the_rewards_of_a_whole_batch_may_be_an_array(kind: str) -> None:
    def f(completions: list[str]) -> Any:
        return WHOLE[kind]

    scores = Reward(f, "f")(completions=["a", "b"])
    assert scores == ([1.0, None] if kind == "numpy objects" else [1.0, 0.0])
    assert all(score is None or type(score) is float for score in scores)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.ones((2, 1)), r"ndarray of shape \(2, 1\) instead of \(2,\)"),
        (torch.ones(2, 3), r"Tensor of shape \(2, 3\) instead of \(2,\)"),
        (torch.tensor(1.0), r"Tensor of shape \(\) instead of \(2,\)"),
        (np.ones(3), "returned 3 values for 2 completions"),
        (torch.tensor([1.0, torch.nan]), "returned nan; return None"),
        (np.array(["a", "b"]), "returned 'a'; each value must be a number or None"),
        (np.array([1j, 0]), "each value must be a number or None"),
        ([torch.ones(2, 2), 1.0], "each value must be a number or None"),
        ("ab", "'str' instead of a list of 2 values"),
        ({"a": 1.0}, "'dict' instead of a list of 2 values"),
        ((1.0 for _ in "ab"), "'generator' instead of a list of 2 values"),
    ],
)
def test_what_is_no_value_for_each_completion_is_one_line(values: Any, said: str) -> None:
    def f(completions: list[str]) -> Any:
        return values

    with pytest.raises(SVFError, match=said) as error:
        Reward(f, "f")(completions=["a", "b"])
    assert str(error.value).isprintable()
