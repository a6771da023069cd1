"""`SVFReinforceTrainer`: TRL's GRPO trainer with a REINFORCE objective, its own generators and held-out evaluation.

Kept from TRL: data and sampler, reward functions, batching over micro-steps, logging. Replaced: the chat
template's use (`conversations.py`), where completions come from (`_generate_single_turn`), advantages
(`_generate_and_score_completions`), the loss (`_compute_loss`), evaluation (`held_out.py`), what is measured
(`step_metrics.py`) and how checkpoints are written (`checkpointing.py`). Left out: tools, environments, vision,
clipped ratios.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.models.utils import disable_gradient_checkpointing

from svf_rl.errors import SVFError
from svf_rl.generation import CompletionGenerator, Sampling, sample_seed
from svf_rl.losses import objective
from svf_rl.losses.token_logprobs import LogitTransform, TokenStatistics, token_statistics
from svf_rl.runs.summary import RunSummary
from svf_rl.settings.config import SVFReinforceConfig, hide_from_trl
from svf_rl.svf import svf_layers
from svf_rl.training.callbacks import FetchLayers
from svf_rl.training.checkpointing import Checkpointing
from svf_rl.training.decay import decay_towards_identity
from svf_rl.training.generators import build_generator
from svf_rl.training.gradient_buffer import fit_gradient_buffer
from svf_rl.training.held_out import HeldOutEvaluation
from svf_rl.training.policy import (
    add_hidden_states_forward,
    hidden_states,
    output_layer,
    reference,
    trainable_digest,
)
from svf_rl.training.process_group import check_processes_agree
from svf_rl.training.publication import Publication
from svf_rl.training.step_metrics import StepMetrics


class SVFReinforceTrainer(HeldOutEvaluation, StepMetrics, Checkpointing, Publication):
    """
    Trains an adapter by REINFORCE on verifiable rewards.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): The base model, or one that has its adapter already.
        reward_funcs (`Callable` or `list[Callable]`): Rewards in TRL's signature; the first one decides what is correct
            in evaluation. `None` for a completion means that it cannot be scored: it takes no part.
        args ([`SVFReinforceConfig`]): Settings.
        train_dataset (`Dataset`): A column `prompt`, and those the rewards read.
        eval_dataset (`Dataset`, *optional*): Held-out items, answered greedily; the best checkpoint is chosen by them.
        processing_class (`PreTrainedTokenizerBase`, *optional*): The tokenizer; default: the model's.
        callbacks (`list[TrainerCallback]`, *optional*): As in transformers.
        optimizers (`tuple`, *optional*): As in transformers.
        peft_config (`PeftConfig`, *optional*): [`SVFConfig`] or `LoraConfig`, when `model` has no adapter yet.
        generator ([`CompletionGenerator`], *optional*): Where completions come from; default: as `args` say.
        stop (`Sequence[str]`, *optional*):
            Strings that end a completion. Their tokens are trained on; rewards see the text before them.
    """

    args: SVFReinforceConfig
    control: TrainerControl
    _tag_names = ["trl", "svf", "reinforce"]  # noqa: RUF012  (TRL's own attribute)
    _name = "SVF REINFORCE"
    _paper = {  # noqa: RUF012
        "title": "Transformer-Squared: Self-adaptive LLMs",
        "id": "2501.06252",
        "citation": "@article{sun2025transformer2, title = {Transformer-Squared: Self-adaptive LLMs}, "
        "author = {Qi Sun and Edoardo Cetin and Yujin Tang}, year = 2025, eprint = {arXiv:2501.06252}}",
    }

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: Callable[..., Any] | list[Callable[..., Any]],
        args: SVFReinforceConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: PeftConfig | None = None,
        generator: CompletionGenerator | None = None,
        stop: Sequence[str] = (),
    ):
        if peft_config is None and not isinstance(model, PeftModel):
            raise SVFError("the trainer trains adapters: pass peft_config=SVFConfig(), or a model that has an adapter")
        self.run_summary = RunSummary(args.to_dict(), args.seed)  # for the model card
        self._raw_rewards: Tensor | None = None
        self._synced: str | None = None
        self._finished = []
        with hide_from_trl(args):
            super().__init__(
                model=model,
                reward_funcs=reward_funcs,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                callbacks=callbacks,
                optimizers=optimizers,
                peft_config=peft_config,
            )
        if args.weight_decay and self.is_deepspeed_enabled:
            raise SVFError("weight_decay acts on z - 1, which DeepSpeed's optimizers cannot do: set weight_decay to 0")
        if self.is_deepspeed_enabled:
            fit_gradient_buffer(self.accelerator.state.deepspeed_plugin, self.model)
        # TRL takes a completion without EOS as cut off, one that a stop string ended too: the masking is done here
        self.mask_truncated_completions = False
        add_hidden_states_forward(self._base_model)
        self.sampling = Sampling(
            max_tokens=args.max_completion_length,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p or 0.0,
            repetition_penalty=args.repetition_penalty,
            stop=tuple(stop),
            extra=dict(args.generation_kwargs or {}),
        )
        self._transform = LogitTransform.of(self._base_model.config, args.temperature)
        self.generator = generator or build_generator(
            self.model, args, self.accelerator.device.type, self.eos_token_ids, self._tokenizer
        )
        self.add_callback(FetchLayers())
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    @property
    def _base_model(self) -> PreTrainedModel:
        return self.accelerator.unwrap_model(self.model).get_base_model()

    # ---- completions ----------------------------------------------------------------------------------------------

    def sync_weights(self, everything: bool = False) -> None:
        """Bring the generator up to date, unless it is and nothing that is trained has changed since the last time."""
        model = self.accelerator.unwrap_model(self.model)
        digest = trainable_digest(model)
        check_processes_agree(digest, self.state.global_step)
        if digest != self._synced or everything or self.generator.stale:
            # The first time all weights go: the engine read a checkpoint that need not be what the model holds.
            with self._timed("sync"):
                report = self.generator.sync(model, everything or self._synced is None)
            self._synced = digest
            self._metrics["train"]["sync/bytes"].append(float(report.bytes))

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, *_: Any, **__: Any
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        if images is not None:
            raise SVFError("images are not supported: use a text dataset")
        step, within = self.state.global_step, self._step % self.args.gradient_accumulation_steps
        first = (within * self.accelerator.num_processes + self.accelerator.process_index) * len(prompt_ids)
        seeds = [sample_seed(self.args.seed, "train", step, first + i) for i in range(len(prompt_ids))]
        self.sync_weights()
        before = self._seconds["rollout"]
        with self._timed("rollout"):
            completions = self.generator.generate(prompt_ids, self.sampling, seeds)
        seconds = self._seconds["rollout"] - before
        tokens = gather(torch.tensor(sum(len(c.token_ids) for c in completions), device=self.accelerator.device))
        self._metrics["train"]["time/tokens_per_second"].append(tokens.sum().item() / seconds)
        self._finished = [c.finished for c in completions]
        logprobs = [c.logprobs for c in completions if c.logprobs is not None]
        return [c.token_ids for c in completions], logprobs if len(logprobs) == len(completions) else None

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids: Any) -> Tensor:
        with self._timed("reward"):
            self._raw_rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
        return self._raw_rewards

    def _total_reward(self) -> Tensor:
        """`(N,)` weighted sum of the last rewards, over all processes; NaN where no reward function could score."""
        assert self._raw_rewards is not None
        total = (self._raw_rewards * self.reward_weights.to(self._raw_rewards.device)).nansum(1)
        return total.masked_fill(self._raw_rewards.isnan().all(1), torch.nan)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        args = self.args
        output = super()._generate_and_score_completions(inputs)
        rewards = self._total_reward()  # (N,)
        local = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        takes_part = ~rewards[local].isnan() & output["completion_mask"].any(1)  # (B,)
        if args.mask_truncated_completions:
            takes_part &= torch.tensor(self._finished, device=takes_part.device)
        output["completion_mask"] = output["completion_mask"] * takes_part[:, None]
        if args.beta and args.kl_placement == "reward":
            rewards = rewards - args.beta * gather(self._sequence_kl(output))
        advantages = objective.compute_advantages(
            rewards, self.num_generations, args.advantage, args.normalize_advantages, args.advantage_clip
        )
        output["advantages"] = advantages[local]
        # mean over the sequences of one update: an even share of those generated together
        share = args.gradient_accumulation_steps / args.steps_per_generation
        output["sequences"] = gather(takes_part.sum()).sum() * share
        for _ in range(len(advantages)):
            self._logs["advantages"].pop()
        self._logs["advantages"].extend(advantages.tolist())
        self._metrics["train"]["unscorable"].append(self._total_reward().isnan().float().mean().item())
        return output

    # ---- objective ----------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        args, mask = self.args, inputs["completion_mask"]  # (B, T)
        needs_kl = args.beta != 0 and args.kl_placement == "loss"
        statistics = self._statistics(model, inputs, needs_kl)
        logps = _scatter(statistics.logps, mask)  # (B, T)
        weights, sampling_logps = None, inputs.get("sampling_per_token_logps")
        if sampling_logps is not None:
            difference = (logps.detach() - sampling_logps).abs()[mask.bool()]
            self._record("sampling/logp_difference", difference[~difference.isnan()])
            if args.vllm_importance_sampling_correction:
                weights = objective.compute_importance_weights(
                    logps,
                    sampling_logps,
                    mask,
                    args.vllm_importance_sampling_mode,
                    args.vllm_importance_sampling_clip_min,
                    args.vllm_importance_sampling_clip_max,
                )
                self._record("sampling/importance_weight", weights.expand_as(mask)[mask.bool()])
        kl = None
        if needs_kl:
            token_kl = self._token_kl(statistics)  # (n,)
            self._record("kl", token_kl)
            kl = _scatter(token_kl, mask)
        self._record("entropy", statistics.entropy)
        loss = objective.reinforce_loss(
            logps, inputs["advantages"], mask, weights, kl, args.beta, args.loss_reduction, float(inputs["sequences"])
        )
        # DDP divides by the processes, and nothing by the accumulation steps (TRL turns that off): micro-batches add up
        return loss * self.accelerator.num_processes

    def _statistics(self, model: Any, inputs: dict[str, Any], with_reference: bool) -> TokenStatistics:
        """Statistics of the completion tokens that count, `(n,)` each, row by row."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)  # (B, P + T)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        length, counts = inputs["completion_ids"].shape[1], inputs["completion_mask"].bool()
        unwrapped = self.accelerator.unwrap_model(model)
        # the reference first: what its pass needs for a moment is then not added to what the policy's keeps
        ref_hidden = ref_head = None
        if with_reference:
            checkpointing = disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)
            with torch.no_grad(), reference(unwrapped), checkpointing:
                ref_hidden = hidden_states(unwrapped, ids, attention, length)[counts]
                # under ZeRO-3 nobody trains it, and a second copy would be gathered
                ref_head = None if is_deepspeed_zero3_enabled() else output_layer(unwrapped)
        hidden = hidden_states(model, ids, attention, length)[counts]  # (n, d)
        weight, bias = output_layer(unwrapped)
        direction = self.args.kl_type if self.args.kl_type in ("policy_ref", "ref_policy") and with_reference else None
        return token_statistics(
            hidden, inputs["completion_ids"][counts], weight, bias, self._transform, ref_hidden, ref_head, direction
        )

    def _token_kl(self, statistics: TokenStatistics) -> Tensor:
        if statistics.kl is not None:
            return statistics.kl
        assert statistics.ref_logps is not None
        return objective.estimate_kl(statistics.logps, statistics.ref_logps, self.args.kl_type)

    @torch.no_grad()
    def _sequence_kl(self, output: dict[str, Any]) -> Tensor:
        """`(B,)` divergence of each completion of a generation batch, for the reward."""
        parts, size = [], self.args.per_device_train_batch_size
        keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        for start in range(0, len(output["advantages"]), size):
            batch = {key: output[key][start : start + size] for key in keys}
            token_kl = self._token_kl(self._statistics(self.model, batch, with_reference=True))
            self._record("kl", token_kl)
            mask = batch["completion_mask"]
            parts.append(objective.reduce_tokens(_scatter(token_kl, mask), mask, self.args.loss_reduction))
        return torch.cat(parts)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        if self.args.weight_decay and svf_layers(model):
            decay_towards_identity(optimizer, model, self.args.weight_decay)
        return optimizer


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """`(n,)` values of the tokens that count, to `(B, T)` with 0 elsewhere; the graph stays whole where `n` is 0."""
    return values.new_zeros(mask.shape).masked_scatter(mask.bool(), values)
