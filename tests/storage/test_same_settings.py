"""Settings that must agree are compared by what they mean, and all that differ are named."""

from pathlib import Path
from typing import Any

import pytest

from svf_rl.errors import SVFError
from svf_rl.storage.same_settings import check_same_settings, difference


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ({"a": [1, 2], "path": "x"}, {"a": (1, 2), "path": Path("x")}),
        ({"a": 1}, {"a": 1, "new": None}),
        ({"a": 1, "old": []}, {"a": 1, "new": {}, "text": ""}),
        ({"a": {"b": {}}}, {"a": None}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}),
    ],
)
def test_the_same(there: dict[str, Any], here: dict[str, Any]) -> None:
    assert difference(there, here) == ""
    check_same_settings(there, here, "it was made", "give the same")


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ({"a": 1}, {"a": 2}, "a: 1 there, 2 here"),
        ({"a": 0}, {}, "a: 0 there, null here"),
        ({"a": False}, {"a": None}, "a: false there, null here"),
        ({"a": 1, "b": "x", "c": 3}, {"b": "y", "c": 3}, 'a: 1 there, null here; b: "x" there, "y" here'),
        ({"a": {"b": 1, "c": {"d": 2}}}, {"a": {"b": 1, "c": {"d": 3}}}, "a.c.d: 2 there, 3 here"),
        ({"a": {"b": 1}}, {"a": 1}, 'a: {"b": 1} there, 1 here'),
        (None, {"a": 1}, "a: null there, 1 here"),
    ],
)
def test_all_that_differ_are_named(there: dict[str, Any] | None, here: dict[str, Any], said: str) -> None:
    assert difference(there, here) == said


def test_long_values_are_cut() -> None:
    (said,) = difference({"a": "x" * 1000}, {"a": 1}).split("; ")
    assert len(said) < 90


def test_the_message_says_what_was_made_and_what_to_do() -> None:
    with pytest.raises(SVFError, match=r"^runs/a was made with other settings \(seed: 0 there, 1 here\): remove it$"):
        check_same_settings({"seed": 0, "out": "a"}, {"seed": 1, "out": "b"}, "runs/a was made", "remove it", {"out"})
