"""The dry run: what it finds out without weights and without the network, and what it refuses."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch  # noqa: F401  (a condition below names it)
from fakes import SIZES, refusal
from transformers import Qwen2Config

from svf_rl.quickstart import model_path
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.settings.dry_run import DryRun, check_recipe, count_updates
from svf_rl.settings.dry_run_model import find_adapted_matrices
from svf_rl.settings.recipe import load_recipe


@pytest.fixture
def plan(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The plan of the quickstart recipe with overrides, from an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def plan(*overrides: str) -> DryRun:
        return check_recipe(load_recipe(repository / "recipes" / "quickstart.yaml", overrides))

    return plan


def test_the_quickstart_plan_says_what_a_run_would_do(plan, tmp_path: Path) -> None:
    got = plan()
    assert (got.matrices, got.trainable_values) == (9, 864)
    assert got.rows == {"train": 2048, "validation": 128, "test": 512}
    assert (got.prompts_per_update, got.sequences_per_update, got.updates) == (16, 64, 30)
    assert got.rewards == [("numeric", 1.0)]
    text = str(got)
    for part in ("864 in 9 matrices", "16 prompts, 64 sequences", "30", "numeric × 1", "runs/quickstart"):
        assert part in text
    assert list(tmp_path.iterdir()) == []  # no output directory, nothing else either


def test_a_bonus_of_entropy_is_named(plan) -> None:
    assert "in the loss, entropy bonus 0.01, learning rate" in str(plan("--entropy_coef", "0.01"))


def test_no_weights_are_read(plan, tmp_path: Path) -> None:
    shutil.copy(model_path() / "config.json", tmp_path)
    assert plan("--model_name_or_path", str(tmp_path)).trainable_values == 864


def test_lora_counts_its_own_values(plan) -> None:
    assert plan("--adapter", "lora", "--lora_r", "8").trainable_values == 25_344


def test_targets_may_be_a_list_or_those_of_a_saved_adapter(plan, tmp_path: Path) -> None:
    assert plan("--target_modules", "[down_proj]").matrices == 3
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 32, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    saved = ["--adapter_path", str(tmp_path), "--adapter", "lora", "--lora_r", "2"]
    got = plan(*saved, "--target_modules", r".*\.q_proj")
    assert (got.matrices, got.trainable_values) == (3, 3 * 2 * (96 + 96))
    assert 'target_modules: ["q_proj"] there, "mlp" here' in refusal(plan, *saved)
    assert "holds a LORA adapter, the recipe says adapter: svf" in refusal(plan, *saved, "--adapter", "svf")


def test_targets_that_match_nothing(plan) -> None:
    assert "'ffn' match no module path" in refusal(plan, "--target_modules", "ffn")


def test_options_that_svf_does_not_have(plan) -> None:
    assert "max_multiplier" in refusal(plan, "--parameterization", "sigmoid", "--max_multiplier", "0.5")


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (["--core", "top:5"], 9 * 5),
        (["--core", "projected:13"], 13),
        (["--core", "band:1"], 864 + 9 * 2 * 95),
        (["--core", "block:4:random"], 9 * 16),
        (["--biases", "true", "--use_vllm", "false"], 864 + 3 * (256 + 256 + 96)),
        (["--adapter", "lora", "--lora_r", "1", "--lora_use_dora", "true"], 9 * (256 + 96) + 3 * (256 + 256 + 96)),
        (["--adapter", "full"], 9 * 256 * 96),
    ],
    ids=str,
)
def test_other_cores_and_the_baselines_count_theirs(plan, options: list[str], values: int) -> None:
    assert plan(*options).trainable_values == values


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (["--adapter", "lora", "--core", "top:8", "--biases"], "core, biases, parameterization"),
        (["--adapter", "full", "--core", "band:1", "--lora_r", "1"], "core, parameterization, lora_r"),
        (["--lora_use_dora", "--alpha_scope", "layer"], "lora_use_dora, alpha_scope"),
    ],
    ids=str,
)
def test_keys_of_other_adapters_are_named(plan, options: list[str], keys: str) -> None:
    kind = options[1] if options[0] == "--adapter" else "svf"
    assert f"{keys}: not read for adapter {kind}" in plan(*options).notes


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (["--curriculum", "{a: [1, 2]}", "--dataset", "foo"], "curriculum, dataset: not read for task quickstart"),
        (["--mixture", "{gsm8k: 1}", "--prompt_column", "q"], "mixture, prompt_column: not read for task quickstart"),
        (["--task", "gsm8k", "--classes", "{a: b}"], "classes, skill: not read for task gsm8k"),  # the recipe's skill
        (["--task", "mixture", "--mixture", "{quickstart: 1}", "--dataset", "x"], "dataset: not read for task mixture"),
    ],
    ids=str,
)
def test_keys_of_other_tasks_are_named(plan, options: list[str], note: str) -> None:
    assert note in plan(*options).notes


def test_keys_that_the_task_reads_and_keys_without_a_value_are_not_named(plan) -> None:
    assert not any("not read for task" in note for note in plan("--wording", "reworded", "--dataset", "null").notes)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--core", "topp:3"], "core must be diagonal, top:k"),
        (["--core", "top:0"], "core must be diagonal, top:k"),
        (["--core", "band:x"], "core must be diagonal, top:k"),
        (["--core", "top:9999"], "the most that the adapted matrices allow (model.layers.0.mlp.gate_proj has rank 96)"),
        (["--core", "top:3", "--parameterization", "sigmoid"], "core: top:3 goes with parameterization: direct"),
        (["--core", "band:1", "--vllm_weights", "shared", "--use_vllm", "true"], "does not go with core: band:1"),
        (["--biases", "true", "--vllm_weights", "shared", "--use_vllm", "true"], "does not go with biases: true"),
        (["--adapter", "full", "--vllm_weights", "shared", "--use_vllm", "true"], "an adapter other than SVF"),
        (["--adapter", "full", "--layers_to_transform", "[0]"], "adapter: full takes an expression"),
    ],
    ids=str,
)
def test_cores_and_baselines_that_do_not_suit(plan, options: list[str], says: str) -> None:
    assert says in refusal(plan, *options)


def test_biases_that_vllm_has_no_place_for_are_said_before_it_starts(plan, repository: Path, tmp_path: Path) -> None:
    """Qwen2 has biases in its attention and none in its feed-forward blocks."""
    assert "model.layers.0.mlp.gate_proj has no bias in the base model" in refusal(plan, "--biases", "true")
    Qwen2Config(**{**SIZES, "max_position_embeddings": 512}).save_pretrained(tmp_path)

    def values(*options: str) -> int:
        options = ("--model_name_or_path", str(tmp_path), "--biases", "true", *options)
        return find_adapted_matrices(load_recipe(repository / "recipes/quickstart.yaml", options), []).trained_values

    assert "model.layers.0.mlp.gate_proj has no bias in the base model" in refusal(values)
    assert values("--use_vllm", "false") == 2 * (3 * 32 + 48 + 48 + 32)
    assert values("--target_modules", "attention") == 2 * (32 + 16 + 32 + 16)


def test_a_missing_reward(plan) -> None:
    assert "unknown reward 'exact_mach'; did you mean 'exact_match'?" in refusal(plan, "--rewards", "exact_mach")
    assert "none.py does not exist" in refusal(plan, "--rewards", "none.py:score")
    assert "rewards is empty" in refusal(plan, "--rewards", "[]")


def test_a_dataset_without_the_column_that_a_reward_needs(plan) -> None:
    message = refusal(plan, "--rewards", "{name: exact_match, column: gold}")
    assert message == "reward 'exact_match' needs the column 'gold'; the data has: answer, skill, target"


def test_a_reward_cannot_read_the_prompt_column(plan, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(completions, prompt):\n    return [0.0] * len(completions)\n")
    assert "needs the column 'prompt'" in refusal(plan, "--rewards", "mine.py:score")


def test_rewards_carry_their_weights(plan) -> None:
    got = plan("--rewards", "[{name: numeric, weight: 0.5}, exact_match]")
    assert got.rewards == [("numeric", 0.5), ("exact_match", 1.0)]


def test_too_few_rows_for_one_batch(plan) -> None:
    message = refusal(plan, "--train_items", "15")
    assert "15 training rows do not fill one generation batch of 16 prompts" in message
    assert "lower per_device_train_batch_size or steps_per_generation" in message


def test_a_model_folder_that_is_not_there_or_is_none(plan, tmp_path: Path) -> None:
    assert "does not exist" in refusal(plan, "--model_name_or_path", "./nowhere")
    assert "config.json" in refusal(plan, "--model_name_or_path", str(tmp_path))


def test_an_adapter_folder_that_is_not_there_or_is_none(plan, tmp_path: Path) -> None:
    assert "does not exist" in refusal(plan, "--adapter_path", "./nowhere")
    assert "give its name on the Hub" in refusal(plan, "--push_to_hub", "true", "--model_name_or_path", str(tmp_path))
    assert "adapter_config.json" in refusal(plan, "--adapter_path", str(tmp_path))


def test_lengths_beyond_the_model_are_refused(plan) -> None:
    assert "2048 positions" in refusal(plan, "--max_completion_length", "4096")


def test_what_needs_the_network_is_said_to_be_unchecked(plan) -> None:
    hub_data = plan("--task", "gsm8k")
    assert hub_data.rows is None
    assert any("Hub" in note for note in hub_data.notes)
    own_data = plan("--task", "columns", "--dataset_name", "some/data", "--rewards", "exact_match")
    assert any("some/data" in note and "not checked" in note for note in own_data.notes)
    hub_model = plan("--model_name_or_path", "nobody/no-such-model")
    assert hub_model.matrices is None
    assert "not checked" in str(hub_model)


def test_the_declared_columns_of_a_hub_task_are_checked(plan) -> None:
    assert "'gold'" in refusal(plan, "--task", "gsm8k", "--rewards", "{name: exact_match, column: gold}")


@pytest.mark.parametrize(
    ("settings", "rows", "updates"),
    [
        ({"max_steps": 7}, 1000, 7),
        ({"max_steps": 7}, None, 7),
        ({"num_train_epochs": 2}, None, None),
        ({"num_train_epochs": 2}, 35, 4),  # 16 prompts a batch: two whole ones, three rows left over
        ({"num_train_epochs": 0.5}, 64, 2),
        ({"num_train_epochs": 1, "gradient_accumulation_steps": 4}, 128, 2),
        # 3 generations of 2 micro-batches: the last update of an epoch has one of them
        ({"num_train_epochs": 3, "gradient_accumulation_steps": 4, "steps_per_generation": 2}, 96, 6),
    ],
)
def test_updates_follow_from_the_rows_and_the_batch(settings, rows: int | None, updates: int | None) -> None:
    training = SVFReinforceConfig(
        output_dir="unused", use_cpu=True, per_device_train_batch_size=64, num_generations=4, **settings
    )
    assert count_updates(training, rows) == updates


def test_a_task_for_evaluation_alone_is_not_trained_on(plan, shared_data: Path) -> None:
    for data in ([], ["--data_dir", str(shared_data)]):
        assert "humaneval has no training rows" in refusal(plan, "--task", "humaneval", *data)


@pytest.mark.parametrize(
    ("answers", "reward", "message"),
    [
        (["1", "2", "", "4"], "numeric", "columns (train), row 2: numeric: an answer is empty"),
        (
            ["1", None, "3", "4"],
            "exact_match",
            "columns (train), row 1: exact_match: an answer must be text, not NoneType",
        ),
        (
            ["1", "2", "3", "four"],
            "numeric",
            "columns (train), row 3: numeric: the answer 'four' does not give one number",
        ),
        ([["1"], ["2"], ["3"], ["4"]], "numeric", "columns (train), row 0: numeric: an answer must be text, not list"),
    ],
)
def test_an_answer_that_no_completion_could_match_is_named_before_the_run(
    plan, tmp_path: Path, answers: list, reward: str, message: str
) -> None:
    for split, rows in (("train", answers), ("validation", ["1"] * 4)):
        lines = [json.dumps({"prompt": "?", "answer": answer if split == "train" else answers[0]}) for answer in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    said = refusal(plan, "--task", "columns", "--data_path", str(tmp_path), "--rewards", reward)
    assert said.startswith(message)


def test_a_mixture_is_planned_like_any_task(plan) -> None:
    mixture = "{'quickstart:math': 3, 'quickstart:choice': 1}"
    got = plan("--task", "mixture", "--mixture", mixture, "--train_items", "64")
    assert got.rows["train"] == 64
    assert got.rewards == [("verified", 1.0)]


def test_a_machine_without_bubblewrap_is_noted_where_programs_are_to_be_run(plan, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    code = ["--task", "mbpp", "--rewards", "unit_tests"]
    assert any("bubblewrap" in note for note in plan(*code).notes)
    assert not any("bubblewrap" in note for note in plan().notes)


# ---- a model that is too large for a CPU -----------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path) -> str:
    """The folder of a configuration of 1.3 billion parameters."""
    values = json.loads((model_path() / "config.json").read_text())
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32}
    (tmp_path / "large").mkdir()
    (tmp_path / "large/config.json").write_text(json.dumps(values | sizes | {"num_key_value_heads": 32}))
    return str(tmp_path / "large")


@pytest.mark.skipif("torch.cuda.is_available()", reason="needs a machine without a GPU")
def test_a_large_model_without_a_gpu_is_refused_unless_the_cpu_is_meant(plan, large: str) -> None:
    assert "give --device cpu" in plan("--model_name_or_path", large).refusal
    assert plan("--model_name_or_path", large, "--device", "cpu").refusal == ""
    assert plan("--model_name_or_path", large, "--use_cpu").refusal == ""
    assert plan().refusal == ""


def test_a_plan_for_gpus_is_not_one_for_this_machine(repository: Path, large: str) -> None:
    recipe = load_recipe(repository / "recipes/quickstart.yaml", ["--model_name_or_path", large], gpus=1)
    assert check_recipe(recipe).refusal == ""


# ---- where metrics go ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow", "flyte"])
def test_a_reporter_that_is_not_installed_is_named(plan, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if name in package else find(package))
    assert f"report_to: {name} needs a package that is not installed: pip install {name}" in refusal(
        plan, "--report_to", f"[tensorboard, {name}]"
    )


def test_a_reporter_that_nothing_has_is_refused(plan) -> None:
    assert "report_to: 'wandbb' is not known: give none, or one of " in refusal(plan, "--report_to", "wandbb")
    assert plan("--report_to", "none").matrices == plan("--report_to", "tensorboard").matrices


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model's folder, to change files in."""
    return Path(shutil.copytree(model_path(), tmp_path / "model"))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"model_type": "t5"}, "is a t5 model, for which transformers has no causal language model"),
        ({"model_type": "vit"}, "is a vit model"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "nosuch"}}, "nosuch"),
    ],
)
def test_a_model_that_cannot_be_built(plan, model: Path, settings: dict, part: str) -> None:
    config = json.loads((model / "config.json").read_text())
    if "model_type" in settings:
        config = {}
    (model / "config.json").write_text(json.dumps({**config, **settings}))
    assert part in refusal(plan, "--model_name_or_path", str(model))


def test_an_attention_that_transformers_does_not_have(plan) -> None:
    assert "attn_implementation 'nosuch'" in refusal(plan, "--attn_implementation", "nosuch")


def test_modules_to_save_that_do_not_exist(plan) -> None:
    message = refusal(plan, "--modules_to_save", "[norms]")
    assert message == "modules_to_save: no module is called 'norms'; did you mean 'norm'?"


def test_layers_that_do_not_exist(plan) -> None:
    assert "layers_to_transform" in refusal(plan, "--layers_to_transform", "[99]")


def test_an_adapter_beside_the_model(plan, model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    assert "holds a model and an adapter" in refusal(plan, "--model_name_or_path", str(model))
