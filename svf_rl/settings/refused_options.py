"""Options of TRL and transformers that are refused in a recipe or in [`SVFReinforceConfig`], and in what words."""

from svf_rl.errors import SVFError

_NO_MEANING = "has no meaning for SVF REINFORCE: remove it from the recipe"
_ENTROPY = "is not supported: remove it; entropy_coef is a bonus, and beta keeps the policy near its reference"
_LIGER = (
    "is not supported: remove it; the loss never holds more than a part of the logits, and Liger's kernels would "
    "replace the layers that SVF adapts"
)
_FP32_HEAD = (
    "is not supported: remove it; log-probabilities are computed in fp32, and dtype: float32 is for all the rest"
)
_ONE_ANSWER = "is not supported: remove it; held-out items have one greedy answer each (svf-rl eval samples several)"
_EXPLAINED = {
    **dict.fromkeys(
        ("use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta",
         "entropy_target"),
        _ENTROPY,
    ),
    "use_liger_kernel": _LIGER, "liger_kernel_config": _LIGER, "cast_lm_head_to_fp32": _FP32_HEAD,
    "num_generations_eval": _ONE_ANSWER,
    "model_init_kwargs": "is not read: dtype, attn_implementation and trust_remote_code are keys of their own",
    "remove_unused_columns": "must be false, since rewards read all columns: remove it",
}  # fmt: skip
# TRL options that belong to other objectives or to paths that this trainer replaces: an error when set.
UNSUPPORTED = (
    "loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "scale_rewards",
    "multi_objective_aggregation", "sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos",
    "vespo_k_neg", "vespo_lambda_neg", "top_entropy_quantile", "use_adaptive_entropy",
    "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target", "off_policy_mask_threshold",
    "use_bias_correction_kl", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps", "router_aux_loss_coef",
    "cast_lm_head_to_fp32", "use_liger_kernel", "liger_kernel_config", "num_generations_eval", "cache_implementation",
    "vllm_model_impl", "vllm_structured_outputs_regex", "vllm_server_host",
    "vllm_server_port", "vllm_group_port",
    "ds3_gather_for_generation", "vllm_importance_sampling_cap", "use_transformers_paged",
    "use_transformers_continuous_batching", "transformers_continuous_batching_config", "label_smoothing_factor",
    "neftune_noise_alpha",
)  # fmt: skip
# Settings of transformers and TRL that have no effect here: loading (`dtype`, ...), evaluation, the script.
NOT_READ = (
    "model_init_kwargs", "eval_accumulation_steps", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics",
    "do_train", "do_eval", "do_predict", "per_device_eval_batch_size", "eval_do_concat_batches",
    "eval_use_gather_object", "label_names", "length_column_name", "train_sampling_strategy", "ignore_data_skip",
    "auto_find_batch_size", "restore_callback_states_from_checkpoint", "enable_jit_checkpoint", "optim_target_modules",
    "accelerator_config", "parallelism_config", "local_rank", "average_tokens_across_devices",
    "data_seed",
)  # fmt: skip
FSDP = "FSDP is not supported; for several GPUs start with accelerate launch and a config of DDP or DeepSpeed's ZeRO"
_COMPILE = "compiled models are not supported"
NOT_HERE = {
    "deepspeed": "start with accelerate launch and a config of DeepSpeed, such as accelerate_configs/zero2.yaml",
    "fsdp": FSDP,
    "fsdp_config": FSDP,
    "torch_compile": _COMPILE,
    "torch_compile_backend": _COMPILE,
    "torch_compile_mode": _COMPILE,
}
"""Keys of transformers that are not for a recipe, and why; null and false are as good as none."""


def refused_option(shown: str, name: str) -> SVFError:
    """The error for an option of TRL that the trainer does not have: what of it is `shown`, and what to do instead."""
    return SVFError(f"{shown} {_EXPLAINED.get(name, _NO_MEANING)}")
