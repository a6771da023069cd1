"""`SVFReinforceConfig`: TRL's GRPO settings, less what the REINFORCE objective does not have, plus what it does."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from trl import GRPOConfig

from svf_rl.errors import SVFError
from svf_rl.losses.objective import BASELINES, KL_TYPES

# TRL options that belong to other objectives or to paths that this trainer replaces: an error when set.
UNSUPPORTED = (
    "loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "scale_rewards",
    "multi_objective_aggregation", "sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos",
    "vespo_k_neg", "vespo_lambda_neg", "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy",
    "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target", "off_policy_mask_threshold",
    "use_bias_correction_kl", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps", "router_aux_loss_coef",
    "cast_lm_head_to_fp32", "use_liger_kernel", "liger_kernel_config", "num_generations_eval", "cache_implementation",
    "vllm_model_impl", "vllm_structured_outputs_regex", "vllm_server_host",
    "vllm_server_port", "vllm_group_port",
    "ds3_gather_for_generation", "vllm_importance_sampling_cap", "use_transformers_paged",
    "use_transformers_continuous_batching", "transformers_continuous_batching_config", "max_tool_calling_iterations",
    "label_smoothing_factor", "neftune_noise_alpha",
)  # fmt: skip
SERVER_FAILURES = ("stop", "leave_out")
OBJECTIVES = ("policy_gradient", "next_token")
_CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@dataclass
class SVFReinforceConfig(GRPOConfig):
    """
    Settings of [`SVFReinforceTrainer`].

    Only the fields that differ from TRL's [`GRPOConfig`] are listed. Options of GRPO that the objective here does not
    implement (`loss_type`, `epsilon`, `scale_rewards`, ...) raise an error when they are set.

    Args:
        objective (`str`, *optional*, defaults to `"policy_gradient"`):
            `"policy_gradient"` (REINFORCE) or `"next_token"`: cross-entropy on right answers ([`NextTokenTrainer`]),
            for which what [`next_token_settings`] holds is set, whatever was given.
        advantage (`str`, *optional*, defaults to `"leave_one_out"`):
            Baseline of the rewards: `"none"` (plain REINFORCE, also with one completion a prompt), `"leave_one_out"`
            (mean of the prompt's other completions), `"group_mean"`, `"batch_mean"`.
        normalize_advantages (`bool`, *optional*, defaults to `False`): Divide by their standard deviation.
        advantage_clip (`float`, *optional*): Clip advantages to `[-advantage_clip, advantage_clip]`.
        num_generations (`int`, *optional*, defaults to 8): Completions a prompt; 1 is allowed.
        beta (`float`, *optional*, defaults to `0.1`): Coefficient of the KL term (λ in the paper).
        kl_type (`str`, *optional*, defaults to `"policy_ref"`):
            Exact over the vocabulary: `"policy_ref"` KL(policy ‖ reference), `"ref_policy"` KL(reference ‖ policy).
            Estimated from the sampled token: `"k1"`, `"k2"`, `"k3"`.
        kl_placement (`str`, *optional*, defaults to `"loss"`): `"loss"`, or `"reward"` to subtract it from the reward.
        loss_reduction (`str`, *optional*, defaults to `"sum"`):
            Log-likelihood of a sequence: `"sum"` over its tokens (the paper) or `"mean"`.
        correct_threshold (`float`, *optional*, defaults to `0.5`):
            A completion counts as correct in evaluation when its first reward is at least this.
        early_stopping_patience (`int`, *optional*): Stop after so many evaluations without a better one.
        vllm_enforce_eager (`bool`, *optional*, defaults to `False`): Skip vLLM's compilation: a faster start.
        resume_from_checkpoint (`str` or `bool`, *optional*):
            Read by `svf_rl/train.py`: `"auto"` goes on from the last sound checkpoint in `output_dir` and begins anew
            where there is none, `True` ends with an error there, and a folder is the checkpoint to go on from.
        vllm_tensor_parallel_size (`int`, *optional*, defaults to 1):
            Processes that share one vLLM: each so many consecutive ones for a colocated one, or those that a server
            from `svf-rl serve` starts.
        vllm_server_base_url (`str` or `list[str]`, *optional*):
            For `vllm_mode="server"`: addresses of vLLM servers, in a list or with commas between them.
        vllm_server_failure (`str`, *optional*, defaults to `"stop"`):
            When a server dies and is not up again within `vllm_server_timeout`: `"stop"` the run; or `"leave_out"`
            the server at once, until it answers again.
    """

    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate; z needs far more than weights."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Learning-rate schedule."})
    beta: float = field(default=0.1, metadata={"help": "Coefficient of the KL term (lambda in the paper)."})
    num_generations: int | None = field(default=8, metadata={"help": "Completions a prompt; 1 is allowed."})
    metric_for_best_model: str | None = field(
        default="eval_accuracy", metadata={"help": "What load_best_model_at_end and early stopping compare."}
    )
    logging_steps: float = field(default=1, metadata={"help": "Log metrics every so many updates."})
    report_to: str | list[str] | None = field(
        default="tensorboard", metadata={"help": "Where metrics go: tensorboard, trackio, wandb or none."}
    )
    bf16: bool | None = field(
        default=False,
        metadata={"help": "Autocast to bf16. Not needed where the base is loaded in bf16: z stays fp32."},
    )
    vllm_importance_sampling_mode: str = field(
        default="token_truncate",
        metadata={
            "help": "Correction of the mismatch between vLLM and the trained model: token_truncate, token_mask, "
            "sequence_truncate or sequence_mask."
        },
    )
    objective: str = field(default="policy_gradient", metadata={"help": f"What the loss is: {', '.join(OBJECTIVES)}."})
    advantage: str = field(default="leave_one_out", metadata={"help": f"Baseline: {', '.join(BASELINES)}."})
    normalize_advantages: bool = field(default=False, metadata={"help": "Divide advantages by their deviation."})
    advantage_clip: float | None = field(default=None, metadata={"help": "Largest absolute advantage."})
    kl_type: str = field(default="policy_ref", metadata={"help": f"Divergence: {', '.join(KL_TYPES)}."})
    kl_placement: str = field(default="loss", metadata={"help": "Where the KL term goes: loss or reward."})
    loss_reduction: str = field(default="sum", metadata={"help": "Over the tokens of a sequence: sum or mean."})
    correct_threshold: float = field(
        default=0.5, metadata={"help": "A completion is correct when its first reward is at least this."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better one."}
    )
    vllm_enforce_eager: bool = field(default=False, metadata={"help": "Skip vLLM's compilation: a faster start."})
    resume_from_checkpoint: str | bool | None = field(
        default=None,
        metadata={"help": "auto: the last sound checkpoint, if there is one; true: that one; or the folder of one."},
    )

    vllm_server_base_url: str | list[str] | None = field(
        default=None, metadata={"help": "Addresses of vLLM servers: a list, or with commas between them."}
    )
    vllm_server_failure: str = field(
        default="stop", metadata={"help": f"When a vLLM server dies: {' or '.join(SERVER_FAILURES)}."}
    )

    def __post_init__(self) -> None:
        _one_of("objective", self.objective, OBJECTIVES)
        if self.objective == "next_token":
            for name, value in next_token_settings(self.kl_type).items():
                setattr(self, name, value)
        generations = self.num_generations or 0
        if generations < 1:
            raise SVFError(f"num_generations must be at least 1, not {self.num_generations}")
        # TRL refuses one completion a prompt, for which its own advantages are undefined; ours are not.
        self.num_generations = max(2, generations)
        if generations == 1 and self.generation_batch_size is not None and self.generation_batch_size % 2:
            raise SVFError(f"generation_batch_size must be even, not {self.generation_batch_size}")
        super().__post_init__()
        self.num_generations = generations
        self._check_unsupported()
        self._check_objective()
        self._check_sampling()
        self._check_servers()

    @property
    def server_urls(self) -> list[str]:
        """The addresses in `vllm_server_base_url`."""
        given = self.vllm_server_base_url or []
        parts = given.split(",") if isinstance(given, str) else given
        return [part.strip().rstrip("/") for part in parts if part.strip()]

    def _check_servers(self) -> None:
        _one_of("vllm_mode", self.vllm_mode, ("colocate", "server"))
        _one_of("vllm_server_failure", self.vllm_server_failure, SERVER_FAILURES)
        if self.vllm_mode == "colocate":
            if self.server_urls:
                raise SVFError("vllm_server_base_url is for vllm_mode: server: set that too, or remove it")
            return
        if not self.use_vllm:
            raise SVFError("vllm_mode: server needs use_vllm: true")
        if self.vllm_server_timeout <= 0:
            raise SVFError(f"vllm_server_timeout must be positive, not {self.vllm_server_timeout:g}")
        if self.vllm_enable_sleep_mode:
            raise SVFError("vllm_enable_sleep_mode is for a colocated vLLM: remove it, or vllm_mode: server")
        if not self.server_urls:
            raise SVFError(
                "vllm_mode: server needs vllm_server_base_url, such as http://localhost:8000: start a server with "
                "svf-rl serve RECIPE and give its address"
            )
        for url in self.server_urls:
            if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", url):
                raise SVFError(f"vllm_server_base_url: {url!r} is no address such as http://localhost:8000")
        twice = {url for url in self.server_urls if self.server_urls.count(url) > 1}
        if twice:
            raise SVFError(f"vllm_server_base_url names {min(twice)} twice: remove one")

    def _check_unsupported(self) -> None:
        defaults = {f.name: f.default for f in fields(GRPOConfig)}
        for name in UNSUPPORTED:
            if _plain(getattr(self, name)) != _plain(defaults[name]):
                raise SVFError(
                    f"{name}={getattr(self, name)!r} has no meaning for SVF REINFORCE: remove it from the recipe"
                )

    def _check_objective(self) -> None:
        _one_of("advantage", self.advantage, BASELINES)
        _one_of("kl_type", self.kl_type, KL_TYPES)
        _one_of("kl_placement", self.kl_placement, ("loss", "reward"))
        _one_of("loss_reduction", self.loss_reduction, ("sum", "mean"))
        _one_of("vllm_importance_sampling_mode", self.vllm_importance_sampling_mode, _CORRECTIONS)
        if self.beta < 0:
            raise SVFError(f"beta must not be negative, not {self.beta}")
        if self.advantage_clip is not None and self.advantage_clip <= 0:
            raise SVFError(f"advantage_clip must be positive, not {self.advantage_clip}")
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise SVFError("early_stopping_patience needs evaluations: set eval_strategy to steps or epoch")
        if self.num_generations == 1 and self.advantage in ("leave_one_out", "group_mean"):
            raise SVFError(
                f"advantage={self.advantage} compares completions of one prompt: set num_generations to 2 or more, or "
                "advantage to none or batch_mean"
            )

    def _check_sampling(self) -> None:
        if self.temperature < 0:
            raise SVFError(f"temperature must be 0 (greedy) or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise SVFError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        known = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed", "n", "logprobs"}
        taken = sorted(known & set(self.generation_kwargs or {}))
        if taken:
            raise SVFError(f"generation_kwargs must not hold {taken[0]}: it has its own key, or is the trainer's")
        if self.temperature == 0:
            if (self.num_generations or 1) > 1:
                raise SVFError(
                    "temperature=0 makes all completions of a prompt the same: set num_generations to 1, or sample"
                )
            # a greedy token has probability 1 under the generator, so a ratio means nothing
            self.vllm_importance_sampling_correction = False
        off_policy = self.num_iterations > 1 or self.steps_per_generation > self.gradient_accumulation_steps
        # the right answers come from no policy, so that there is no mismatch to correct
        corrects = self.objective == "next_token" or (self.use_vllm and self.vllm_importance_sampling_correction)
        if off_policy and not corrects:
            raise SVFError(
                "several updates from one set of completions (num_iterations > 1 or steps_per_generation > "
                "gradient_accumulation_steps) need use_vllm, vllm_importance_sampling_correction and temperature > 0"
            )
        if self.gradient_accumulation_steps % self.steps_per_generation and (
            self.steps_per_generation % self.gradient_accumulation_steps
        ):
            raise SVFError(
                f"steps_per_generation ({self.steps_per_generation}) and gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps}) must divide one another: change one of them"
            )


def next_token_settings(kl_type: str) -> dict[str, Any]:
    """
    What settings of policy gradient are for next-token training: one right answer a prompt, each with the same weight,
    under the model's own distribution. The KL term is the exact one, in the loss: estimates read tokens that the policy
    has drawn. A recipe for policy gradient becomes its counterpart in an ablation by `objective: next_token` alone.
    """
    return {
        "num_generations": 1,
        "advantage": "none",
        "normalize_advantages": False,
        "advantage_clip": None,
        "temperature": 1.0,
        "kl_placement": "loss",
        "kl_type": "policy_ref" if kl_type in ("k1", "k2", "k3") else kl_type,
    }


@contextmanager
def hide_from_trl(args: SVFReinforceConfig) -> Iterator[None]:
    """
    Hide from TRL's constructor what our trainer does itself: the engine (`use_vllm`), the reference (`beta`, for which
    TRL would copy the adapter), and greedy decoding (TRL divides logits by the temperature).
    """
    hidden = {"use_vllm": False, "beta": 0.0, "temperature": args.temperature or 1.0}
    shown = {name: getattr(args, name) for name in hidden}
    for name, value in hidden.items():
        setattr(args, name, value)
    try:
        yield
    finally:
        for name, value in shown.items():
            setattr(args, name, value)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SVFError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def _plain(value: Any) -> Any:
    """`loss_type` and its like compare by value; an empty dictionary is as good as none."""
    return value or None
