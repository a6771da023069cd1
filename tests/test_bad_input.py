"""Whatever is wrong with the input: one line that says what to change, exit status 1, nothing half-written."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from svf_rl.cli import main
from svf_rl.errors import SVFError
from svf_rl.quickstart import model_path

SMALL = {
    "use_vllm": False, "per_device_train_batch_size": 8, "max_steps": 1, "validation_items": 4, "test_items": 4,
    "max_completion_length": 8, "disable_tqdm": True,
}  # fmt: skip


@pytest.fixture
def recipe(repository: Path, tmp_path: Path):
    """Write a small quickstart recipe with some keys changed (`None` removes one); its path."""

    def write(**changes) -> Path:
        values = yaml.safe_load((repository / "recipes/quickstart.yaml").read_text())
        values |= SMALL | {"output_dir": str(tmp_path / "run")} | changes
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return path

    return write


@pytest.fixture
def fails(recipe, tmp_path, capsys):
    """Run a changed recipe through `svf-rl train`; the one line that it ends with."""

    def run(*arguments: str, **changes) -> str:
        path = recipe(**changes)
        assert main(["train", str(path), *arguments]) == 1
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert not (tmp_path / "run").exists()
        return lines[0]

    return run


def test_unknown_key_names_the_nearest(fails):
    assert "learning_rate" in fails(learning_rat=1e-3)


def test_unknown_override_names_the_nearest(fails):
    assert "max_steps" in fails("--max_step", "3")


def test_missing_reward(fails):
    assert "exact_match" in fails(rewards=["exact_mach"])


def test_dataset_without_the_needed_column(fails, tmp_path):
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({"question": f"What is {i}?", "gold": str(i)}) + "\n" for i in range(64)))
    changes = {"task": "columns", "data_path": str(data), "prompt_column": "question", "skill": None}
    line = fails(**changes, rewards=[{"name": "numeric"}])
    assert "answer" in line
    assert "gold" in line


def test_batch_that_does_not_divide(fails):
    line = fails(per_device_train_batch_size=6)
    assert "6" in line
    assert "num_generations" in line


def test_targets_that_match_nothing(fails):
    assert "proj" in fails(target_modules=r".*\.feed_forward\..*")


def test_unsupported_objective_option(fails):
    assert "loss_type" in fails(loss_type="dr_grpo")


def test_reward_that_raises(fails, tmp_path):
    (tmp_path / "rewards.py").write_text("def broken(completions, **kwargs):\n    return {}['answer']\n")
    line = fails(rewards=[f"{tmp_path}/rewards.py:broken"])
    assert "broken" in line
    assert "KeyError" in line


def test_reward_that_returns_too_few_values(fails, tmp_path):
    (tmp_path / "rewards.py").write_text("def short(completions, **kwargs):\n    return [1.0]\n")
    line = fails(rewards=[f"{tmp_path}/rewards.py:short"])
    assert "short" in line
    assert "1" in line


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"generation_kwargs": {"temperature": 1.0}}, "temperature"),
        ({"attn_implementation": "no_such_attention"}, "no_such_attention"),
        ({"loss_type": "dapo"}, "loss_type"),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, "model_init_kwargs"),
        ({"top_p": 2.0}, "top_p"),
    ],
)
def test_settings_that_cannot_be_honoured(fails, changes, named):
    assert named in fails(**changes)


@pytest.mark.parametrize(
    ("processes", "changes", "named"),
    [("1", {}, "single_gpu.yaml"), ("2", {}, "use_vllm"), ("2", {"adapter": "combination"}, "zero2.yaml")],
)
def test_what_zero_3_cannot_do(fails, monkeypatch, processes, changes, named):
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setenv("WORLD_SIZE", processes)
    assert named in fails(**changes)


@pytest.mark.parametrize(
    ("processes", "size", "named"),
    [
        ("1", 2, "over 2 processes, and there is one"),
        ("2", 4, "(4) does not divide the number of processes (2)"),
        ("2", 0, "at least 1"),
    ],
)
def test_one_vllm_over_processes_that_do_not_suit(fails, monkeypatch, processes, size, named):
    monkeypatch.setenv("WORLD_SIZE", processes)
    assert named in fails(use_vllm=True, vllm_tensor_parallel_size=size)


def test_one_vllm_over_processes_that_the_model_does_not_suit(fails):
    line = fails("--dry-run", use_vllm=True, vllm_tensor_parallel_size=2)
    assert "(2) does not divide the model's 3 attention heads" in line


def test_an_environment_in_which_deepspeed_would_be_left_out(fails, monkeypatch):
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "true")
    assert "unset it" in fails()


@pytest.mark.parametrize("arguments", [(), ("--dry-run",), ("--resume",)])
def test_a_base_model_where_the_run_would_prune(recipe, tmp_path, capsys, arguments):
    base = shutil.copytree(model_path(), tmp_path / "run" / "checkpoint-1")
    path = recipe(model_name_or_path=str(base), save_steps=1, eval_steps=1, save_total_limit=1)
    assert main(["train", str(path), *arguments]) == 1
    assert "checkpoint-1 is no checkpoint of a run of svf_rl" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-1"]
    assert sorted(path.name for path in base.iterdir()) == sorted(path.name for path in model_path().iterdir())


def test_missing_model(fails, tmp_path):
    assert "no-such-model" in fails(model_name_or_path=str(tmp_path / "no-such-model"))


@pytest.fixture(scope="module")
def adapter(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the bundled model, saved by a run."""
    output = tmp_path_factory.mktemp("adapter") / "run"
    keys = [f"--{key}={json.dumps(value)}" for key, value in SMALL.items()]
    assert main(["train", str(repository / "recipes/quickstart.yaml"), *keys, "--output_dir", str(output)]) == 0
    return output


def test_an_adapter_goes_on_from_where_it_was_saved(adapter, recipe, tmp_path):
    assert main(["train", str(recipe(adapter_path=str(adapter)))]) == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_adapter_of_other_weights(adapter, fails, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from svf_rl.quickstart import model_path

    other = AutoModelForCausalLM.from_pretrained(model_path())
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(tmp_path / "other")
    line = fails(adapter_path=str(adapter), model_name_or_path=str(tmp_path / "other"))
    assert "other" in line
    assert "trained on other base weights" in line


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing"])
def test_corrupt_adapter(adapter, fails, tmp_path, damage):
    broken = tmp_path / "broken"
    shutil.copytree(adapter, broken)
    file = broken / "adapter_model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "garbage":
        file.write_bytes(b"\xff" * 1000)
    else:
        file.unlink()
    assert "broken" in fails(adapter_path=str(broken))


def test_an_adapter_that_contradicts_the_recipe(adapter, fails):
    assert "parameterization" in fails(adapter_path=str(adapter), parameterization="sigmoid")


def test_debug_shows_the_traceback(recipe):
    with pytest.raises(SVFError, match="nearest"):
        main(["train", str(recipe(learning_rat=1)), "--debug"])


def test_dry_run_prints_the_plan_and_writes_nothing(recipe, tmp_path, capsys):
    assert main(["train", str(recipe()), "--dry-run"]) == 0
    assert "864" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_decompose_reports_and_caches(capsys):
    assert main(["decompose", "quickstart", "--targets", "attention"]) == 0
    assert main(["decompose", "quickstart", "--targets", "attention"]) == 0
    assert "6 matrices, 6 of them cached before" in capsys.readouterr().out
    assert main(["decompose", "quickstart", "--targets", "nothing_like_it"]) == 1
    assert "nearest" in capsys.readouterr().err
