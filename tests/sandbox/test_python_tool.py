"""The tool `python`: what a program prints, or why it ended, for a model to read."""

import pytest

from svf_rl.sandbox import python_tool
from svf_rl.sandbox.python_tool import CHARACTERS, python
from svf_rl.settings.episodes import EpisodeArguments, load_episodes


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print(3 * 4)", "12"),
        ("import numpy\nprint(numpy.arange(3))", "[0 1 2]"),
        ("x = 1", "(nothing was printed)"),
        ("", "(nothing was printed)"),
        ("print('é')\nimport sys\nsys.exit(3)", "é\n(exit status 3)"),
        ("def f(:", "SyntaxError: invalid syntax"),
        (
            "print('a')\n1 / 0",
            'a\nTraceback (most recent call last):\n  File "<program>", line 2, in <module>\nZeroDiv',
        ),
        ("open('/etc/passwd')", "FileNotFoundError"),
        ("import urllib.request\nurllib.request.urlopen('http://1.1.1.1')", "URLError"),
        ("print(input())", "EOFError"),
        ("if __name__ == '__main__':\n    def f(n): return n and f(n - 1)\n    print(f(9))", "0"),
    ],
)
def test_what_it_says(code: str, said: str) -> None:
    assert said in python(code)


def test_long_output_is_cut_in_the_middle() -> None:
    text = python("print('a' * 5000 + 'b' * 100)")
    assert len(text) < CHARACTERS + 60
    assert text.startswith("a" * 900)
    assert text.endswith("b" * 100)
    assert "characters or more" in text


def test_the_end_of_very_long_output_is_read_too() -> None:
    text = python("for i in range(100000): print(i)\nraise ValueError('the end')")
    assert text.startswith("0\n1\n")
    assert text.endswith("ValueError: the end")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('a', flush=True)\nwhile True: pass", "a\n(timed out"),
        ("print('a', flush=True)\nimport time\ntime.sleep(99)", "a\n(timed out"),
        ("while True: print('x' * 999)", "(too much output)"),
    ],
)
def test_endless_programs_are_ended(code: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_tool, "SECONDS", 0.5)
    assert said in python(code)


def test_a_recipe_names_it() -> None:
    assert load_episodes(EpisodeArguments(tools=["python"])).tools == [python]
