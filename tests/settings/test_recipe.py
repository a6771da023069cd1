"""What a recipe may say, and the one line that comes back when it says something else."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.utils.other import get_free_port
from fakes import refusal

from svf_rl.errors import SVFError
from svf_rl.quickstart import model_path
from svf_rl.settings import recipe_checks
from svf_rl.settings.recipe import _ELSEWHERE, _PARTS, Recipe, check_batch, load_recipe
from svf_rl.settings.recipe_checks import check_launcher
from svf_rl.settings.without_gpu import drop_gpu_keys

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a recipe, and load it from another working directory."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    folder = tmp_path / "recipes"
    folder.mkdir()

    def write(text: str, *overrides: str) -> Recipe:
        path = folder / "mine.yaml"
        path.write_text(text)
        return load_recipe(path, overrides)

    return write


def test_an_empty_recipe_trains_the_bundled_model_with_svf(write) -> None:
    recipe = write("{}")
    assert recipe.model.location == str(model_path())
    assert recipe.adapter.adapter == "svf"
    assert recipe.training.output_dir == "runs/mine"


def test_each_key_goes_to_the_part_that_has_it(write) -> None:
    recipe = write("model_name_or_path: a/b\nlora_r: 4\ntask: gsm8k\nbeta: 0.2\nskill: code\n")
    assert recipe.model.location == "a/b"
    assert recipe.adapter.lora_r == 4
    assert (recipe.data.task, recipe.data.skill) == ("gsm8k", "code")
    assert recipe.training.beta == 0.2


def test_a_key_of_two_parts_reaches_both(write) -> None:
    recipe = write("trust_remote_code: true")
    assert recipe.model.trust_remote_code
    assert recipe.training.trust_remote_code


def test_loading_makes_no_output_directory(write, tmp_path: Path) -> None:
    write(f"output_dir: {tmp_path}/run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("learning_rate: 1e-3", "learning_rate", 1e-3),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("max_steps: 1e2", "max_steps", 100),
        ("gradient_checkpointing: no", "gradient_checkpointing", False),
        ("eval_strategy: no", "eval_strategy", "no"),
        ("vllm_max_model_length: null", "vllm_max_model_length", None),
        ("lr_scheduler_kwargs: {a: 1e-1}", "lr_scheduler_kwargs", {"a": 0.1}),
    ],
)
def test_values_take_the_type_of_their_field(write, line: str, key: str, value: object) -> None:
    got = getattr(write(line).training, key)
    assert got == value
    assert type(got) is type(value) or key == "eval_strategy"


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["--seed", "7"], "seed", 7),
        (["--seed=7"], "seed", 7),
        (["--seed", "6", "--seed", "7"], "seed", 7),
        (["--learning-rate", "1e-3"], "learning_rate", 1e-3),
        (["--log_completions"], "log_completions", True),
        (["--log_completions", "--seed", "7"], "log_completions", True),
        (["--log_completions", "false"], "log_completions", False),
        (["--run_name", "007"], "run_name", "007"),
        (["--run_name", "2024-01-01"], "run_name", "2024-01-01"),
        (["--run_name", "a #1"], "run_name", "a #1"),
        (["--run_name", "[draft"], "run_name", "[draft"),
        (["--report_to", "[tensorboard, wandb]"], "report_to", ["tensorboard", "wandb"]),
        (["--eval_strategy", "no"], "eval_strategy", "no"),
    ],
)
def test_every_key_can_be_overridden_on_the_command_line(write, overrides, key: str, value: object) -> None:
    assert getattr(write("seed: 1\nrun_name: x\n", *overrides).training, key) == value


def test_rewards_are_names_or_mappings_or_one_of_them_alone(write) -> None:
    assert write("rewards: exact_match").data.rewards == ["exact_match"]
    mapping = {"name": "exact_match", "wrong": -1, "weight": 0.5}
    assert write(f"rewards: [a, {mapping}]").data.rewards == ["a", mapping]
    assert write("{}", "--rewards", "{name: exact_match, wrong: -1, weight: 0.5}").data.rewards == [mapping]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("load_in_4bit", "a recipe loads no quantised weights"),
        ("bnb_4bit_compute_dtype", "a recipe loads no quantised weights"),
        ("lr", "it is called 'learning_rate' here"),
        ("batch_size", "it is called 'per_device_train_batch_size' here"),
        ("zzzzzzzz", "none is spelt like it"),
    ],
)
def test_a_key_of_other_tools_says_what_there_is_here(write, key: str, said: str) -> None:
    line = refusal(write, f"{key}: 1")
    assert line.startswith(f"unknown recipe key '{key}'")
    assert said in line


def test_each_name_of_other_tools_leads_to_a_key_that_there_is() -> None:
    names = {name for name in _ELSEWHERE.values() if " " not in name}
    assert names <= {field.name for part in _PARTS for field in dataclasses.fields(part)}


def test_an_unknown_key_names_the_nearest_one(write) -> None:
    assert refusal(write, "learnin_rate: 1") == "unknown recipe key 'learnin_rate'; the nearest one is 'learning_rate'"
    assert "'num_generations'" in refusal(write, "{}", "--num_generation", "2")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed: 1\nbeta: 0.1\nseed: 2\n", ["'seed' appears twice", "line 3"]),
        ("rewards: [{name: a, name: b}]", ["'name' appears twice"]),
        ("- seed\n", ["must be a mapping"]),
        ("", ["must be a mapping"]),
        ("seed: [1\n", ["not valid YAML"]),
        ("seed: one", ["seed must be an integer", "'one'", "str"]),
        ("seed: 1.5", ["seed must be an integer", "1.5"]),
        ("seed: true", ["seed must be an integer", "True"]),
        ("max_steps: 0", ["max_steps must be at least 1, or -1 for num_train_epochs, not 0"]),
        ("max_steps: -5", ["max_steps must be at least 1"]),
        ("output_dir: null", ["output_dir must not be empty"]),
        ("seed: null", ["seed must be an integer", "null"]),
        ("use_vllm: 1", ["use_vllm must be true or false"]),
        ("run_name: 3", ["run_name must be", "string", "3"]),
        ("dtype: fp32", ["dtype must be float32 or", "'fp32'"]),
        ("adapter: dora", ["unknown adapter 'dora'", "combination, full, lora, svf"]),
        ("eval_strategy: step", ["eval_strategy must be no or steps or epoch", "'step'"]),
        ("advantage: best", ["advantage must be one of"]),
        ("loss_type: grpo", ["loss_type", "remove it"]),
        ("reward_weights: [1]", ["reward_weights", "rewards"]),
        ("load_best_model_at_end: true\neval_strategy: steps\neval_steps: 10\nsave_steps: 15", ["15", "10"]),
    ],
)
def test_bad_recipes_end_in_one_line(write, text: str, parts: list[str]) -> None:
    message = refusal(write, text)
    for part in parts:
        assert part in message


def test_bad_overrides_end_in_one_line(write) -> None:
    assert refusal(write, "{}", "seed", "1") == "expected --key value after the recipe, got 'seed'"
    assert refusal(write, "{}", "--seed") == "--seed needs a value"
    assert "seed must be an integer" in refusal(write, "{}", "--seed", "one")
    assert "output_dir must not be empty" in refusal(write, "{}", "--output_dir=")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SVFError, match=r"recipe .*none\.yaml cannot be read: No such file or directory"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        ("per_device_train_batch_size: 6\nnum_generations: 4", ["(6)", "num_generations (4)", "change"]),
        ("per_device_train_batch_size: 3\nnum_generations: 1\nadvantage: none", ["(3)", "pairs", "change"]),
        ("generation_batch_size: 10\nper_device_train_batch_size: 4", ["(10)", "(4)", "change"]),
        ("generation_batch_size: 12\nper_device_train_batch_size: 4\nnum_generations: 8", ["(12)", "(8)", "change"]),
        ("num_generations: null", ["num_generations must be at least 1"]),
        ("gradient_accumulation_steps: 0", ["gradient_accumulation_steps must be at least 1"]),
    ],
)
def test_a_batch_that_does_not_divide_names_the_numbers(write, lines: str, parts: list[str]) -> None:
    message = refusal(write, lines)
    for part in parts:
        assert part in message


def test_evaluation_has_no_batch_size_of_its_own_to_match(write) -> None:
    assert write("per_device_train_batch_size: 6\nnum_generations: 3\neval_strategy: steps").training.do_eval


def test_processes_count_in_the_batch() -> None:
    values = {"per_device_train_batch_size": 2, "num_generations": 4}
    check_batch(values, processes=2)
    with pytest.raises(SVFError, match=r"processes \(3\)"):
        check_batch(values, processes=3)


@on_cpu
def test_gpu_only_keys_turn_off_with_a_warning_each(write) -> None:
    recipe = write("bf16: true\nvllm_enable_sleep_mode: true\nvllm_gpu_memory_utilization: 0.9\ndtype: bfloat16\n")
    assert recipe.training.bf16 is False
    assert recipe.training.vllm_enable_sleep_mode is False
    assert recipe.model.dtype == "float32"
    assert len(recipe.warnings) == 4
    assert recipe.raw["dtype"] == "float32"


@on_cpu
def test_half_precision_asked_for_on_the_command_line_stays(write) -> None:
    recipe = write("dtype: float32", "--dtype", "bfloat16")
    assert recipe.model.dtype == "bfloat16"
    assert recipe.warnings == []


def test_flash_attention_falls_back_without_a_gpu() -> None:
    values, warnings = drop_gpu_keys({"attn_implementation": "flash_attention_2", "seed": 1, "tf32": False})
    assert values == {"attn_implementation": "sdpa", "seed": 1, "tf32": False}
    assert len(warnings) == 1


def test_files_are_found_from_the_working_directory_first_then_beside_the_recipe(write, tmp_path: Path) -> None:
    beside = tmp_path / "recipes"
    (beside / "rows.jsonl").write_text("{}\n")
    (beside / "mine.py").write_text("")
    text = "data_path: rows.jsonl\nrewards: [mine.py:score, {name: 'mine.py:score', weight: 2}, exact_match]\n"
    data = write(text).data
    assert data.data_path == str(beside / "rows.jsonl")
    assert data.rewards == [
        f"{beside}/mine.py:score", {"name": f"{beside}/mine.py:score", "weight": 2}, "exact_match"
    ]  # fmt: skip
    Path("rows.jsonl").write_text("{}\n")
    Path("mine.py").write_text("")
    data = write(text).data
    assert data.data_path == "rows.jsonl"
    assert data.rewards[0] == "mine.py:score"


@pytest.mark.parametrize("name", ["quickstart", "llama3_math"])
def test_the_recipes_of_this_repository_load_and_every_key_counts(repository: Path, name: str) -> None:
    path = repository / "recipes" / f"{name}.yaml"
    recipe = load_recipe(path)
    written = yaml.safe_load(path.read_text())
    assert recipe.training.load_best_model_at_end
    assert recipe.training.metric_for_best_model == "eval_accuracy"
    assert recipe.training.seed == written["seed"]


def test_llama3_math_follows_the_paper(repository: Path) -> None:
    recipe = load_recipe(repository / "recipes" / "llama3_math.yaml")
    training = recipe.training
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 256
    assert (training.num_generations, training.advantage, training.temperature) == (1, "none", 1.0)
    assert (training.learning_rate, training.max_grad_norm, training.beta) == (2e-3, 1e-3, 0.1)
    assert (training.kl_type, training.loss_reduction) == ("policy_ref", "sum")


def test_greedy_rollouts_turn_the_mismatch_correction_off(repository: Path) -> None:
    recipe = load_recipe(repository / "recipes" / "llama3_math.yaml", ["--temperature", "0"])
    assert recipe.training.vllm_importance_sampling_correction is False


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE=2", "without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT", "unset"]),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, ["without MASTER_ADDR, MASTER_PORT"]),
        ({"RANK": "first"}, ["RANK is 'first' in the environment", "no number"]),
        ({"ACCELERATE_USE_FSDP": "true"}, ["FSDP is not supported", "ZeRO"]),
        (
            {
                "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            },
            ["no launcher answers at 127.0.0.1:1", "unset WORLD_SIZE"],
        ),
    ],
)  # fmt: skip
def test_what_a_launcher_has_left_in_the_environment_is_not_waited_for(
    write, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], parts: list[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    message = refusal(write, "per_device_train_batch_size: 8")
    for part in parts:
        assert part in message


ALONE = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        ({}, ["WORLD_SIZE=2", "only 1 came to 127.0.0.1:", "MASTER_ADDR, MASTER_PORT", "unset WORLD_SIZE"]),
        ({"RANK": "1", "LOCAL_RANK": "1"}, ["answers at 127.0.0.1:", "MASTER_ADDR, MASTER_PORT", "unset WORLD_SIZE"]),
        ({"RANK": "1", "MASTER_ADDR": "nosuch.invalid"}, ["answers at nosuch.invalid:", "MASTER_ADDR"]),
        ({"MASTER_PORT": "70000"}, ["70000 is no port", "MASTER_PORT"]),
        ({"RANK": "2"}, ["RANK=2 and WORLD_SIZE=2"]),
    ],
)
def test_processes_that_never_come_are_waited_for_a_while(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], parts: list[str]
) -> None:
    monkeypatch.setattr(recipe_checks, "_OTHERS_SECONDS", 0.5)
    # as at a start: another test's vLLM may have made a process group here
    monkeypatch.setattr(recipe_checks.distributed, "is_initialized", lambda: False)
    for name, value in {**ALONE, "MASTER_PORT": str(get_free_port()), **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SVFError) as error:
        check_launcher()
    for part in parts:
        assert part in str(error.value)


@pytest.mark.distributed
def test_a_process_that_starts_slowly_is_waited_for(repository: Path) -> None:
    script = "import sys, time; time.sleep(float(sys.argv[1])); from svf_rl.settings.recipe_checks import *; "
    script += "check_launcher(); import torch.distributed as d; d.init_process_group('gloo'); "
    script += "print(d.get_world_size(), time.monotonic()); d.barrier()"
    shared = {**os.environ, **ALONE, "MASTER_PORT": str(get_free_port()), "PYTHONPATH": str(repository)}
    started = [
        subprocess.Popen([sys.executable, "-c", script, delay], env={**shared, "RANK": rank}, stdout=subprocess.PIPE)
        for rank, delay in (("0", "0"), ("1", "3"))
    ]
    said = [process.communicate(timeout=120)[0].split() for process in started]
    assert [(process.returncode, words[0]) for process, words in zip(started, said, strict=True)] == [(0, b"2")] * 2
    assert abs(float(said[0][1]) - float(said[1][1])) < 2.0  # they went on together


def test_the_launcher_of_this_process_answers(write, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as launcher:
        port = str(launcher.getsockname()[1])
        for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port), ("WORLD_SIZE", "2"), ("RANK", "1")):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        check_launcher()


@pytest.mark.parametrize("key", ["fsdp: full_shard", "deepspeed: zero.json", "torch_compile: true", "local_rank: 0"])
def test_what_is_not_for_a_recipe(write, key: str) -> None:
    assert key.split(":")[0] in refusal(write, key)
