"""`seeds` and `runs` of a recipe."""

import json
from typing import Any

import pytest

from svf_rl.errors import SVFError
from svf_rl.settings.recipe import load_recipe, load_runs


def runs(*overrides: str) -> dict[str, Any]:
    return load_runs(load_recipe("quickstart", overrides), overrides)


def test_a_recipe_without_them_is_one_run() -> None:
    assert runs() == {}


def test_each_seed_is_a_run_as_if_it_were_alone() -> None:
    found = runs("--seeds", "[0, 7]", "--output_dir", "there")
    assert {name: recipe.training.seed for name, recipe in found.items()} == {"seed0": 0, "seed7": 7}
    alone = load_recipe("quickstart", ["--seed", "7", "--output_dir", "there/seed7"])
    assert found["seed7"].raw == alone.raw
    assert found["seed7"].training.output_dir == alone.training.output_dir


def test_each_change_is_a_run_with_a_folder_of_its_name() -> None:
    changes = [{"learning_rate": 0.5}, {"skill": "choice", "seed": 3}, {"seed": 4}, {}]
    found = runs("--runs", json.dumps(changes), "--learning_rate", "0.25")
    assert list(found) == ["learning_rate=0.5", "skill=choice,seed=3", "seed4", "unchanged"]
    assert [recipe.training.learning_rate for recipe in found.values()] == [0.5, 0.25, 0.25, 0.25]
    assert [recipe.data.skill for recipe in found.values()] == ["math", "choice", "math", "math"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--seeds", "[]"], "seeds is empty: leave it out, or name the runs"),
        (["--runs", "[]"], "runs is empty"),
        (["--seeds", "[1, 1]"], "seeds has two runs named seed1"),
        (["--seeds", "[a]"], "seeds must be"),
        (["--seeds", "[-1]"], "run seed-1: seed must be"),
        (["--seeds", "[1]", "--runs", "[{seed: 2}]"], "seeds and runs are both given"),
        (["--runs", "[{model_name_or_path: other}]"], "runs: model_name_or_path is the same for all runs"),
        (["--runs", "[{target_modules: attention}]"], "runs: target_modules is the same for all runs"),
        (["--runs", "[{output_dir: there}]"], "runs: output_dir is the same for all runs"),
        (["--runs", "[{vllm_weights: merged}]"], "runs: vllm_weights is the same for all runs"),
        (["--runs", "[{learning_rat: 1}]"], "unknown recipe key 'learning_rat'; the nearest one is 'learning_rate'"),
        (["--runs", "[{learning_rate: fast}]"], "run learning_rate=fast: learning_rate must be a number"),
        (["--seeds", "[0]", "--adapter", "lora"], r"do not go with adapter: lora: start each run alone"),
        (["--seeds", "[0]", "--init", "random"], "do not go with init: random"),
        (["--seeds", "[0]", "--core", "band:1"], "do not go with core: band:1"),
        (["--seeds", "[0]", "--biases", "true"], "do not go with biases: true"),
        (["--seeds", "[0]", "--modules_to_save", "[lm_head]"], "do not go with modules_to_save"),
        (["--seeds", "[0]", "--use_vllm", "false"], "do not go with use_vllm: false"),
        (["--seeds", "[0]", "--vllm_weights", "merged"], "do not go with vllm_weights: merged"),
        (["--seeds", "[0]", "--objective", "next_token"], "do not go with"),
        (["--seeds", "[0]", "--warm_up_steps", "5"], "do not go with warm_up_steps: start each run alone"),
        (["--runs", "[{warm_up_steps: 5}]"], "runs: warm_up_steps is the same for all runs"),
    ],
)
def test_bad_input_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(SVFError, match=message) as raised:
        runs(*overrides)
    assert "\n" not in str(raised.value)


def test_several_processes_and_reporters_of_one_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("quickstart", ["--seeds", "[0]"])
    recipe.training.report_to = ["wandb"]
    with pytest.raises(SVFError, match="report_to: wandb has one run a process"):
        load_runs(recipe, ["--seeds", "[0]"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SVFError, match="do not go with several processes"):
        load_runs(recipe, ["--seeds", "[0]"])
