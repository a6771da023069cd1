"""The commands a user types, run as they are typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import svf_rl.svf  # noqa: F401  (registers SVF with PEFT)
from svf_rl.quickstart import make_rows, model_path
from svf_rl.rewards import load_reward
from svf_rl.training.callbacks import TIMING

pytestmark = pytest.mark.vllm

SMALL = ["--validation_items", "16", "--test_items", "32", "--max_steps", "2", "--eval_steps", "2", "--save_steps", "2"]


def launch(repository: Path, *arguments: str) -> str:
    """`accelerate launch … svf_rl/train.py …` from the repository; its output."""
    script = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml", "svf_rl/train.py"]
    done = subprocess.run(
        [sys.executable, *script, *arguments],
        cwd=repository,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def metrics_lines(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(TIMING)} for line in lines]


@pytest.fixture(scope="module")
def quickstart(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("quickstart") / "run"
    return output, launch(repository, "recipes/quickstart.yaml", "--output_dir", str(output))


def test_the_quickstart_gains_at_least_15_points(quickstart):
    output, printed = quickstart
    summary = json.loads((output / "summary.json").read_text())
    assert summary["items"] >= 500
    assert summary["accuracy"] - summary["base_accuracy"] >= 0.15
    assert f"{summary['base_accuracy']:.3f} before, {summary['accuracy']:.3f} after" in printed


def test_the_summary_says_what_was_run(quickstart):
    summary = json.loads((quickstart[0] / "summary.json").read_text())
    assert summary["recipe"]["skill"] == "math"
    assert summary["seed"] == 0
    assert {"torch", "trl", "peft", "transformers"} <= set(summary["packages"])
    assert {"load", "decompose", "engine", "base_evaluation", "train", "evaluation"} == set(summary["seconds"])
    assert "git_commit" in summary


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
    correct = load_reward({"name": "exact_match", "kind": "number"})(
        prompts=chats, completions=texts, answer=[row["answer"] for row in rows]
    )
    assert sum(correct) / len(correct) == pytest.approx(summary["accuracy"], abs=0.005)


def test_one_seed_decides_everything(repository, tmp_path):
    for name in ("first", "second"):
        launch(repository, "recipes/quickstart.yaml", *SMALL, "--seed", "3", "--output_dir", str(tmp_path / name))
    assert metrics_lines(tmp_path / "first") == metrics_lines(tmp_path / "second")
    assert len(metrics_lines(tmp_path / "first")) >= 4
    adapters = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("first", "second")]
    assert adapters[0] == adapters[1]


def test_llama3_math_on_real_gsm8k_rows_with_only_model_data_and_sizes_changed(repository, shared_data, tmp_path):
    launch(
        repository,
        "recipes/llama3_math.yaml",
        *("--model_name_or_path", "quickstart", "--data_path", str(shared_data / "gsm8k")),
        *("--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2", "--max_steps", "20"),
        *("--max_completion_length", "48", "--validation_items", "16", "--test_items", "32"),
        *("--vllm_enforce_eager", "true", "--output_dir", str(tmp_path / "run")),
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["updates"] == 20
    assert summary["items"] == 32
    updates = [line for line in metrics_lines(tmp_path / "run") if "reward" in line]
    assert all(-1 <= line["reward"] <= 1 for line in updates)
    assert updates[0]["kl"] == 0
    assert updates[-1]["kl"] > 0


def test_the_same_trainer_trains_lora(repository, tmp_path):
    lora = ["--adapter", "lora", "--lora_r", "8", "--learning_rate", "2e-3"]
    launch(repository, "recipes/quickstart.yaml", *SMALL, *lora, "--output_dir", str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    updates = [line for line in metrics_lines(tmp_path / "run") if "reward" in line]
    # vLLM holds the LoRA-merged weights: on the second update they are no longer those of the base
    assert updates[1]["sampling/logp_difference"] < 1e-4
    assert updates[1]["kl"] > 0
