"""`warm_up_steps` and `kl_reference` in a recipe: what becomes of them, and what does not go."""

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import refusal

from svf_rl.settings.dry_run import check_recipe
from svf_rl.settings.recipe import load_recipe
from svf_rl.settings.warm_up import load_warm_up
from svf_rl.train import run


def warm_up(*overrides: str) -> Any:
    return load_warm_up(load_recipe("quickstart", overrides), overrides)


def test_it_is_the_recipe_with_another_objective_length_and_folder() -> None:
    assert warm_up() is None
    found = warm_up("--warm_up_steps", "7", "--early_stopping_patience", "2", "--learning_rate", "0.003")
    training = found.training
    assert (training.objective, training.max_steps, training.output_dir) == ("next_token", 7, "runs/quickstart/warm_up")
    assert (training.num_generations, training.learning_rate, training.beta) == (1, 0.003, 0.1)
    assert warm_up("--warm_up_steps", "7", "--entropy_coef", "0.1").training.entropy_coef is None
    assert (training.load_best_model_at_end, training.early_stopping_patience) == (False, None)  # it makes all steps
    assert "warm_up_steps" not in found.raw
    assert warm_up("--warm_up_steps", "7", "--resume_from_checkpoint", "auto").training.resume_from_checkpoint == "auto"


def test_the_dry_run_names_it() -> None:
    printed = str(check_recipe(load_recipe("quickstart", ["--warm_up_steps", "7"])))
    assert "warm-up:        7 updates of next-token training before, of 64 right answers each" in printed
    assert "KL 0.1 × policy_ref in the loss, from the start" in printed
    assert "warm-up" not in str(check_recipe(load_recipe("quickstart")))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--objective", "next_token"], "warm_up_steps comes before another objective than next_token"),
        (["--warm_up_steps", "-1"], "warm_up_steps must be at least 0"),
        (["--warm_up_steps", "some"], "warm_up_steps must be"),
        (["--adapter", "combination", "--experts", "[a, b]"], "warm_up_steps has no adapter: combination"),
        (["--tools", "[python]"], "warm_up_steps: objective: next_token trains on right answers of one turn"),
        (["--curriculum", "{min_words: [2, 3]}"], "warm_up_steps does not go with a curriculum"),
    ],
)
def test_what_does_not_go_is_refused_in_one_line(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = [] if "--warm_up_steps" in overrides else ["--warm_up_steps", "5"]
    assert message in refusal(run, "quickstart_tools" if "--tools" in overrides else "quickstart", [*steps, *overrides])
    assert not list(tmp_path.iterdir())


def test_rows_without_right_answers_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"prompt": f"{i}?"}) for i in range(80)))
    own = ["--task", "columns", "--data_path", str(tmp_path / "rows.jsonl"), "--rewards", "length", "--train_items",
           "64", "--output_dir", str(tmp_path / "run"), "--warm_up_steps", "5"]  # fmt: skip
    line = refusal(run, "quickstart", own, dry_run=True)
    assert line.startswith("warm_up_steps: columns (train): objective next_token needs targets to imitate")


def test_deepspeed_takes_a_model_over_for_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for stage in ("0", "2"):
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
        assert "does not go with DeepSpeed" in refusal(load_recipe, "quickstart", ["--warm_up_steps", "5"])


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ([], "base"),
        (["--warm_up_steps", "5"], "start"),
        (["--adapter_path", "there"], "start"),
        (["--adapter_path", "there", "--kl_reference", "base"], "base"),
        (["--adapter_path", "there", "--beta", "0"], "base"),  # no term
        (["--kl_reference", "start"], "start"),
        (["--adapter_path", "there", "--adapter", "full"], "base"),
    ],
)
def test_kl_is_towards_what_a_run_starts_from_unless_said_otherwise(overrides: list[str], wanted: str) -> None:
    recipe = load_recipe("quickstart", overrides)
    assert recipe.training.kl_reference == wanted
    notes = [line for line in recipe.warnings if "kl_reference" in line]
    assert len(notes) == ("full" in overrides)


def test_a_start_that_cannot_be_kept_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    full = ["--kl_reference", "start", "--adapter", "full"]
    assert "start does not go with adapter: full" in refusal(load_recipe, "quickstart", full)
    assert "kl_reference must be one of base, start" in refusal(load_recipe, "quickstart", ["--kl_reference", "here"])
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "does not go with ZeRO-3" in refusal(load_recipe, "quickstart", ["--kl_reference", "start"])
