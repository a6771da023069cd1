"""`SVFReinforceConfig`: TRL's GRPO settings without what the REINFORCE objective lacks, and with what it adds."""

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import SchedulerType
from transformers.trainer_utils import HubStrategy
from trl import GRPOConfig

from svf_rl.described import described
from svf_rl.errors import SVFError
from svf_rl.losses.evolution import FITNESS
from svf_rl.losses.objective import BASELINES, IMPORTANCE_MODES, KL_TYPES, REDUCTIONS
from svf_rl.runs.provenance import remove_secrets
from svf_rl.settings.config_checks import (
    EVALUATED,
    check_best_model,
    check_metric,
    check_objective,
    check_sampling,
    check_servers,
    check_unsupported,
    counts_failures,
)
from svf_rl.settings.limits import check_numbers
from svf_rl.settings.next_token import next_token_settings
from svf_rl.settings.yaml_values import shown

OF_PASSES = frozenset(
    ("advantage", "normalize_advantages", "advantage_clip", "kl_type", "kl_reference", "kl_placement", "loss_reduction",
     "entropy_coef", "vllm_importance_sampling_correction", "vllm_importance_sampling_mode",
     "vllm_importance_sampling_clip_min", "vllm_importance_sampling_clip_max", "gradient_checkpointing",
     "gradient_checkpointing_kwargs", "pad_to_multiple_of")
)  # fmt: skip
"""Keys of the objectives that make passes of the model."""
SERVER_FAILURES = ("stop", "leave_out")
LOG_LEVELS = ("passive", "detail", "debug", "info", "warning", "error", "critical")
_CHOICES: dict[str, Collection[str]] = {
    "objective": ("policy_gradient", "next_token", "evolution_strategies"),
    "evolution_fitness": tuple(FITNESS),
    "advantage": BASELINES,
    "kl_type": KL_TYPES,
    "kl_placement": ("loss", "reward"),
    "kl_reference": ("base", "start"),
    "loss_reduction": REDUCTIONS,
    "vllm_importance_sampling_mode": IMPORTANCE_MODES,
    "vllm_mode": ("colocate", "server"),
    "vllm_server_failure": SERVER_FAILURES,
    "vllm_weights": ("merged", "shared"),
    "train_packing": ("prompt", "padding_free", "none"),
    "pad_to_multiple_of": ("auto",),
    "include_num_input_tokens_seen": ("all", "non_padding", "no"),
    "log_level": LOG_LEVELS,
    "log_level_replica": LOG_LEVELS,
    "debug": ("", "underflow_overflow"),
    "ddp_backend": ("nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
}
"""Of texts, one of these; what is no text is checked elsewhere."""


@dataclass
class SVFReinforceConfig(GRPOConfig):
    """
    Settings of [`SVFReinforceTrainer`]; what each field means stands in its `help`.

    Only the fields that differ from TRL's [`GRPOConfig`] are listed. Options of GRPO that the objective here does not
    implement (`loss_type`, `epsilon`, `scale_rewards`, ...) raise an error when they are set.
    """

    learning_rate: float = described(2e-3, "Peak learning rate; z needs a far larger one than weights do.")
    lr_scheduler_type: SchedulerType | str = described("constant", "Learning-rate schedule.")
    lr_scheduler_kwargs: dict[str, Any] | str | None = described(
        None,
        "Options of the schedule. One that follows evaluations (reduce_lr_on_plateau, greedy) has by default the mode "
        "max, or min where greater_is_better is false.",
    )
    beta: float = described(0.1, "Coefficient of the KL term (lambda in the paper).")
    num_generations: int | None = described(8, "Completions per prompt; 1 is allowed.")
    metric_for_best_model: str | None = described(
        "eval_accuracy", f"What load_best_model_at_end and early stopping compare: eval_ and {', '.join(EVALUATED)}."
    )
    greater_is_better: bool | None = described(
        None, "Whether more of metric_for_best_model is better. Default: yes, but for unscorable and clipped_ratio."
    )
    logging_steps: float = described(1, "Log metrics every this many steps.")
    report_to: str | list[str] | None = described(
        "tensorboard", "Where metrics go: tensorboard, trackio, wandb or none."
    )
    bf16: bool | None = described(
        False, "Autocast to bf16. Not needed where the base model is loaded in bf16: z stays fp32."
    )
    vllm_importance_sampling_mode: str = described(
        "token_truncate",
        f"Correction of the mismatch between vLLM and the trained model: {', '.join(IMPORTANCE_MODES)}.",
    )
    objective: str = described(
        "policy_gradient",
        "policy_gradient (REINFORCE); next_token: cross-entropy on the targets of the data, for which the settings "
        "of `next_token_settings` replace those of the recipe; or evolution_strategies: perturbed z and their rewards, "
        "without a backward pass. num_generations is then the population, of which each member answers each prompt.",
    )
    evolution_sigma: float = described(0.1, "With evolution_strategies: standard deviation of the perturbations of z.")
    evolution_fitness: str = described(
        "ranks",
        f"With evolution_strategies: how the mean rewards of the members are compared, {' or '.join(FITNESS)} (by "
        "their standard deviation).",
    )
    advantage: str = described(
        "leave_one_out",
        f"Baseline of the rewards: {', '.join(BASELINES)}. none is plain REINFORCE, leave_one_out the mean of the "
        "prompt's other completions.",
    )
    normalize_advantages: bool = described(False, "Divide advantages by their standard deviation.")
    advantage_clip: float | None = described(None, "Largest absolute advantage.")
    kl_type: str = described(
        "policy_ref",
        f"Divergence: {', '.join(KL_TYPES)}. policy_ref is KL(policy || reference) over the whole vocabulary, "
        "ref_policy KL(reference || policy); the others are estimates from the sampled token.",
    )
    kl_reference: str = described(
        "base",
        "What the KL term keeps the policy near: base (the model without the adapter), or start (the values that the "
        "run starts from). In a recipe with adapter_path or warm_up_steps: by default start.",
    )
    kl_placement: str = described("loss", "Where the KL term goes: loss, or reward to subtract it from the reward.")
    loss_reduction: str = described(
        "sum", f"Log-likelihood of a sequence over its tokens: {', '.join(REDUCTIONS)}. The paper takes the sum."
    )
    correct_threshold: float = described(
        0.5,
        "A completion counts as correct in evaluation when its first reward is at least this. In a recipe whose first "
        "reward gives partial scores, such as reasoning_gym's: by default the reward of a right answer.",
    )
    tool_timeout: float = described(
        30.0, "Seconds that a call of a tool, or of an environment's reset or get_reward, may take."
    )
    curriculum_accuracy: float = described(
        0.8, "With a curriculum: the share of right completions, over curriculum_updates, that leads to the next level."
    )
    curriculum_updates: int = described(
        4, "With a curriculum: batches of rollouts, usually one an update, over which its accuracy is a mean."
    )
    num_completions_to_print: int | None = described(
        4, "With log_completions: rows of the table of completions that is printed; all are kept in files."
    )
    print_completions_steps: int = described(10, "With log_completions: print that table every this many steps.")
    early_stopping_patience: int | None = described(
        None, "Stop after this many evaluations in a row without a better one."
    )
    train_packing: str = described(
        "prompt",
        "Rows of an update. prompt: completions of one prompt stand behind it, which is read once, prompts behind what "
        "all begin with, and short rows together; padding_free: each completion with its prompt, short rows together; "
        "none: one row each, padded. "
        "Models with sliding windows or recurrent layers have none.",
    )
    vllm_enforce_eager: bool = described(False, "Skip vLLM's compilation: a faster start.")
    vllm_weights: str | None = described(
        None,
        "For a colocated vLLM. shared: it holds its weights as one with the trained model, computes with the model's "
        "factors, and a sync writes z alone. merged: it holds whole weights of its own, and each sync pushes those "
        "that the adapter changes. Default: shared, and merged for what cannot be shared, which is said (LoRA, band "
        "and block, biases, modules_to_save, ZeRO-3, tensor parallelism, mixtures of experts). For svf-rl serve: "
        "merged serves whole weights, which an update rebuilds; by default the server computes with factors and z is a "
        "row, likewise.",
    )
    resume_from_checkpoint: str | bool | None = described(
        None,
        "auto: resume from the last intact checkpoint in output_dir, or start over where there is none; true: the "
        "same, but an error where there is none; or the folder of a checkpoint.",
    )
    overwrite_output_dir: bool = described(
        False, "Remove the run that is in output_dir once this one begins; else it is refused."
    )
    vllm_server_base_url: str | list[str] | None = described(
        None, "For vllm_mode server: addresses of vLLM servers, as a list or separated by commas."
    )
    vllm_server_failure: str = described(
        "stop",
        f"When a vLLM server dies and is not back within vllm_server_timeout: {' or '.join(SERVER_FAILURES)}. stop "
        "ends the run; leave_out continues without the server at once, until it answers again.",
    )
    vllm_server_folder: str | None = described(
        None,
        'For servers of plain vLLM with --weight-transfer-config \'{"backend": "svf"}\': a shared folder through '
        "which z goes to them, which they were told of by SVF_RL_TRANSFER_FOLDER. Default: z is in the call.",
    )

    def __post_init__(self) -> None:
        check_numbers({f.name: getattr(self, f.name) for f in fields(self)})
        if self.objective == "next_token":
            for name, value in next_token_settings(self.kl_type).items():
                setattr(self, name, value)
        if self.objective == "evolution_strategies" and self.vllm_weights is None:
            self.vllm_weights = "shared"
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if isinstance(value, str) and value not in allowed:
                raise SVFError(f"{name} must be one of {', '.join(filter(None, allowed))}, not {shown(value)}")
        if self.max_completion_length is None:
            raise SVFError("max_completion_length must be a number of tokens, not null")
        generations = self.num_generations or 0
        if generations < 1:
            raise SVFError(f"num_generations must be at least 1, not {self.num_generations}")
        # TRL refuses one completion a prompt, for which its own advantages are undefined; ours are not.
        self.num_generations = max(2, generations)
        if generations == 1 and self.generation_batch_size is not None and self.generation_batch_size % 2:
            raise SVFError(f"generation_batch_size must be even, not {self.generation_batch_size}")
        # evaluation here has no batches, but TRL checks theirs
        self.per_device_eval_batch_size = self.num_generations
        check_best_model(self)
        if self.greater_is_better is None and counts_failures(self.metric_for_best_model):
            self.greater_is_better = False  # for transformers all but a loss is better when greater
        super().__post_init__()
        self.num_generations = generations
        if self.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY):
            mode = "max" if self.greater_is_better else "min"  # by default they wait for a loss to fall
            assert not isinstance(self.lr_scheduler_kwargs, str)  # transformers has read it
            self.lr_scheduler_kwargs = {"mode": mode, **(self.lr_scheduler_kwargs or {})}
        self.dataloader_pin_memory &= torch.accelerator.is_available()
        check_unsupported(self)
        check_metric(self)
        check_objective(self)
        check_sampling(self)
        check_servers(self)
        if self.vllm_weights == "shared" and (what := self.sharing_hindrance):
            raise SVFError(f"vllm_weights: shared does not go with {what}: set it to merged")
        if self.push_to_hub and self.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise SVFError(
                "push_to_hub uploads the adapter, and no checkpoints with settings and paths of this machine: set "
                "hub_strategy to every_save or end"
            )

    @property
    def server_urls(self) -> list[str]:
        """The addresses in `vllm_server_base_url`."""
        given = self.vllm_server_base_url or []
        parts = given.split(",") if isinstance(given, str) else given
        return [part.strip().rstrip("/") for part in parts if part.strip()]

    @property
    def generation_backend(self) -> str:
        """Where completions come from: `"transformers"`, or `"colocated"` or `"server"` for vLLM."""
        if not self.use_vllm:
            return "transformers"
        return "colocated" if self.vllm_mode == "colocate" else str(self.vllm_mode)

    def to_dict(self) -> dict[str, Any]:
        """What is kept of the settings, and shown by TensorBoard, wandb and the like: without secrets."""
        kept: dict[str, Any] = remove_secrets(super().to_dict())
        return kept

    @property
    def sharing_hindrance(self) -> str | None:
        """What keeps an engine from sharing its weights, as far as it can be told without the model."""
        hinders = {
            "use_vllm: false": not self.use_vllm,
            "vllm_mode: server": self.vllm_mode == "server",
            "vllm_tensor_parallel_size above 1": self.vllm_tensor_parallel_size > 1,
        }
        return next((what for what, there in hinders.items() if there), None)
