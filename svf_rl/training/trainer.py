"""`SVFReinforceTrainer`: TRL's GRPO trainer with a REINFORCE objective, its own generators and held-out evaluation.

Kept from TRL: data and sampler, reward functions, micro-steps and their buffer, logging. What is overridden of TRL and
of transformers stands here, each with a line on why; the work is done by what the trainer holds: `PolicyLoss`,
`HeldOutEvaluator`, `Episodes` (tools and environments), `CheckpointManager` and `MetricsRecorder`. Left out: vision,
clipped ratios.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, gather_object, set_seed
from datasets import Dataset
from huggingface_hub import CommitInfo
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
from transformers.trainer_utils import HubStrategy
from trl import GRPOTrainer

from svf_rl.episodes.environments import checked_factories
from svf_rl.episodes.rollout import Rollout, before_stop
from svf_rl.episodes.user_calls import UserCalls
from svf_rl.errors import SVFError
from svf_rl.experts.publish import push_run
from svf_rl.generation import Completion, CompletionGenerator, Sampling, sample_seed
from svf_rl.losses import objective
from svf_rl.losses.token_logprobs import LogitTransform
from svf_rl.models.loading import keep_soft_cap
from svf_rl.rewards.registry import as_reward
from svf_rl.runs.hub import hub_errors
from svf_rl.runs.model_card import write_model_card
from svf_rl.runs.provenance import check_base, find_base
from svf_rl.runs.summary import RunSummary
from svf_rl.settings.config import SVFReinforceConfig
from svf_rl.settings.config_checks import check_metric_set
from svf_rl.settings.dry_run import count_updates
from svf_rl.training.argument_checks import check_arguments, check_trainer, own_model, own_settings
from svf_rl.training.checkpoint_manager import CheckpointManager
from svf_rl.training.checkpoints import adapter_folder
from svf_rl.training.curriculum import LEVEL, Curriculum
from svf_rl.training.decay import decay_towards_identity
from svf_rl.training.episode_checks import check_episodes, check_functions, one_line_of_trl
from svf_rl.training.episodes import TrainerEpisodes
from svf_rl.training.generator import build_generator
from svf_rl.training.health import HealthWarnings
from svf_rl.training.held_out import HeldOutEvaluator
from svf_rl.training.hidden_from_trl import hide_from_trl
from svf_rl.training.metrics_recorder import MetricsRecorder
from svf_rl.training.packing import counted, group_prompts
from svf_rl.training.policy import (
    PolicyLoss,
    add_hidden_states_forward,
    check_processes_agree,
    multiplier_statistics,
    switch_off_dropout,
    trainable_digest,
)
from svf_rl.training.run_context import RunContext
from svf_rl.training.shared_base import RunGenerator
from svf_rl.training.start_check import OnTrainBegin, check_start
from svf_rl.training.start_values import StartValues
from svf_rl.training.update_size import UpdateSize
from svf_rl.training.weight_sharing import prepare_sharing
from svf_rl.training.zero import FetchLayers, fit_gradient_buffer, trained_alone, trained_state

logger = logging.getLogger(__name__)


class SVFReinforceTrainer(GRPOTrainer):
    """
    Trains an adapter by REINFORCE on verifiable rewards.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): The base model, or one that has its adapter already.
        reward_funcs (`Callable`, `str` or a list of them): Rewards in TRL's signature, or names of registered ones; the
            first one decides what is correct in evaluation. `None` for a completion means that it cannot be scored: it
            takes no part.
        args ([`SVFReinforceConfig`], *optional*): Settings; by default those of the class, in a folder `<model>-SVF`.
        train_dataset (`Dataset`): A column `prompt`, and those the rewards read.
        eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*):
            Held-out items, answered greedily; the best checkpoint is chosen by them. Several sets have their names in
            their metrics (`eval_gsm8k_accuracy`), and `eval_accuracy` is the mean of their accuracies.
        processing_class (`PreTrainedTokenizerBase`, *optional*): The tokenizer; default: the model's.
        callbacks (`list[TrainerCallback]`, *optional*): As in transformers.
        optimizers (`tuple`, *optional*): As in transformers.
        peft_config (`PeftConfig`, *optional*): [`SVFConfig`] or `LoraConfig`, when `model` has no adapter yet.
        generator ([`CompletionGenerator`], *optional*):
            Where completions come from; default: as `args` say. One that is given is not checked at the start.
        stop (`Sequence[str]`, *optional*):
            Strings that end a completion. Their tokens are trained on; rewards see the text before them.
        context ([`RunContext`], *optional*): The run that this is a part of; default: one by itself.
        reward_processing_classes (`list`, *optional*): As in TRL, for reward models.
        quantization_config (`QuantizationConfigMixin`, *optional*): As in TRL, for a model given by its name.
        tools (`list[Callable]`, *optional*): As in TRL: functions that the model may call.
        rollout_func (`Callable`, *optional*):
            As in TRL: makes the episodes of some prompts, `rollout_func(prompts, trainer)`. `trainer.generate` gives it
            completions, with the seeds that they have in the run.
        environment_factory (`Callable` or `dict[str, Callable]`, *optional*):
            As in TRL: makes the environments that the model acts in; of several, the column `environment` says which.
            A call of a tool, of `reset` or of `get_reward` may take `args.tool_timeout` seconds. A sample whose
            environment fails takes no part.
    """

    args: SVFReinforceConfig
    control: TrainerControl
    _buffered_inputs: list[dict[str, Tensor]] | None
    _tag_names = ["trl", "svf", "reinforce"]  # noqa: RUF012  (TRL's own attribute)
    _name = "SVF REINFORCE"
    _objective = "policy_gradient"
    _paper = {  # noqa: RUF012
        "title": "Transformer-Squared: Self-adaptive LLMs",
        "id": "2501.06252",
        "citation": "@article{sun2025transformer2, title = {Transformer-Squared: Self-adaptive LLMs}, "
        "author = {Qi Sun and Edoardo Cetin and Yujin Tang}, year = 2025, eprint = {arXiv:2501.06252}}",
    }

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: str | Callable[..., Any] | Sequence[str | Callable[..., Any]],
        args: SVFReinforceConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: PeftConfig | None = None,
        generator: CompletionGenerator | None = None,
        stop: Sequence[str] = (),
        context: RunContext | None = None,
        reward_processing_classes: Any = None,
        quantization_config: Any = None,
        tools: list[Callable[..., Any]] | None = None,
        rollout_func: Callable[..., dict[str, Any]] | None = None,
        environment_factory: Callable[[], Any] | dict[str, Callable[[], Any]] | None = None,
    ):
        model = own_model(model)
        args = own_settings(model, args)
        check_trainer(type(self).__name__, self._objective, args)
        acts_in_environment = environment_factory is not None
        given = [] if reward_funcs is None else reward_funcs
        # TRL adds those of environments to its list
        rewards = [as_reward(one) for one in (given if isinstance(given, list | tuple) else [given])]
        check_arguments(
            model, rewards, train_dataset, eval_dataset, processing_class, peft_config, acts_in_environment,
            columns_are_known=rollout_func is None,
        )  # fmt: skip
        check_metric_set(args, list(eval_dataset) if isinstance(eval_dataset, dict) else [])
        check_functions(tools, rollout_func)
        self.context = context or RunContext()
        if not self.context.summary.recipe:
            self.context.summary = RunSummary(args.to_dict(), args.seed)
        if generator is None:
            prepare_sharing(model, args)
        self.user_calls = UserCalls(args.tool_timeout, self)
        with hide_from_trl(args, model), one_line_of_trl(bool(tools) or acts_in_environment):
            super().__init__(
                model=model,
                reward_funcs=list(rewards),
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                callbacks=callbacks,
                optimizers=optimizers,
                peft_config=peft_config,
                reward_processing_classes=reward_processing_classes,
                quantization_config=quantization_config,
                tools=list(tools or []),
                rollout_func=rollout_func,
                environment_factory=checked_factories(
                    environment_factory, self.user_calls, args.seed, args.process_index
                ),
            )
        self.episodes = TrainerEpisodes(self)
        self.reward_funcs[len(rewards) :] = self.episodes.environments.rewards()
        self._own_rewards = bool(rewards)
        check_episodes(self)
        self.beta = args.beta  # hidden from the constructor alone
        if self.is_deepspeed_enabled:
            if args.weight_decay:
                raise SVFError("weight_decay acts on z - 1, which DeepSpeed's optimizers cannot do: set it to 0")
            fit_gradient_buffer(self.accelerator.state.deepspeed_plugin, self.model)
            self.add_callback(FetchLayers())
        base = self.accelerator.unwrap_model(self.model).get_base_model()
        keep_soft_cap(base)
        switch_off_dropout(base)
        add_hidden_states_forward(base)
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
        self.synced: str | None = None
        """Digest of the trained values that the generator has."""
        self.recorder = MetricsRecorder(self)
        transform = LogitTransform.of(base.config, args.temperature)
        packing = "none" if args.objective == "evolution_strategies" else args.train_packing  # it has no rows
        self.start = self._start_values()
        self.loss = PolicyLoss(args, self.accelerator, self.recorder, transform, packing, self.start)
        self.held_out = HeldOutEvaluator(self)
        self.checkpoints = CheckpointManager(self, self.context)
        self.generator = generator or build_generator(
            self.model, args, self.accelerator.device.type, self.eos_token_ids, self._tokenizer
        )
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        self.add_callback(HealthWarnings())
        if not self.is_deepspeed_enabled:  # which makes the step before the callbacks
            self.add_callback(UpdateSize(self))
        self.curriculum: Curriculum | None = None
        if train_dataset is not None and LEVEL in train_dataset.column_names:
            if args.objective == "next_token":
                raise SVFError("a curriculum goes by rewards, of which objective: next_token has none: remove it")
            self.curriculum = Curriculum(
                train_dataset, args.curriculum_accuracy, args.curriculum_updates, args.correct_threshold
            )
            self.add_callback(self.curriculum)
        if self.is_deepspeed_enabled:  # which has put the model in its place only then
            self.add_callback(OnTrainBegin(partial(check_start, self, generator is None)))
        else:
            check_start(self, ask_generator=generator is None or isinstance(generator, RunGenerator))

    @property
    def acts(self) -> bool:
        """Whether answers take several turns, as far as it was given anything that makes them."""
        return bool(self.tools or self.environment_factories or self.rollout_func)

    def _start_values(self) -> StartValues | None:
        if self.args.kl_reference == "base" or not self.args.beta:
            return None
        if is_deepspeed_zero3_enabled():
            raise SVFError("kl_reference: start does not go with ZeRO-3: set it to base")
        return StartValues(self.accelerator.unwrap_model(self.model))

    # ---- completions --------------------------------------------------------------------------------------------

    def sync_weights(self) -> None:
        """Bring the generator up to date, unless it is and nothing that is trained has changed since the last time."""
        model = self.accelerator.unwrap_model(self.model)
        digest = trainable_digest(model)
        check_processes_agree(digest, self.state.global_step)
        if digest != self.synced or self.generator.stale:
            with self.recorder.timed("sync"):
                report = self.generator.sync(model)
            self.synced = digest
            self.recorder.add("sync/bytes", float(report.bytes))

    def restore_sync(self, synced: str | None) -> None:
        """Give the generator its weights, and take it for as up to date as it was in the run that is resumed: what is
        logged of syncs is then what was logged without the interruption."""
        self.generator.sync(self.accelerator.unwrap_model(self.model))
        self.synced = synced

    def tokenize(self, prompts: list[Any], environments: Sequence[str | None] | None = None) -> list[list[int]]:
        """The tokens of texts, or of conversations through the chat template, with the tools that each may call. Of
        several environments, `environments` names that of each prompt; default: those of the rows at hand."""
        toolbox = self.episodes.toolbox
        if environments is None:
            environments = self.episodes.environments.names if toolbox.several else [None] * len(prompts)
        if len(environments) != len(prompts):
            raise SVFError(
                f"trainer.tokenize was given {len(prompts)} prompts and {len(environments)} environments: name that of "
                "each prompt"
            )
        return toolbox.encode(prompts, environments)

    def generate(
        self,
        prompt_ids: list[list[int]],
        places: Sequence[int] | None = None,
        turn: int = 0,
        max_tokens: int | None = None,
    ) -> list[Completion]:
        """
        Completions for a `rollout_func`, from the weights of this step and with the seeds of its samples: sampled in
        training, greedy in an evaluation.

        Args:
            prompt_ids (`list[list[int]]`): Tokens of what the model is to continue.
            places (`Sequence[int]`, *optional*):
                For each, to which of the function's prompts it belongs; default: one each, in order.
            turn (`int`, *optional*, defaults to 0):
                Of its episode. A sample has another seed for each turn, and none of them depends on anything else.
            max_tokens (`int`, *optional*): Of a completion, at most and by default `args.max_completion_length`.

        Raises:
            SVFError: outside of a call of the `rollout_func`, or places that do not fit.
        """
        return self.episodes.generate(prompt_ids, places, turn, max_tokens or self.sampling.max_tokens)

    def score(self, rows: list[dict[str, Any]], rollout: Rollout) -> Tensor:
        """`(N, functions)` rewards of the completions of all processes, NaN where a function could not score one.
        Rewards see the text before a stop string."""
        completions = rollout.completions
        if self.sampling.stop:
            completions = [before_stop(completion, self.sampling.stop) for completion in completions]
        if rollout.extra:
            extra = [
                dict(zip(rollout.extra, values, strict=True)) for values in zip(*rollout.extra.values(), strict=True)
            ]
            rows = [{**row, **more} for row, more in zip(rows, extra, strict=True)]
        with self.recorder.timed("reward"):
            rewards = self._calculate_rewards(rows, rollout.prompts, completions, rollout.completion_ids)
        for name, values in zip(self.reward_func_names, rewards.unbind(1), strict=True):
            if values.isinf().any():  # of a plain function: `Reward` names it before
                raise SVFError(f"reward {name!r} returned inf; return None for a sample without a score")
        if self.environment_factories is not None:
            failed = self._environments_failed()
            self.episodes.environments.failures.check_batch(bool(failed.all()))
            rewards[failed] = torch.nan
        return rewards

    def _environments_failed(self) -> Tensor:
        """`(N,)` of all processes: whether the environment of a row has failed."""
        failed = [int(bool(how)) for how in self.episodes.environments.failed]
        return gather(torch.tensor(failed, device=self.accelerator.device)).bool()

    def _roll_out(self, rows: list[dict[str, Any]]) -> Rollout:
        """An answer to each row's prompt."""
        within = self._step % self.args.gradient_accumulation_steps // self.args.steps_per_generation
        first = (within * self.accelerator.num_processes + self.accelerator.process_index) * len(rows)
        self.sync_weights()
        before = self.recorder.seconds["rollout"]
        with self.recorder.timed("rollout"):
            rollout = self.episodes.play(rows, partial(self._answer, first))
        seconds = self.recorder.seconds["rollout"] - before
        tokens = gather(torch.tensor(sum(rollout.lengths), device=self.accelerator.device))
        self.recorder.add("time/tokens_per_second", tokens.sum().item() / seconds)
        return rollout

    def _answer(
        self, first: int, prompts: list[list[int]], rows: Sequence[int], turn: int, room: int
    ) -> list[Completion]:
        """A completion of each prompt, in a `turn` of the episodes of `rows`, of which `first` is in the step, over all
        processes, the place of the first."""
        step = self.state.global_step
        seeds = [sample_seed(self.args.seed, "train", step, first + row, turn) for row in rows]
        return self.generator.generate(prompts, self.sampling.within(room), seeds)

    def _score_rollout(self, rows: list[dict[str, Any]], rollout: Rollout) -> tuple[Tensor, Tensor]:
        """`(N, functions)` rewards of all processes, and `(N,)` their weighted sum, NaN where none could score."""
        rewards = self.score(rows, rollout)
        total = objective.total_reward(rewards, self.reward_weights)
        self.recorder.add_rewards(rewards, total)
        self.recorder.add_reward_logs(len(rows))
        self.recorder.add("unscorable", total.isnan().float().mean().item())
        if self.environment_factories is not None:
            self.recorder.add("environments/failure_frequency", self._environments_failed().float().mean().item())
        return rewards, total

    def deciding(self, rewards: Tensor, total: Tensor) -> Tensor:
        """What says whether a completion is right, of `rewards` (N, functions) and their sums `total` (N,): the first
        reward, or where only environments give any that of its own."""
        return rewards[:, 0] if self._own_rewards else total

    def _make_batch(self, rollout: Rollout, rewards: Tensor, total: Tensor) -> dict[str, Any]:
        """What the loss takes of this process's completions, given all `rewards` (N, functions) and their sums
        `total` (N,)."""
        args, count = self.args, len(rollout.prompts)
        local = slice(self.accelerator.process_index * count, (self.accelerator.process_index + 1) * count)
        batch = rollout.tensors(self._tokenizer.pad_token_id, self.accelerator.device, self.pad_to_multiple_of)
        name = "sampling_per_token_logps"
        if any(gather_object([name in batch])) and name not in batch:  # all processes have the same metrics
            batch[name] = torch.full(batch["completion_ids"].shape, torch.nan, device=self.accelerator.device)
        takes_part = ~total[local].isnan() & counted(batch).any(1)  # (B,)
        if args.mask_truncated_completions:
            takes_part &= torch.tensor(rollout.finished, device=takes_part.device)
        batch["completion_mask"] *= takes_part[:, None]
        if args.beta and args.kl_placement == "reward":
            total = total - args.beta * gather(self.loss.sequence_kl(self.model, batch))
        advantages = objective.compute_advantages(
            total, self.num_generations, args.advantage, args.normalize_advantages, args.advantage_clip
        )
        self.recorder.add_table(rollout, rewards, advantages)
        # mean over the sequences of one step (an epoch's last may be short): an even share of those generated together
        share = self.current_gradient_accumulation_steps / args.steps_per_generation
        totals = {"sequences": takes_part.sum(), "tokens": counted(batch).sum()}
        return {**batch, "advantages": advantages[local], **{k: gather(n).sum() * share for k, n in totals.items()}}

    def _loss_of(self, model: Any, batch: dict[str, Any]) -> Tensor:
        return self.loss(model, batch)

    # ---- what is overridden of TRL ------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's generates with its own engine, knows no stop strings, and computes GRPO's advantages and ratios."""
        if "image" in inputs[0] or "images" in inputs[0]:
            raise SVFError("images are not supported: use a text dataset")
        if self.curriculum is not None:
            self.recorder.add("curriculum/level", self.curriculum.level)
            inputs = self.curriculum.at_level(inputs)
        rollout = self._roll_out(inputs)
        self.recorder.add_lengths(rollout)
        if rollout.counts is not None:
            self.recorder.add_episodes(rollout.counts)
        rewards, total = self._score_rollout(inputs, rollout)
        if self.curriculum is not None:
            self.curriculum.take(self.deciding(rewards, total))
        return self._make_batch(rollout, rewards, total)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's shuffles completions over the micro-batches of a step, where those of a prompt can share its pass."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is None or self._buffered_inputs is before or self.loss.packing != "prompt":
            return inputs
        self._buffered_inputs = group_prompts(self._buffered_inputs, self.args.gradient_accumulation_steps)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's is GRPO's clipped surrogate."""
        return self._loss_of(model, inputs)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """TRL's measures a step as a whole."""
        with self.recorder.micro_step():
            return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's knows nothing of multipliers, and prints its table of completions with every line."""
        printed = self.state.global_step % self.args.print_completions_steps == 0
        self.num_completions_to_print = self.args.num_completions_to_print if printed else 0
        if self.model.training:
            logs = {**logs, **multiplier_statistics(self.accelerator.unwrap_model(self.model))}
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """TRL's samples and computes a loss. This one answers greedily: see [`HeldOutEvaluator.evaluate`]."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(rows, str):  # one of several sets, as transformers has it
            rows, metric_key_prefix = self.eval_dataset[rows], f"{metric_key_prefix}_{rows}"
        metrics = self.held_out.evaluate(rows, metric_key_prefix)
        # `eval` selects a checkpoint or stops a run; a report before or after the run does neither
        if metric_key_prefix == "eval":
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *_: Any, **__: Any) -> Any:
        """transformers' gives labels and a loss, which answers do not have."""
        raise SVFError("there is no predict here: evaluate(dataset, metric_key_prefix='test') answers and grades items")

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Any:
        """TRL's draws the order of the first epoch first, also where a run resumes in a later one."""
        sampler = super()._get_train_sampler(dataset)
        self.checkpoints.skip_epochs(sampler)
        return sampler

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """transformers' can be torn by a kill, and TRL's writes its own model card."""
        self.checkpoints.save(resumable=not self.args.save_only_model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """transformers maps to `args.device`: `cpu:0` for several processes on the CPU, to which nothing can map."""
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        for part, name in ((self.optimizer, "optimizer.pt"), (self.lr_scheduler, "scheduler.pt")):
            part.load_state_dict(torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True))

    # ---- what is overridden of transformers ---------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """transformers' takes any folder for a checkpoint of this run. `resume_from_checkpoint` is what
        [`find_checkpoint`] takes."""
        if self.train_dataset is not None:
            count_updates(self.args, len(self.train_dataset))  # transformers' makes no step where there is none
        with self.context.stop.waits_for_step(), self.checkpoints.running(resume_from_checkpoint) as folder:
            return super().train(folder, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """transformers makes one step more where a run resumes from its last."""
        if self.checkpoints.nothing_left():
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """transformers calls it after each step, and again at the end of an epoch: a checkpoint is written when all
        that is due was done, and a run that was asked to stop does so then."""
        more_follows = self.checkpoints.postpone()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if not more_follows:
            self.checkpoints.stop_if_asked()

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """transformers removes checkpoints here, the last too; what is too many was removed with each checkpoint."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """transformers makes a step whatever its gradient. Called before it, and under DeepSpeed after it, which skips
        it then and keeps the norm of the step before."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.is_deepspeed_enabled and self.accelerator.optimizer_step_was_skipped:
            norm = torch.nan
        self.checkpoints.check_gradient(norm)
        return norm

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """transformers' weight decay would pull `z` to 0."""
        optimizer = super().create_optimizer(*args, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        if self.args.weight_decay:
            decay_towards_identity(optimizer, model, self.args.weight_decay)
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """transformers has DeepSpeed write a tied embedding each time."""
        with trained_alone(self.accelerator.unwrap_model(self.model)):
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """transformers has no state for processes that were not there when the checkpoint was written."""
        if self.checkpoints.same_processes():
            super()._load_rng_state(checkpoint)
        else:
            set_seed(self.args.seed + self.state.global_step, device_specific=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """transformers' copies the whole model on each process under DeepSpeed, and takes a full disk for a setting of
        ZeRO-3."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
            return
        state = trained_state(self.accelerator.unwrap_model(self.model))
        if self.args.should_save:
            self._save(output_dir, state)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """transformers' leaves half-written files behind where it is killed, and PEFT's model card."""
        token, self.args.hub_token = self.args.hub_token, None  # it would be in training_args.bin, for all to read
        try:
            with adapter_folder(Path(output_dir or self.args.output_dir)) as folder:
                super()._save(str(folder), state_dict)
                write_model_card(folder, self.context.summary)
        finally:
            self.args.hub_token = token

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """TRL's says nothing of the recipe and of accuracies; before the first adapter there is no card."""
        folder = Path(self.args.output_dir)
        if self.is_world_process_zero() and (folder / "adapter_config.json").is_file():
            write_model_card(folder, self.context.summary)

    def init_hf_repo(self, token: str | None = None) -> None:
        """transformers' raises the Hub's own errors, and looks at nothing else before the run."""
        with hub_errors(self._hub_name, token or self.args.hub_token):
            config = self.accelerator.unwrap_model(self.model).active_peft_config
            check_base(find_base(config.to_dict(), self.context.summary))
            super().init_hf_repo(token)

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **_: Any,
    ) -> Any:
        """transformers' uploads all that is in the folder: arguments with the token, logs with paths and addresses."""
        if self.hub_model_id is None:
            self.init_hf_repo(token)
        self.save_model(_internal_call=True)
        self.create_model_card()
        if self.is_world_process_zero():
            return self._push(Path(self.args.output_dir), commit_message, token, revision)
        return None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As `push_to_hub`; and a run goes on where the Hub cannot be reached."""
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            try:
                self._push(Path(checkpoint_folder), f"Training in progress, step {self.state.global_step}")
            except SVFError as error:
                logger.warning("step %d was not pushed: %s", self.state.global_step, error)

    def _push(self, folder: Path, message: str, token: str | None = None, revision: str | None = None) -> CommitInfo:
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token, revision = token or self.args.hub_token, revision or self.args.hub_revision
        return push_run(folder, self.context.summary, str(self.hub_model_id), message, token, revision)

    @property
    def _hub_name(self) -> str:
        return self.args.hub_model_id or Path(self.args.output_dir).absolute().name
