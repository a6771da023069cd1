"""Every key of a recipe with odd values: the dry run plans the run, or refuses in one line that names the key."""

import random
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from svf_rl.errors import SVFError
from svf_rl.settings.dry_run import check_recipe
from svf_rl.settings.recipe import _PARTS, load_recipe
from svf_rl.train import run

KEYS = sorted({f.name for part in _PARTS for f in fields(part) if f.init})
ODD: list[Any] = [
    None, True, False, 0, 1, 2, -1, 3, 10**30, 10**400, -(10**30), 0.5, -0.5, 1e-320, 1e30, 1e308, float("nan"),
    float("inf"), float("-inf"), "", " ", "nosuch", "true", "7", "a b", "two\nlines", "no\0such", "é", "x" * 5000,
    "x" * 300, "/", "../..", "~nosuch/x", "./nowhere", "[", "a(", "{}", "null", [], [""], [None], [[]], ["nosuch"],
    ["["], [1], [-1], [10**30], [float("nan")], ["no\0such"], {}, {"nosuch": 1}, {"a": {"b": None}}, {"name": "x"},
    {"name": "numeric", "weight": 10**400}, {1: 2}, {"": ""}, {"seed": float("inf")},
]  # fmt: skip
RECIPES: list[dict[str, Any]] = [
    {},
    {"adapter": "lora", "gradient_checkpointing": True, "lr_scheduler_type": "cosine"},
    {"objective": "next_token", "eval_strategy": "epoch", "save_strategy": "epoch", "max_steps": -1},
    {"task": "mixture", "mixture": {"quickstart:math": 2, "quickstart:choice": 1}, "parameterization": "sigmoid"},
    {"task": "columns", "data_path": "rows.jsonl", "rewards": "numeric", "data_dir": None},
    {"use_vllm": True, "init": "random", "num_generations": 1, "advantage": "none"},
    {"objective": "evolution_strategies", "use_vllm": True, "beta": 0.0},
]
# What a message says in place of the key.
IN_WORDS = {
    "model_name_or_path": "model", "adapter_path": "adapter", "experts": "adapter", "target_modules": "targets",
    "lora_target_modules": "targets", "rewards": "reward", "train_items": "rows", "validation_items": "rows",
    "test_items": "rows", "data_path": "data", "data_dir": "data", "task": "task", "skill": "skill",
    "layers_to_transform": "targets", "exclude_modules": "targets", "system_prompt": "prompt",
    "eval_strategy": "strategy", "save_strategy": "strategy",
}  # fmt: skip

# What would need the Hub, much time, or another folder than the test's.
NOT_TRAINED = {
    "output_dir", "model_name_or_path", "max_steps", "num_train_epochs", "push_to_hub", "use_vllm", "train_items",
    "validation_items", "test_items", "task", "mixture", "hub_token", "resume_from_checkpoint", "dataset_name",
    "warm_up_steps",
}  # fmt: skip


@pytest.fixture
def write(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a small recipe of the bundled model with some keys changed; its path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"prompt": "What is {i} + 1?", "answer": "{i + 1}"}}\n' for i in range(40))
    )
    small = yaml.safe_load((repository / "recipes" / "quickstart.yaml").read_text()) | {
        "use_vllm": False, "train_items": 16, "validation_items": 4, "test_items": 4, "max_steps": 1,
        "per_device_train_batch_size": 8, "max_completion_length": 8, "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "eval_steps": 1, "save_steps": 1,
    }  # fmt: skip

    def write(**changes: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in (small | changes).items() if v is not None or k in changes}))
        return path

    return write


def drawn(seed: int, count: int) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Recipe, key and value; every key comes up."""
    draw = random.Random(seed)
    keys = list(KEYS)
    for number in range(count):
        if number % len(keys) == 0:
            draw.shuffle(keys)
        key = keys[number % len(keys)]
        yield draw.choice(RECIPES), key, draw.choice(ODD)


def check_line(message: str) -> None:
    assert message.isprintable(), message
    assert len(message) < 700, message


def check_refusal(error: SVFError, key: str) -> None:
    message = str(error)
    check_line(message)
    assert key in message or IN_WORDS.get(key, key) in message, message


def check_planned(write: Any, seed: int, count: int) -> int:
    """How many of `count` drawn recipes can be trained, of which no one may end in anything but a plan or one line."""
    planned = 0
    for recipe, key, value in drawn(seed, count):
        try:
            print(check_recipe(load_recipe(write(**{**recipe, key: value}))))
            planned += 1
        except SVFError as error:
            check_refusal(error, key)
        except BaseException as error:
            error.add_note(f"recipe {recipe}, {key}: {value!r}")
            raise
    return planned


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_themselves_are_planned(write, recipe: dict[str, Any]) -> None:
    assert check_recipe(load_recipe(write(**recipe))).updates


def test_a_recipe_with_an_odd_value_is_planned_or_refused_in_one_line(write) -> None:
    planned = check_planned(write, seed=0, count=1500)
    assert planned > 50


@pytest.mark.slow
def test_recipes_with_odd_values_of_a_fresh_seed(write) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    check_planned(write, seed, count=10_000)


@pytest.mark.slow
def test_what_is_planned_is_trained_or_refused_in_one_line(write, tmp_path: Path) -> None:
    """One step of a sample of what the dry run takes."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    trained, tried = 0, 0
    for recipe, key, value in drawn(seed, 10_000):
        if recipe.get("use_vllm") or key in NOT_TRAINED:
            continue
        output = tmp_path / f"run{tried}"
        path = write(**{"output_dir": str(output), **recipe, key: value})
        try:
            check_recipe(load_recipe(path))
        except SVFError:
            continue
        tried += 1
        try:
            run(str(path))
            trained += 1
        except SVFError as error:
            check_line(str(error))
        except BaseException as error:
            error.add_note(f"recipe {recipe}, {key}: {value!r}")
            raise
        shutil.rmtree(output, ignore_errors=True)
        if tried == 40:
            break
    assert trained > 20
