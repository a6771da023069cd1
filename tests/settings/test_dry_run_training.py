"""What a run would find out late of its training settings is found out before it."""

from pathlib import Path
from typing import Any

import pytest
from fakes import refusal

from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.settings.config_checks import EVALUATED
from svf_rl.settings.dry_run_training import check_training


def check(tmp_path: Path, **settings: Any) -> None:
    config = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "num_generations": 4, **settings}
    check_training(SVFReinforceConfig(**config), updates=10)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type cosine_with_min_lr"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
        ({"lr_scheduler_kwargs": {"nosuch": 1}}, "lr_scheduler_kwargs: unknown argument 'nosuch'"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "many"}}, "num_cycles"),
        ({"optim": "lion_8bit"}, "optim lion_8bit: You need to install `bitsandbytes`"),
        ({"optim": "stable_adamw"}, "optim stable_adamw"),
        ({"optim": "galore_adamw"}, "optim galore_adamw"),
        ({"optim": "rmsprop", "optim_args": "momentum"}, "optim_args 'momentum' (name=value, ...)"),
        ({"gradient_checkpointing_kwargs": {"nosuch": 1}}, "gradient_checkpointing_kwargs: unknown argument 'nosuch'"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs must not hold tokenize"),
        ({"chat_template_kwargs": {1: 2}}, "chat_template_kwargs: 1 is not a name"),
        ({"generation_kwargs": {"nosuch": 1}}, "generation_kwargs: unknown argument 'nosuch'"),
        ({"generation_kwargs": {"max_lenght": 1}}, "did you mean 'max_length'?"),
    ],
)
def test_settings_that_cannot_be_used_are_named(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    assert said in refusal(check, tmp_path, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-4}},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 1},
        {"optim": "adafactor"},
        {"generation_kwargs": {"no_repeat_ngram_size": 2}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},  # one process
    ],
)
def test_settings_that_can(tmp_path: Path, settings: dict[str, Any]) -> None:
    check(tmp_path, **settings)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_beams": 0}, "generation_kwargs {'num_beams': 0}"),
        ({"num_beams": -1}, "generation_kwargs {'num_beams': -1}"),
        ({"num_beams": "two"}, "generation_kwargs {'num_beams': 'two'}"),
        ({"no_repeat_ngram_size": "2"}, "'no_repeat_ngram_size': '2'"),
        ({"bad_words_ids": []}, "non-empty list"),
        ({"typical_p": 0}, "typical_p"),
        ({"num_return_sequences": 2}, "2 completions for one, whose number is num_generations"),
        ({"max_new_tokens": 4}, "max_new_tokens"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"dola_layers": "high"}, "dola"),
    ],
)
def test_generation_kwargs_are_tried_before_the_run(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    message = refusal(check, tmp_path, generation_kwargs=given)
    assert message.startswith("generation_kwargs")
    assert said in message


@pytest.mark.parametrize("given", [{"num_beams": 2}, {"typical_p": 0.9}, {"suppress_tokens": [128000]}])
def test_generation_kwargs_that_can_be_used(tmp_path: Path, given: dict[str, Any]) -> None:
    check(tmp_path, generation_kwargs=given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"presence_penalty": 9}, "presence_penalty"),
        ({"bad_words": [5]}, "bad_words"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"min_tokens": 2.5}, "min_tokens"),
        ({"min_tokens": 600}, "min_tokens"),
        ({"stop": ["."]}, "stop is the trainer's"),
        ({"output_kind": 1}, "output_kind is the trainer's"),
        ({"structured_outputs": {}}, "structured outputs"),
    ],
)
def test_generation_kwargs_for_vllm_are_tried_before_the_run(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    pytest.importorskip("vllm")
    message = refusal(check, tmp_path, generation_kwargs=given, use_vllm=True, max_completion_length=512)
    assert message.startswith("generation_kwargs")
    assert said in message


@pytest.mark.parametrize(
    "given", [{"min_tokens": 500}, {"logit_bias": {5: 1}}, {"structured_outputs": {"regex": "[0-9]+"}}]
)
def test_generation_kwargs_that_vllm_takes(tmp_path: Path, given: dict[str, Any]) -> None:
    pytest.importorskip("vllm")
    check(tmp_path, generation_kwargs=given, use_vllm=True, max_completion_length=512)


@pytest.mark.parametrize("metric", ["loss", "eval_loss", "nosuch", "eval_accuracy_", "accuracies"])
def test_a_metric_that_no_evaluation_has(tmp_path: Path, metric: str) -> None:
    message = refusal(check, tmp_path, metric_for_best_model=metric)
    assert message.startswith("metric_for_best_model must be one of eval_accuracy, eval_reward")
    assert "has no loss" in message


@pytest.mark.parametrize("name", [*EVALUATED, "gsm8k_accuracy", "accuracy/quickstart:math"])
def test_metrics_that_one_has(tmp_path: Path, name: str) -> None:
    check(tmp_path, metric_for_best_model=name)
    check(tmp_path, metric_for_best_model=f"eval_{name}")
