"""YAML of users: what it may say, and what is refused in a moment however it is nested or refers to itself."""

from itertools import pairwise
from pathlib import Path

import pytest

from svf_rl.cli import main
from svf_rl.errors import SVFError
from svf_rl.storage.yaml_files import parse_yaml, read_yaml

LEVELS = "abcdefghijklmnopq"


def bomb(first: str = "[1, 1]") -> str:
    """Each line is a list of eight of the line before: 8¹⁶ values at the end."""
    lines = [f"{LEVELS[0]}: &{LEVELS[0]} {first}"]
    for before, name in pairwise(LEVELS):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]")
    return "\n".join(lines)


HOSTILE = {
    "anchors of anchors": (bomb() + "\nlearning_rate: *q", "more than 200,000 characters"),
    "anchors of mappings": (bomb("{a: 1}") + "\nmax_steps: *q", "more than 200,000 characters"),
    "a long text many times": (f"a: &a {'x' * 50_000}\nb: [{', '.join(['*a'] * 100)}]", "more than 200,000 characters"),
    "itself": ("a: &a [*a]", "stands within what it refers to"),
    "itself as a key": ("a: &a {? *a : 1}", "stands within what it refers to"),
    "deep lists": ("learning_rate: " + "[" * 100_000, "more than 50 deep"),
    "deep mappings": ("a: " + "{a: " * 5_000, "more than 50 deep"),
    "deep dashes": ("- " * 5_000, "more than 50 deep"),
    "long": ("a: " + "1" * 300_000, "more than 200,000 characters"),
    "a number of 5,000 digits": ("max_steps: " + "1" * 5_000, "not valid YAML"),
    "no date": ("a: 2001-99-99", "not valid YAML"),
    "no number": ("a: !!float x", "not valid YAML"),
    "no number at all": ("a: !!int ''", "not valid YAML"),
    "neither true nor false": ("a: !!bool x", "not valid YAML"),
    "no time": ("a: !!timestamp x", "not valid YAML"),
    "code": ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
    "a list as a key": ("? [a]\n: 1", "not valid YAML"),
    "a key twice": ("a: 1\na: 2", "'a' appears twice, again in line 2"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.timeout(20)
def test_hostile_yaml_is_refused_in_a_line(name: str) -> None:
    text, message = HOSTILE[name]
    with pytest.raises(SVFError, match=message) as refused:
        parse_yaml(text)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_aliases_are_what_they_refer_to() -> None:
    assert parse_yaml("a: &x {b: 1e-3}\nc: *x\nd: {<<: *x, e: no}") == {
        "a": {"b": 1e-3}, "c": {"b": 1e-3}, "d": {"b": 1e-3, "e": False},
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null/recipe.yaml", "/", "nul\0.yaml", f"{'x' * 5_000}.yaml"])
@pytest.mark.timeout(20)
def test_a_file_that_is_none(path: str) -> None:
    with pytest.raises(SVFError, match=r"^recipe ") as refused:
        read_yaml(Path(path), "recipe")
    assert str(refused.value).isprintable()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", [HOSTILE["anchors of anchors"][0], HOSTILE["deep lists"][0]])
def test_a_hostile_recipe_ends_the_command_in_a_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    for command, *options in (["train", "--dry-run"], ["plan", "--gpus=1", "--gpu-memory=80GB"], ["serve"]):
        assert main([command, str(tmp_path / "recipe.yaml"), *options]) == 1
        assert capsys.readouterr().err.startswith(f"error: recipe {tmp_path}/recipe.yaml: ")
