"""The part of the dry run that looks at the training: optimizer, schedule and sampling are built as in the run."""

import inspect
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    SchedulerType,
    Trainer,
    get_scheduler,
)
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.training_args import OptimizerNames

from svf_rl.errors import SVFError, one_line
from svf_rl.generation import Sampling
from svf_rl.generation.prompts import check_template_arguments
from svf_rl.generation.transformers_generator import TransformersGenerator
from svf_rl.generation.vllm.settings import sampling_params
from svf_rl.rewards.reward import nearest
from svf_rl.settings.config import SVFReinforceConfig

_STEPS = 3


def check_training(training: SVFReinforceConfig, updates: int | None) -> None:
    """Raises `SVFError`, naming the key, for settings that a run of `updates` updates would find out to be wrong later:
    an optimizer or a schedule that cannot be built, a logger or an argument of the sampling that nobody knows."""
    _check_optimizer(training, updates or 100)
    _check_checkpointing(training)
    if training.dataloader_persistent_workers and not training.dataloader_num_workers:
        raise SVFError("dataloader_persistent_workers needs dataloader_num_workers of at least 1")
    check_template_arguments(training.chat_template_kwargs)
    _check_generation(training)


@contextmanager
def _named(keys: str) -> Iterator[None]:
    """What other libraries raise for bad settings, as one line that names the keys."""
    try:
        yield
    except (TypeError, ValueError, ImportError, AttributeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise SVFError(f"{keys}: {one_line(error)}") from error


def _check_optimizer(training: SVFReinforceConfig, updates: int) -> None:
    model = nn.Linear(2, 2, bias=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = f", optim_args {training.optim_args!r} (name=value, ...)" if training.optim_args else ""
        with _named(f"optim {OptimizerNames(training.optim).value}{arguments}"):
            made, settings = Trainer.get_optimizer_cls_and_kwargs(training, model)
            optimizer = made(model.parameters(), **settings)
        given = training.lr_scheduler_kwargs or {}
        taken = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[training.lr_scheduler_type]).parameters
        if "kwargs" not in taken:
            ours = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
            _check_names("lr_scheduler_kwargs", given, [name for name in taken if name not in ours])
        name = f"lr_scheduler_type {SchedulerType(training.lr_scheduler_type).value}, lr_scheduler_kwargs {given}"
        with _named(name):
            schedule = get_scheduler(
                training.lr_scheduler_type,
                optimizer=optimizer,
                num_warmup_steps=training.get_warmup_steps(updates),
                num_training_steps=updates,
                scheduler_specific_kwargs=training.lr_scheduler_kwargs,
            )
            needs_metric = "metrics" in inspect.signature(schedule.step).parameters
            for _ in range(min(_STEPS, updates)):
                optimizer.step()  # without gradients: no weight moves
                schedule.step(*[0.0] * needs_metric)
    if needs_metric and training.eval_strategy == "no":
        raise SVFError(f"{name} needs evaluations: set eval_strategy")
    rates = torch.tensor([float(group["lr"]) for group in optimizer.param_groups])
    if not rates.isfinite().all() or (rates < 0).any():
        raise SVFError(
            f"lr_scheduler_type {training.lr_scheduler_type}{given} gives a learning rate of {rates.tolist()}"
        )


def _check_checkpointing(training: SVFReinforceConfig) -> None:
    given = training.gradient_checkpointing_kwargs or {}
    known = {"use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop", "context_fn"}
    _check_names("gradient_checkpointing_kwargs", given, known)
    processes_together = training.world_size > 1 and training.deepspeed_plugin is None
    if training.gradient_checkpointing and given.get("use_reentrant") and processes_together:
        raise SVFError(
            "gradient_checkpointing_kwargs: use_reentrant: true does not work for several processes under DDP: "
            "set it to false"
        )


def _check_generation(training: SVFReinforceConfig) -> None:
    given = training.generation_kwargs or {}
    if not given:
        return
    min_p, penalty = training.min_p or 0.0, training.repetition_penalty
    sampling = Sampling(
        training.max_completion_length, training.temperature, training.top_p, training.top_k, min_p, penalty,
        extra=given,
    )  # fmt: skip
    if not training.use_vllm:
        _check_names("generation_kwargs", given, vars(GenerationConfig()))
        with _named(f"generation_kwargs {given}"):
            GenerationConfig(do_sample=training.temperature > 0, **given).validate(strict=True)
            _generate(replace(sampling, max_tokens=min(sampling.max_tokens, 2)))
        return
    try:
        from vllm import SamplingParams
    except ImportError:  # on the machine that writes the recipe
        return
    _check_names("generation_kwargs", given, inspect.signature(SamplingParams).parameters)
    sampling_params(sampling, seed=0)


def _generate(sampling: Sampling) -> None:
    """By a model of a few numbers, whose vocabulary holds the token ids of larger ones."""
    config = LlamaConfig(
        vocab_size=2**18, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    generator = TransformersGenerator(LlamaForCausalLM(config), eos_token_ids=[2], pad_token_id=0)
    answers = generator.generate([[5, 6], [5]], sampling, [0, 0])
    if len(answers) != 2:
        raise ValueError(f"gives {len(answers) // 2} completions for one, whose number is num_generations")


def _check_names(key: str, given: Collection[str], known: Collection[str]) -> None:
    known = [name for name in known if not name.startswith("_")]
    for name in given:
        if name not in known:
            raise SVFError(f"{key}: unknown argument {name!r}{nearest(name, known)[:400]}")
