"""Whether settings of the trainer go together: each check raises `SVFError` with one line that says what to change."""

import re
from collections.abc import Collection
from dataclasses import fields
from typing import TYPE_CHECKING

from trl import GRPOConfig

from svf_rl.errors import SVFError
from svf_rl.losses.objective import BASELINES
from svf_rl.settings.refused_options import NOT_HERE, UNSUPPORTED, refused_option
from svf_rl.settings.yaml_values import shown

if TYPE_CHECKING:
    from svf_rl.settings.config import SVFReinforceConfig

EVALUATED = ("accuracy", "reward", "unscorable", "items", "completion_length", "clipped_ratio")
"""What an evaluation measures; for one of several sets its name stands before it, as in `eval_gsm8k_accuracy`."""
_METRIC = re.compile(rf"(eval_)?(.+_)?(?P<measured>{'|'.join(EVALUATED)})(/.+)?")


def check_best_model(args: "SVFReinforceConfig") -> None:
    """Transformers refuses it too, in words that are no keys."""
    evaluated, saved = args.eval_steps or args.logging_steps, args.save_steps
    by_steps = {str(getattr(one, "value", one)) for one in (args.eval_strategy, args.save_strategy)} == {"steps"}
    if args.load_best_model_at_end and by_steps and min(evaluated, saved) >= 1 and saved % evaluated:
        raise SVFError(
            f"load_best_model_at_end: save_steps must be a multiple of eval_steps, not {saved:g} of {evaluated:g}"
        )


def check_unsupported(args: "SVFReinforceConfig") -> None:
    """Options of GRPO that the objective here does not have."""
    defaults = {f.name: f.default for f in fields(GRPOConfig)}
    for name in UNSUPPORTED:
        # `or None`: an empty dictionary is as good as none
        if (getattr(args, name) or None) != (defaults[name] or None):
            raise refused_option(f"{name}={getattr(args, name)!r}", name)
    if args.torch_compile:
        raise SVFError(f"torch_compile: {NOT_HERE['torch_compile']}")
    if args.fsdp:
        raise SVFError(f"fsdp: {NOT_HERE['fsdp']}")
    if args.remove_unused_columns:
        raise refused_option("remove_unused_columns", "remove_unused_columns")


def counts_failures(metric: str | None) -> bool:
    """Whether the metric of an evaluation is one of which the least is best."""
    found = _METRIC.fullmatch(metric or "")
    return found is not None and found["measured"] in ("unscorable", "clipped_ratio")


def check_metric(args: "SVFReinforceConfig") -> None:
    """transformers looks for the metric at the first evaluation, when the run is under way."""
    metric = args.metric_for_best_model
    if metric is not None and not _METRIC.fullmatch(metric):
        raise SVFError(
            f"metric_for_best_model must be one of {', '.join(f'eval_{name}' for name in EVALUATED)}, not "
            f"{shown(metric)}: an evaluation answers items and has no loss"
        )


def check_metric_set(args: "SVFReinforceConfig", sets: Collection[str]) -> None:
    """Raises `SVFError` for the metric of an evaluation set that is not among those with a name."""
    found = _METRIC.fullmatch(args.metric_for_best_model or "")
    name = "" if found is None else (found[2] or "").removesuffix("_")
    if name and name not in sets:
        known = f"the sets are {', '.join(sets)}" if sets else "there is one set, without a name"
        raise SVFError(
            f"metric_for_best_model {args.metric_for_best_model}: there is no evaluation set {name!r}: {known}"
        )


def check_objective(args: "SVFReinforceConfig") -> None:
    """The objective, its baseline and its KL term."""
    if args.beta < 0:
        raise SVFError(f"beta must not be negative, not {args.beta}")
    if args.advantage_clip is not None and args.advantage_clip <= 0:
        raise SVFError(f"advantage_clip must be positive, not {args.advantage_clip}")
    if args.early_stopping_patience is not None and args.eval_strategy == "no":
        raise SVFError("early_stopping_patience needs evaluations: set eval_strategy to steps or epoch")
    if args.objective == "evolution_strategies":
        _check_evolution(args)
    elif args.num_generations == 1 and not BASELINES[args.advantage].whole_batch:
        others = " or ".join(name for name, baseline in BASELINES.items() if baseline.whole_batch)
        raise SVFError(
            f"advantage={args.advantage} compares completions of one prompt: set num_generations to 2 or more, or "
            f"advantage to {others}"
        )


def _check_evolution(args: "SVFReinforceConfig") -> None:
    """What evolution strategies need of the engine and of a batch."""
    if args.vllm_weights == "merged" or args.sharing_hindrance:
        raise SVFError(
            "objective: evolution_strategies does not go with "
            f"{args.sharing_hindrance or 'vllm_weights: merged'}: a population is answered in one batch by an "
            "engine that shares the model's weights"
        )
    if args.beta:
        raise SVFError(
            f"objective: evolution_strategies has no KL term, which takes passes of the model: set beta to 0, not "
            f"{args.beta:g}; weight_decay keeps z near the base model"
        )
    if (args.num_generations or 0) % 2:
        raise SVFError(
            "objective: evolution_strategies has a population of pairs, each member answering each prompt: "
            f"num_generations must be even, not {args.num_generations}"
        )
    if args.num_iterations > 1 or args.steps_per_generation != args.gradient_accumulation_steps:
        raise SVFError(
            "objective: evolution_strategies makes one step from the completions of one population: remove "
            "num_iterations, steps_per_generation and generation_batch_size"
        )


def check_sampling(args: "SVFReinforceConfig") -> None:
    """How completions are sampled, and how many steps are made of them."""
    if args.temperature < 0:
        raise SVFError(f"temperature must be 0 (greedy) or more, not {args.temperature}")
    if 0 < args.temperature < 1e-3:
        raise SVFError(f"temperature must be 0 (greedy) or at least 0.001, not {args.temperature:g}")
    if not 0 < args.top_p <= 1:
        raise SVFError(f"top_p must be above 0 and at most 1, not {args.top_p}")
    known = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed", "n", "logprobs"}
    taken = sorted(known & set(args.generation_kwargs or {}))
    if taken:
        raise SVFError(f"generation_kwargs must not hold {taken[0]}: it has its own key, or is the trainer's")
    if args.temperature == 0:
        if (args.num_generations or 1) > 1 and args.objective != "evolution_strategies":
            raise SVFError(
                "temperature=0 makes all completions of a prompt the same: set num_generations to 1, or sample"
            )
        # a greedy token has probability 1 under the generator, so a ratio means nothing
        args.vllm_importance_sampling_correction = False
    off_policy = args.num_iterations > 1 or args.steps_per_generation > args.gradient_accumulation_steps
    # targets come from no policy, so there is no mismatch to correct
    corrects = args.objective == "next_token" or (args.use_vllm and args.vllm_importance_sampling_correction)
    if off_policy and not corrects:
        raise SVFError(
            "several steps from one set of completions (num_iterations > 1 or steps_per_generation > "
            "gradient_accumulation_steps) need use_vllm, vllm_importance_sampling_correction and temperature > 0"
        )
    if args.gradient_accumulation_steps % args.steps_per_generation and (
        args.steps_per_generation % args.gradient_accumulation_steps
    ):
        raise SVFError(
            f"steps_per_generation ({args.steps_per_generation}) and gradient_accumulation_steps "
            f"({args.gradient_accumulation_steps}) must divide one another: change one of them"
        )


def check_servers(args: "SVFReinforceConfig") -> None:
    """Addresses and settings of vLLM servers."""
    if args.vllm_mode == "colocate":
        if args.server_urls:
            raise SVFError("vllm_server_base_url is for vllm_mode: server: set that too, or remove it")
        if args.vllm_server_folder is not None:
            raise SVFError("vllm_server_folder is for vllm_mode: server: set that too, or remove it")
        return
    if not args.use_vllm:
        raise SVFError("vllm_mode: server needs use_vllm: true")
    if args.vllm_server_timeout <= 0:
        raise SVFError(f"vllm_server_timeout must be positive, not {args.vllm_server_timeout:g}")
    if args.vllm_enable_sleep_mode:
        raise SVFError("vllm_enable_sleep_mode is for a colocated vLLM: remove it, or vllm_mode: server")
    if not args.server_urls:
        raise SVFError(
            "vllm_mode: server needs vllm_server_base_url, such as http://localhost:8000: start a server with "
            "svf-rl serve RECIPE and give its address"
        )
    for url in args.server_urls:
        if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", url):
            raise SVFError(f"vllm_server_base_url: {url!r} is not a valid address, such as http://localhost:8000")
    twice = {url for url in args.server_urls if args.server_urls.count(url) > 1}
    if twice:
        raise SVFError(f"vllm_server_base_url names {min(twice)} twice: remove one")
