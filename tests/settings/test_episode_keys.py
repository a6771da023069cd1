"""`tools`, `environment` and `rollout_func` in a recipe: found, checked, and refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import refusal
from transformers import AutoTokenizer

from svf_rl.generation.prompts import encode_prompts
from svf_rl.quickstart import model_path
from svf_rl.settings.dry_run import check_recipe, load_rewards
from svf_rl.settings.episodes import EpisodeArguments, EpisodeParts, check_template, load_episodes
from svf_rl.settings.recipe import load_recipe

CODE = '''
def search(query: str) -> str:
    """
    Search.

    Args:
        query: What for.
    """
    return query


def untold(query):
    return query


def play(prompts, trainer):
    return {}


class Guess:
    def reset(self, **row):
        pass

    def guess(self, number: int) -> str:
        """
        Guess.

        Args:
            number: A number.
        """
        return "no"

    def get_reward(self) -> float:
        return 1.0


class Searching:
    def reset(self, **row):
        pass

    def search(self, query: str) -> str:
        """
        Search.

        Args:
            query: What for.
        """
        return query

    def get_reward(self) -> float:
        return 1.0


class Mute:
    def reset(self, **row):
        pass


class Nothing:
    pass


def make():
    return Guess()


number = 5
'''


BASE = "task: quickstart\nuse_vllm: false\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With `parts.py` and a recipe beside it, and another working directory."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/parts.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "recipes"


@pytest.fixture
def recipe(folder: Path) -> Callable[..., Any]:
    def write(text: str, *overrides: str) -> Any:
        path = folder / "own.yaml"
        path.write_text(
            f"model_name_or_path: quickstart-tools\ntask: quickstart\nskill: tools\nuse_vllm: false\n{text}\n"
        )
        return load_recipe(path, overrides)

    return write


def test_files_are_found_beside_the_recipe(recipe: Callable[..., Any]) -> None:
    parts = load_episodes(
        recipe("tools: [parts.py:search]\nenvironment: parts.py:Guess\nrollout_func: parts.py:play").data
    )
    assert [tool.__name__ for tool in parts.tools] == ["search"]
    assert parts.environment_factory.__name__ == "Guess"
    assert parts.rollout_func.__name__ == "play"


def test_several_environments_have_names(recipe: Callable[..., Any]) -> None:
    parts = load_episodes(recipe("environment: {name: parts.py:Guess, other: parts.py:make}").data)
    assert list(parts.environment_factory) == ["name", "other"]
    assert parts.describe() == "environments Guess, make"


def test_one_tool_needs_no_list(recipe: Callable[..., Any]) -> None:
    assert load_episodes(recipe("tools: parts.py:search").data).describe() == "tools search"
    assert load_episodes(recipe("", "--tools", "parts.py:search", "--tool_timeout", "5").data).tools is not None
    assert not load_episodes(recipe("").data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tools: [parts.py:serch]", "has no function 'serch'; did you mean 'search'?"),
        ("tools: [other.py:search]", "tool file other.py does not exist"),
        ("tools: [pyton]", "unknown tool 'pyton'; did you mean 'python'?; one of your own is named file.py:function"),
        ("tools: [parts.py:untold]", "tool untold: "),
        ("tools: [parts.py:number]", "tool 'parts.py:number' is not a function but 'int'"),
        ("tools: [parts.py:Guess]", "is a type: name a function"),
        ("tools: [parts.py:search, parts.py:search]", "tools: two are named search"),
        ("tools: [parts.py:search]\nenvironment: parts.py:Searching", "environment: Searching has a method search"),
        ("tools: [parts.py:search]\nenvironment: {a: parts.py:Searching}", "Searching has a method search, and one"),
        ("environment: parts.py:Nothing", "environment 'parts.py:Nothing' has no method reset"),
        ("environment: Guess", "environment: environment 'Guess' names no function: write it as file.py:function"),
        ("environment: {}", "environment: it is empty"),
        ("environment: {game: 3}", "environment: 3 is no class: name one as file.py:Class"),
        ("environment: {game: null}", "environment: None is no class: name one as file.py:Class"),
        ("environment: parts.py:Mute", "there is no reward: name one in rewards, or define get_reward(self) in Mute"),
        ("environment: {a: parts.py:Guess}", "(train) has no column 'environment', which says which of environment"),
        ("rollout_func: parts.py:nothing", "has no function 'nothing'"),
        ("tools: [parts.py:search]\nobjective: next_token", "next_token trains on right answers of one turn"),
        ("tools: [parts.py:search]\ntool_timeout: 0", "tool_timeout must be"),
        ("tools: [parts.py:search]\nmax_tool_calling_iterations: 0", "max_tool_calling_iterations must be"),
        ("tools: 5", "tools must be"),
        ("environment: [parts.py:Guess]", "environment must be"),
    ],
)  # fmt: skip
def test_refused_in_one_line(recipe: Callable[..., Any], folder: Path, text: str, said: str) -> None:
    def check() -> None:
        check_recipe(recipe(text))

    message = refusal(check)
    assert said in message.replace(f"{folder}/", "")


def test_a_dry_run_says_what_an_episode_is_made_of(recipe: Callable[..., Any]) -> None:
    report = str(check_recipe(recipe("tools: [parts.py:search, python]\nenvironment: parts.py:Guess")))
    assert "tools search, python; environments Guess" in report
    assert "rewards:        the environment's" in report


def test_what_gives_rewards_is_known_of_classes_alone(recipe: Callable[..., Any]) -> None:
    for text in ("parts.py:make", "parts.py:Mute\nrewards: [numeric]"):
        check_recipe(recipe(f"environment: {text}"))


def test_rows_name_their_environments(recipe: Callable[..., Any], folder: Path) -> None:
    def check(*names: str) -> Any:
        rows = [{"prompt": f"What is {i}?", "environment": names[i % len(names)]} for i in range(400)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = "task: columns\ndata_path: rows.jsonl\nenvironment: {a: parts.py:Guess, b: parts.py:Mute}"
        path = folder / "columns.yaml"
        path.write_text(f"model_name_or_path: quickstart-tools\nuse_vllm: false\n{settings}\n")
        return check_recipe(load_recipe(path))

    assert check("a", "b").rows is not None
    said = refusal(check, "a", "c")
    assert said == "columns (train): environment 'c' is not among those of environment: a, b"


def test_with_an_environment_there_is_no_default_reward(recipe: Callable[..., Any]) -> None:
    assert load_rewards(recipe("environment: parts.py:Guess").data) == []
    named = load_rewards(recipe("environment: parts.py:Guess\nrewards: [numeric]").data)
    assert [reward.__name__ for reward in named] == ["numeric"]
    assert [reward.__name__ for reward in load_rewards(recipe("tools: [parts.py:search]").data)] == ["numeric"]


def test_a_reward_may_read_what_a_rollout_function_gives(recipe: Callable[..., Any], folder: Path) -> None:
    (folder / "rewards.py").write_text("def fast(completions, turns, **_):\n    return turns\n")
    text = "rewards: [rewards.py:fast]"
    assert "reward 'fast' needs the column 'turns'" in refusal(check_recipe, recipe(text))
    check_recipe(recipe(f"{text}\nrollout_func: parts.py:play"))


def test_tools_count_in_the_length_of_a_prompt(recipe: Callable[..., Any]) -> None:
    """Rows that just leave room for an answer leave none where their prompts list a tool too."""
    few = "train_items: 64\nvalidation_items: 8\ntest_items: 8\n"
    rows = check_recipe(recipe(few)).splits
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    longest = max(len(ids) for own in rows.values() for ids in encode_prompts(tokenizer, own["prompt"][:]))
    fits = f"{few}max_completion_length: {2048 - longest}\n"
    check_recipe(recipe(fits))
    assert "leave no room" in refusal(check_recipe, recipe(f"{fits}tools: [parts.py:search]"))


def test_a_model_whose_template_knows_no_tools_is_refused() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    parts = EpisodeParts(tools=[print])
    check_template(tokenizer, parts)
    tokenizer.response_template = None
    assert "nobody knows how" in refusal(check_template, tokenizer, parts)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert "shows no calls of tools" in refusal(check_template, tokenizer, parts)
    check_template(tokenizer, load_episodes(EpisodeArguments()))
