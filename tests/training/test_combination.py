"""`adapter: combination` in a recipe: the weights of trained experts are trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from fakes import save_adapter
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from svf_rl.errors import SVFError
from svf_rl.quickstart import model_path
from svf_rl.settings.dry_run import check_recipe
from svf_rl.settings.recipe import load_recipe
from svf_rl.svf import SVFConfig, svf_layers
from svf_rl.train import run


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("experts")
    config = SVFConfig(init="random", init_std=0.05)
    return [save_adapter(root / name, config, seed) for seed, name in enumerate(["one", "two"])]


@pytest.fixture
def recipe(experts: list[str], tmp_path: Path) -> Path:
    values = {
        "model_name_or_path": "quickstart", "dtype": "float32", "adapter": "combination", "experts": experts,
        "alpha_scope": "layer", "task": "quickstart", "train_items": 32, "validation_items": 8, "test_items": 8,
        "output_dir": str(tmp_path / "run"), "max_steps": 2, "learning_rate": 0.05, "max_completion_length": 24,
        "per_device_train_batch_size": 8, "num_generations": 4, "use_vllm": False, "use_cpu": True,
        "gradient_checkpointing": False, "report_to": "none", "eval_strategy": "steps", "eval_steps": 1,
        "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True, "disable_tqdm": True,
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_run_trains_the_weights_and_leaves_a_plain_adapter(recipe: Path, tmp_path: Path) -> None:
    summary = run(str(recipe))
    assert summary is not None
    assert summary.updates == 2
    record = json.loads((tmp_path / "run/adapter_config.json").read_text())["combination"]
    assert record["experts"] == ["one", "two"]
    assert len(record["alpha"]) == 3
    last = json.loads((tmp_path / "run/checkpoint-2/adapter_config.json").read_text())["combination"]
    assert last["alpha"] != [[0.5, 0.5]] * 3
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    loaded = PeftModel.from_pretrained(model, str(tmp_path / "run"))
    assert {type(layer.svf_z["default"]).__name__ for layer in svf_layers(loaded).values()} == {"SVFVector"}


def test_a_run_that_was_cut_off_goes_on_from_its_weights(recipe: Path, tmp_path: Path) -> None:
    run(str(recipe))
    folder = tmp_path / "run"
    whole = (folder / "adapter_model.safetensors").read_bytes()
    for gone in ("summary.json", "adapter_model.safetensors"):
        (folder / gone).unlink()
    shutil.rmtree(folder / "checkpoint-2")
    run(str(recipe), ["--resume_from_checkpoint", "true"])
    assert (folder / "adapter_model.safetensors").read_bytes() == whole


def test_what_the_experts_have_already_is_said_not_to_be_read(recipe: Path) -> None:
    plan = check_recipe(load_recipe(recipe, ["--target_modules", "attention"]))
    assert "target_modules: not read for adapter combination" in str(plan)


def test_the_plan_counts_the_weights(recipe: Path) -> None:
    plan = check_recipe(load_recipe(recipe))
    assert (plan.matrices, plan.trainable_values) == (9, 6)
    assert "weights of one, two: layer, mask" in str(plan)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--experts", "null"], "needs experts"),
        (["--experts", "[/not/there/at/all]"], "does not exist"),
        (["--adapter", "svf"], "experts are for adapter: combination"),
        (["--weight_decay", "0.1"], "weight_decay"),
        (["--adapter_path", "x"], "adapter_path has no meaning"),
        (["--alpha_scope", "head"], "alpha_scope"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_loaded(
    recipe: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(SVFError, match=message):
        check_recipe(load_recipe(recipe, overrides))


def test_experts_of_other_targets_are_refused(recipe: Path, experts: list[str], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    get_peft_model(model, SVFConfig(target_modules="attention")).save_pretrained(tmp_path / "attention")
    with pytest.raises(SVFError, match="different targets"):
        check_recipe(load_recipe(recipe, ["--experts", f"[{experts[0]}, {tmp_path / 'attention'}]"]))
