"""The commands a user types, run as they are typed."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from fakes import read_metrics
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import svf_rl.svf  # noqa: F401  (registers SVF with PEFT)
from svf_rl.cli import main
from svf_rl.quickstart import make_rows, model_path
from svf_rl.rewards import load_reward

SMALL = ["--validation_items", "16", "--test_items", "32", "--max_steps", "2", "--eval_steps", "2", "--save_steps", "2"]


ACCELERATE = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]


def launch(repository: Path, *arguments: str, launcher: Sequence[str] = ACCELERATE) -> str:
    """`accelerate launch … svf_rl/train.py recipes/…` from the repository, in processes of its own; its output."""
    done = subprocess.run(
        [sys.executable, *launcher, "svf_rl/train.py", *arguments],
        cwd=repository,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def train(repository: Path, recipe: str, *arguments: str) -> None:
    """`svf-rl train recipes/…`, in this process."""
    assert main(["train", str(repository / "recipes" / recipe), *arguments]) == 0


@pytest.fixture(scope="module")
def quickstart(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("quickstart") / "run"
    return output, launch(repository, "recipes/quickstart.yaml", "--output_dir", str(output))


@pytest.mark.vllm
def test_the_quickstart_gains_at_least_15_points(quickstart):
    output, printed = quickstart
    summary = json.loads((output / "summary.json").read_text())
    assert summary["items"] >= 500
    assert summary["accuracy"] - summary["base_accuracy"] >= 0.15
    assert f"{summary['base_accuracy']:.3f} before, {summary['accuracy']:.3f} after" in printed


@pytest.mark.vllm
def test_the_curve_starts_at_the_base_model(quickstart):
    steps = [line["step"] for line in read_metrics(quickstart[0]) if "eval_accuracy" in line]
    assert steps == [0, 10, 20, 30]


@pytest.mark.vllm
def test_nothing_is_printed_that_says_nothing_to_a_user(quickstart):
    noise = ("Triton", "NUMA", "real_accelerator", "pin_memory", "nanobind", "checkpoint shards", "Warning")
    assert not [line for line in quickstart[1].splitlines() for text in noise if text in line]


@pytest.mark.vllm
def test_the_summary_says_what_was_run(quickstart):
    summary = json.loads((quickstart[0] / "summary.json").read_text())
    assert summary["recipe"]["skill"] == "math"
    assert summary["seed"] == 0
    assert {"torch", "trl", "peft", "transformers"} <= set(summary["packages"])
    assert {"load", "decompose", "engine", "base_evaluation", "train", "evaluation"} == set(summary["seconds"])
    assert "git_commit" in summary


@pytest.mark.vllm
def test_the_reported_accuracy_is_that_of_the_saved_adapter(quickstart):
    """Another process, another generator: plain transformers with the adapter from disk."""
    output, _ = quickstart
    summary = json.loads((output / "summary.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(model_path(), padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, output).eval()
    rows = make_rows("math", "test", summary["items"])
    chats = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    correct = load_reward({"name": "numeric"})(prompts=chats, completions=texts, answer=[row["answer"] for row in rows])
    assert sum(correct) / len(correct) == pytest.approx(summary["accuracy"], abs=0.005)


@pytest.mark.vllm
def test_one_seed_decides_everything(repository, tmp_path):
    """In a process of its own, and in this one, after whatever was done in it before."""
    own = [*SMALL, "--seed", "3", "--output_dir"]
    launch(repository, "recipes/quickstart.yaml", *own, str(tmp_path / "first"))
    train(repository, "quickstart.yaml", *own, str(tmp_path / "second"))
    assert read_metrics(tmp_path / "first") == read_metrics(tmp_path / "second")
    assert len(read_metrics(tmp_path / "first")) >= 4
    adapters = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("first", "second")]
    assert adapters[0] == adapters[1]


@pytest.mark.vllm
def test_llama3_math_on_real_gsm8k_rows_with_only_model_data_and_sizes_changed(repository, shared_data, tmp_path):
    train(
        repository,
        "llama3_math.yaml",
        *("--model_name_or_path", "quickstart", "--data_path", str(shared_data / "gsm8k")),
        *("--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2", "--max_steps", "20"),
        *("--max_completion_length", "48", "--validation_items", "16", "--test_items", "32"),
        *("--vllm_enforce_eager", "true", "--output_dir", str(tmp_path / "run")),
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["updates"] == 20
    assert summary["items"] == 32
    updates = [line for line in read_metrics(tmp_path / "run") if "reward" in line]
    assert all(-1 <= line["reward"] <= 1 for line in updates)
    assert updates[0]["kl"] == 0
    assert updates[-1]["kl"] > 0


@pytest.mark.usefixtures("bubblewrap")
@pytest.mark.vllm
@pytest.mark.parametrize(
    ("recipe", "length", "reward"), [("llama3_code", "24", "unit_tests"), ("llama3_reasoning", "16", "choice")]
)
def test_other_recipes_on_real_rows_with_only_model_data_and_sizes_changed(
    recipe, length, reward, repository, shared_data, tmp_path
):
    train(
        repository,
        f"{recipe}.yaml",
        *("--model_name_or_path", "quickstart", "--data_dir", str(shared_data)),
        *("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--max_steps", "2"),
        *("--max_completion_length", length, "--validation_items", "4", "--test_items", "8"),
        *("--eval_steps", "2", "--save_steps", "2"),
        *("--vllm_enforce_eager", "true", "--output_dir", str(tmp_path / "run")),
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["updates"], summary["items"]) == (2, 8)
    updates = [line for line in read_metrics(tmp_path / "run") if "reward" in line]
    assert len(updates) == 2
    # every completion was graded, right or wrong
    assert all(-1 <= line["reward"] <= 1 and line["unscorable"] == 0 for line in updates)
    assert all(line[f"checks_failed/{reward}"] == 0 for line in updates)
    assert updates[0]["kl"] == 0
    z = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all((value - 1).abs().max() > 0 for key, value in z.items() if "svf_z" in key)


@pytest.mark.vllm
def test_the_same_trainer_trains_lora(repository, tmp_path):
    lora = ["--adapter", "lora", "--lora_r", "8", "--learning_rate", "2e-3"]
    train(repository, "quickstart.yaml", *SMALL, *lora, "--output_dir", str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    updates = [line for line in read_metrics(tmp_path / "run") if "reward" in line]
    # vLLM holds the LoRA-merged weights: on the second update they are no longer those of the base
    assert updates[1]["sampling/logp_difference"] < 1e-4
    assert updates[1]["kl"] > 0


TINY = ["--use_vllm", "false", "--per_device_train_batch_size", "8", "--max_completion_length", "24", *SMALL]


def test_a_mixture_trains_and_says_how_each_task_does(tmp_path, repository):
    mixture = "{'quickstart:math': 1, 'quickstart:choice': 1}"
    own = ["--task", "mixture", "--mixture", mixture, "--train_items", "64", "--output_dir", str(tmp_path / "run")]
    train(repository, "quickstart.yaml", *TINY, *own)
    evaluations = [line for line in read_metrics(tmp_path / "run") if "eval_accuracy" in line]
    assert evaluations
    for line in evaluations:
        parts = [line["eval_accuracy/quickstart:math"], line["eval_accuracy/quickstart:choice"]]
        assert line["eval_accuracy"] == pytest.approx(sum(parts) / 2)


@pytest.mark.parametrize(
    "adapter", [["--adapter", "lora"], ["--parameterization", "sigmoid", "--init", "random", "--renormalize", "true"]]
)
def test_the_seed_decides_a_random_start_too(adapter, tmp_path, repository):
    saved = []
    for name, noise in (("first", 1), ("second", 2)):
        torch.manual_seed(noise)  # whatever went on in the process before
        output = tmp_path / name
        train(repository, "quickstart.yaml", *TINY, *adapter, "--output_dir", str(output))
        saved.append((output / "adapter_model.safetensors").read_bytes())
    assert saved[0] == saved[1]


@pytest.mark.distributed
def test_two_processes_train_what_one_does(repository, tmp_path):
    """Greedy rollouts, which do not depend on how prompts are cut over processes."""
    greedy = ["--temperature", "0", "--num_generations", "1", "--advantage", "batch_mean", "--load_best_model_at_end"]
    common = [*TINY, *greedy, "false", "--learning_rate", "1e-3"]
    z = {}
    for processes, size in ((1, 16), (2, 8)):
        output = tmp_path / str(processes)
        own = ["--per_device_train_batch_size", str(size), "--output_dir", str(output)]
        if processes == 1:
            train(repository, "quickstart.yaml", *common, *own)
        else:
            two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
            launch(repository, "recipes/quickstart.yaml", *common, *own, launcher=two)
        z[processes] = {k: v for k, v in load_file(output / "adapter_model.safetensors").items() if "svf_z" in k}
        assert json.loads((output / "summary.json").read_text())["items"] == 32
    moved = max((value - 1).abs().max().item() for value in z[1].values())
    assert moved > 1e-4
    for key, value in z[1].items():
        torch.testing.assert_close(z[2][key], value, rtol=0, atol=1e-5)
