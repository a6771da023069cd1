"""`SVFReinforceConfig`: what it takes, and that nothing it cannot do is ignored."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments, get_scheduler
from trl import GRPOConfig

from svf_rl.errors import SVFError
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.settings.refused_options import UNSUPPORTED

# Another value than TRL's default for each refused option; numbers and booleans are changed by themselves.
OTHER = {
    "loss_type": "grpo", "importance_sampling_level": "sequence", "scale_rewards": "batch",
    "multi_objective_aggregation": "normalize_then_sum", "cache_implementation": "static",
    "vllm_model_impl": "transformers", "vllm_structured_outputs_regex": "a*", "liger_kernel_config": {"rope": True},
    "transformers_continuous_batching_config": {"a": 1}, "delta": 2.0,
    "epsilon_high": 0.3, "num_generations_eval": 4, "off_policy_mask_threshold": 0.5, "neftune_noise_alpha": 1.0,
    "vllm_importance_sampling_cap": 2.0, "use_transformers_paged": True, "use_liger_kernel": True,
    "router_aux_loss_coef": 0.1, "vllm_server_host": "localhost",
}  # fmt: skip


def _config(tmp_path: Path, **settings: Any) -> SVFReinforceConfig:
    defaults = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "num_generations": 4}
    return SVFReinforceConfig(**{**defaults, **settings})


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_option_of_another_objective_is_an_error_when_set(tmp_path: Path, name: str) -> None:
    default = next(f.default for f in dataclasses.fields(GRPOConfig) if f.name == name)
    value = OTHER[name] if name in OTHER else not default if isinstance(default, bool) else default + 1
    with pytest.raises(SVFError, match=name) as error:
        _config(tmp_path, **{name: value})
    assert "\n" not in str(error.value)


def test_false_switches_an_option_off_and_that_too_is_setting_it(tmp_path: Path) -> None:
    with pytest.raises(SVFError, match="scale_rewards"):
        _config(tmp_path, scale_rewards=False)


def test_every_option_of_grpo_is_either_refused_or_known_to_work() -> None:
    """A new release of TRL with a new option stops here, until someone has decided what it means."""
    works = {
        "model_init_kwargs", "trust_remote_code", "disable_dropout", "num_generations", "max_completion_length",
        "shuffle_dataset", "pad_to_multiple_of", "generation_batch_size", "steps_per_generation", "temperature",
        "top_p", "top_k", "min_p", "generation_kwargs", "chat_template_kwargs", "repetition_penalty", "use_vllm",
        "vllm_mode", "vllm_server_base_url", "vllm_server_timeout", "vllm_tensor_parallel_size",
        "vllm_enable_sleep_mode", "vllm_gpu_memory_utilization", "vllm_max_model_length", "beta", "num_iterations",
        "entropy_coef", "reward_weights", "mask_truncated_completions", "vllm_importance_sampling_correction",
        "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min",
        "log_completions", "num_completions_to_print", "log_unique_prompts", "log_completions_hub_repo",
        "max_tool_calling_iterations", "log_multimodal",  # images are refused where they come up
    }  # fmt: skip
    own = {f.name for f in dataclasses.fields(GRPOConfig)} - {f.name for f in dataclasses.fields(TrainingArguments)}
    assert own - set(UNSUPPORTED) == works


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 0}, "num_generations must be at least 1"),
        ({"advantage": "median"}, "advantage must be one of none, leave_one_out"),
        ({"kl_type": "k4"}, "kl_type must be one of"),
        ({"kl_placement": "both"}, "kl_placement must be one of"),
        ({"loss_reduction": "max"}, "loss_reduction must be one of"),
        ({"vllm_importance_sampling_mode": "none"}, "vllm_importance_sampling_mode must be one of"),
        ({"beta": -0.1}, "beta must not be negative"),
        ({"entropy_coef": -1.0}, "entropy_coef must be at least 0"),
        ({"advantage_clip": 0.0}, "advantage_clip must be positive"),
        ({"num_generations": 1}, "advantage=leave_one_out compares"),
        ({"num_generations": 1, "advantage": "group_mean"}, "advantage=group_mean compares"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": 0.0}, "temperature=0 makes all completions of a prompt the same"),
        ({"num_iterations": 2}, "several steps from one set of completions"),
        ({"steps_per_generation": 4}, "several steps from one set of completions"),
        (
            {"num_iterations": 2, "use_vllm": True, "vllm_importance_sampling_correction": False},
            "several steps from one set of completions",
        ),
        (
            {"num_iterations": 2, "use_vllm": True, "temperature": 0.0, "num_generations": 1, "advantage": "none"},
            "several steps from one set of completions",
        ),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 3}, "must divide one another"),
        ({"early_stopping_patience": 2}, "early_stopping_patience needs evaluations"),
    ],
)
def test_settings_that_mean_nothing_are_refused_in_one_line(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SVFError, match=message) as error:
        _config(tmp_path, **settings)
    assert "\n" not in str(error.value)


def test_one_completion_a_prompt(tmp_path: Path) -> None:
    for size in (8, 6, 2):
        config = _config(tmp_path, num_generations=1, advantage="none", per_device_train_batch_size=size)
        assert config.num_generations == 1
        assert config.generation_batch_size == size


def test_greedy_rollouts_have_no_mismatch_correction(tmp_path: Path) -> None:
    config = _config(tmp_path, temperature=0.0, num_generations=1, advantage="none", use_vllm=True)
    assert config.temperature == 0
    assert config.vllm_importance_sampling_correction is False


def test_several_updates_with_the_correction_are_accepted(tmp_path: Path) -> None:
    assert _config(tmp_path, num_iterations=2, use_vllm=True).num_iterations == 2
    assert _config(tmp_path, steps_per_generation=4, use_vllm=True).generation_batch_size == 32


def test_the_defaults_suit_z(tmp_path: Path) -> None:
    config = SVFReinforceConfig(output_dir=str(tmp_path), use_cpu=True)
    assert config.learning_rate == 2e-3
    assert config.beta == 0.1
    assert config.advantage == "leave_one_out"
    assert config.report_to == ["tensorboard"]
    assert not config.bf16
    assert config.weight_decay == 0


@pytest.mark.parametrize("generations", [1, 2, 6, 16])
def test_completions_of_a_prompt_need_not_fit_a_batch_that_nothing_reads(tmp_path: Path, generations: int) -> None:
    advantage = "none" if generations == 1 else "leave_one_out"
    config = _config(
        tmp_path, num_generations=generations, per_device_train_batch_size=2 * generations, eval_strategy="steps",
        eval_steps=1, advantage=advantage,
    )  # fmt: skip
    assert config.num_generations == generations


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("eval_accuracy", True), ("reward", True), ("eval_gsm8k_accuracy", True), ("eval_unscorable", False),
        ("clipped_ratio", False), ("eval_gsm8k_clipped_ratio", False),
    ],
)  # fmt: skip
def test_the_best_checkpoint_has_the_fewest_failures(tmp_path: Path, metric: str, greater: bool) -> None:
    assert _config(tmp_path, metric_for_best_model=metric).greater_is_better is greater
    assert _config(tmp_path, metric_for_best_model=metric, greater_is_better=not greater).greater_is_better != greater


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_a_rate_that_follows_the_evaluations_falls_when_they_get_no_better(tmp_path: Path, schedule: str) -> None:
    config = _config(
        tmp_path, lr_scheduler_type=schedule, lr_scheduler_kwargs={"patience": 1}, eval_strategy="steps", eval_steps=1
    )
    rates = {}
    for name, accuracies in (("better", [0.1 * n for n in range(10)]), ("standing", [0.5] * 10)):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        steps = get_scheduler(schedule, optimizer, scheduler_specific_kwargs=config.lr_scheduler_kwargs)
        for accuracy in accuracies:
            optimizer.step()
            steps.step(accuracy)
        rates[name] = optimizer.param_groups[0]["lr"]
    assert rates["standing"] < 1 <= rates["better"]
    given = {"lr_scheduler_kwargs": {"mode": "min"}, "eval_strategy": "epoch"}
    kept = _config(tmp_path, lr_scheduler_type=schedule, **given)
    assert kept.lr_scheduler_kwargs == {"mode": "min"}
