"""The model card says what was trained, on what, how well it does, and how to load it."""

import json
import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from svf_rl.cli import main
from svf_rl.runs.model_card import render_model_card
from svf_rl.runs.run_folder import Line
from svf_rl.runs.summary import RunSummary

SVF = {"peft_type": "SVF", "target_modules": ["up_proj"], "parameterization": "direct", "renormalize": False}
LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["up_proj"]}
RUN = {
    "recipe": {
        "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct", "dtype": "bfloat16", "task": "gsm8k",
        "learning_rate": 0.002, "output_dir": "/runs/llama3_math", "data_dir": "/benchmarks",
    },
    "seed": 3, "base_accuracy": 0.75, "accuracy": 0.8, "items": 1000, "updates": 200, "trained_values": 393216,
    "rows": {"train": 3737, "validation": 3736, "test": 1319}, "packages": {"torch": "2.13.0"},
}  # fmt: skip
HUB_BASE = {"base_model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct"}


def summary(**changes) -> RunSummary:
    return RunSummary.from_dict({**RUN, **changes})


def test_front_matter_is_what_the_hub_reads():
    data = ModelCard(render_model_card(summary(), SVF | HUB_BASE)).data
    assert data.library_name == "peft"
    assert data.base_model == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert data.datasets == ["openai/gsm8k"]
    assert "svf" in data.tags
    assert data.get("license") is None  # that of the base model is not known
    assert data.eval_results[0].metric_value == 0.8


def test_it_holds_accuracies_with_intervals_data_settings_and_versions():
    text = render_model_card(summary(), SVF | HUB_BASE)
    assert "| base model | 0.750 | 0.722 to 0.776 | 1000 |" in text
    assert "| with this adapter | 0.800 | 0.774 to 0.824 | 1000 |" in text
    for part in ("# llama3_math", "393,216 trained values", "train 3,737", "`numeric`", "torch 2.13.0"):
        assert part in text
    assert "Seed 3, 200 steps" in text
    assert "| `learning_rate` | 0.002 |" in text
    assert "/runs" not in text
    assert "/benchmarks" not in text


@pytest.mark.parametrize("split", ["test", "validation"])
def test_it_says_on_which_rows_the_accuracies_were_measured(split):
    rows = {"train": 100, "validation": 20} | ({"test": 50} if split == "test" else {})
    card = render_model_card(summary(rows=rows), SVF | HUB_BASE)
    assert f"| {split} accuracy, greedy |" in card
    assert ModelCard(card).data.eval_results[0].metric_name == f"{split} accuracy, greedy, 1000 items"


@pytest.mark.parametrize(
    ("objective", "words", "tag"),
    [
        ("policy_gradient", "REINFORCE on verifiable rewards", "reinforce"),
        ("next_token", "next-token training", "next-token"),
        ("evolution_strategies", "evolution strategies on verifiable rewards", "evolution-strategies"),
    ],
)
def test_it_says_by_which_objective(objective, words, tag):
    text = render_model_card(summary(recipe={**RUN["recipe"], "objective": objective}), SVF | HUB_BASE)
    assert f", trained on `gsm8k` by {words}" in text
    assert {"reinforce", "next-token", "evolution-strategies"} & set(ModelCard(text).data.tags) == {tag}


def test_metrics_of_the_run_are_summed_up():
    metrics = [Line(10, {"eval_accuracy": 0.7}), Line(11, {"reward": 0.5, "kl": 0.01})]
    text = render_model_card(summary(), SVF | HUB_BASE, metrics)
    assert "0.700 (step 10)" in text
    assert "mean reward 0.500, KL to the base 0.0100 a token" in text


def test_a_step_without_a_score_is_summed_up_as_such():
    metrics = [Line(10, {"eval_accuracy": None, "reward": 0.5}), Line(11, {"reward": None, "kl": 0.01})]
    text = render_model_card(summary(), SVF | HUB_BASE, metrics)
    assert "Last step: no completion could be scored, KL to the base 0.0100 a token." in text
    assert "Validation accuracy" not in text


def test_a_checkpoint_has_a_card_without_accuracies():
    text = render_model_card(RunSummary(recipe=RUN["recipe"], seed=0), SVF | HUB_BASE)
    assert ModelCard(text).data.eval_results is None
    assert "interval" not in text


@pytest.mark.parametrize("config", [SVF, LORA])
def test_a_card_without_a_run(config):
    text = render_model_card(RunSummary(), config)
    assert ModelCard(text).data.base_model is None
    assert "None" not in text


def test_lora_needs_no_import_of_ours():
    text = render_model_card(summary(), LORA | HUB_BASE)
    assert "LORA of rank 8, alpha 16, on `up_proj`" in text
    assert "import svf_rl" not in text
    assert "lora" in ModelCard(text).data.tags


def test_a_base_model_in_a_folder_is_named_without_its_path():
    text = render_model_card(RunSummary(), SVF | {"base_model_name_or_path": "/home/me/models/small"})
    assert "`small`" in text
    assert "/home/me" not in text
    assert ModelCard(text).data.base_model is None


def test_a_combination_names_its_experts_and_weights():
    combination = {
        "experts": ["runs/math", "code"],
        "scope": "global",
        "form": "mask",
        "normalized": True,
        "alpha": [[0.25, 0.75]],
    }
    text = render_model_card(RunSummary(), SVF | HUB_BASE | {"combination": combination})
    assert "a weighted combination of 2 experts" in text
    assert "| math | code |" in text
    assert "| 0.25 | 0.75 |" in text


@pytest.mark.parametrize(
    "task",
    [
        {"task": "mixture", "mixture": {"gsm8k": 1, "quickstart:code": 1}},
        {"task": "columns", "data_path": "/mine/rows.jsonl", "rewards": ["numeric"]},
        {"task": "columns", "dataset_name": "me/rows", "answer_column": "gold", "rewards": "numeric"},
        {"task": "quickstart", "skill": "dispatch"},
    ],
)
def test_other_tasks(task):
    recipe = {**RUN["recipe"], "skill": "math", **task}
    text = render_model_card(summary(recipe=recipe), SVF | HUB_BASE)
    ModelCard(text)
    assert "svf-rl eval" in text
    assert "/mine" not in text


def test_the_command_asks_with_the_settings_and_worked_examples_of_the_training():
    sorting = {
        "task": "reasoning_gym", "dataset": "word_sorting", "config": {"max_words": 9, "min_words": 2}, "shots": 2,
        "curriculum": {"max_words": [2, 3]}, "max_completion_length": 24,
        "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    text = render_model_card(summary(recipe={**RUN["recipe"], **sorting}), SVF | HUB_BASE)
    command = next(line for line in text.splitlines() if line.startswith("svf-rl eval"))
    given = dict(zip(*[iter(shlex.split(command)[3:])] * 2, strict=True))
    assert given["--tasks"] == "reasoning_gym:word_sorting"
    assert json.loads(given["--config"]) == {"min_words": 2, "max_words": 3}
    assert json.loads(given["--chat-template-kwargs"]) == {"enable_thinking": False}
    assert given["--shots-in-prompt"] == "2"
    assert given["--max-tokens"] == "24"


SMALL = [
    *("--use_vllm", "false", "--per_device_train_batch_size", "8", "--max_completion_length", "8"),
    *("--validation_items", "8", "--test_items", "8", "--max_steps", "1", "--eval_steps", "1", "--save_steps", "1"),
]


@pytest.mark.parametrize("adapter", ["svf", "lora"])
def test_a_run_writes_its_card_beside_every_adapter_it_saves(adapter, repository, tmp_path):
    run = tmp_path / "sums"
    own = ["--adapter", adapter, "--output_dir", str(run), "--hub_token", "hf_secret"]
    assert main(["train", str(repository / "recipes/quickstart.yaml"), *SMALL, *own]) == 0
    content = json.loads((run / "summary.json").read_text())
    assert content["rows"] == {"train": 2048, "validation": 8, "test": 8}
    assert content["trained_values"] == (864 if adapter == "svf" else 50688)
    assert "hf_secret" not in (run / "summary.json").read_text()
    cards = {path: (path / "README.md").read_text() for path in (run, run / "checkpoint-1")}
    for text in cards.values():
        assert ModelCard(text).data.library_name == "peft"
        assert str(tmp_path) not in text
        assert str(Path(repository)) not in text
        assert "fine-tuned version of" not in text  # TRL's
        assert "`quickstart:math`" in text
    assert f"| {content['accuracy']:.3f} |" in cards[run]
    assert "Seed 0, 1 steps" in cards[run]


def test_pushing_a_run_without_a_token_is_one_line_before_training(repository, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("svf_rl.runs.hub.get_token", lambda: None)
    own = ["--output_dir", str(tmp_path / "run"), "--push_to_hub", "true", "--hub_model_id", "me/sums"]
    assert main(["train", str(repository / "recipes/quickstart.yaml"), *SMALL, *own]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert errors == ["error: no Hugging Face token to write to me/sums with: run 'hf auth login', or set HF_TOKEN"]
    assert not (tmp_path / "run").exists()
