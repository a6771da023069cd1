"""Options that several sub-commands share, and what they become."""

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import yaml

from svf_rl.errors import SVFError

if TYPE_CHECKING:
    from svf_rl.evaluation.arguments import EvaluationArguments


def add_engine(parser: argparse.ArgumentParser, gpu_memory_utilization: float) -> None:
    """How completions are made."""
    add = parser.add_argument
    add("--backend", choices=["vllm", "transformers"], default="vllm", help="default: vllm")
    add("--max-tokens", type=int, help="of a completion (default: the task's)")
    add("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="of the weights")
    add("--batch-size", type=int, help="completions written together (default: 512, or 32 with transformers)")
    add("--chat-template-kwargs", default="{}", help="for the template: '{enable_thinking: false}'")
    add("--max-failed", type=float, default=0.25, help="share of checks that may fail by themselves (default: 0.25)")
    add(
        "--gpu-memory-utilization",
        type=float,
        default=gpu_memory_utilization,
        help=f"vLLM's share of the GPU (default: {gpu_memory_utilization})",
    )
    add("--enforce-eager", action="store_true", help="vLLM compiles nothing: a faster start, slower tokens")
    add("--trust-remote-code", action="store_true", help="run model code that comes from the Hub")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Where a task's rows come from."""
    data = parser.add_argument_group("data").add_argument
    data("--data-dir", help="folder with a folder a benchmark (gsm8k, math, ...), in place of the Hub")
    data("--data-path", help="the task's own file or folder, in place of the Hub")
    data("--dataset-name", help="another dataset on the Hub")
    data("--dataset-config", help="its configuration")
    data("--prompt-column", default="prompt", help="the column with the question (default: prompt)")
    data("--answer-column", help="task columns: the column with the answer")
    data("--reward", help="grades in place of the task's own: a name, or {name: numeric, column: gold}")
    data("--skill", default="math", help="task quickstart: math, choice, code or dispatch (default: math)")
    data("--wording", choices=["standard", "reworded"], default="standard", help="tasks quickstart and exam")
    data("--system-prompt", help="in place of the task's own; '' for none")
    data("--profile", choices=["default", "reference"], default="default", help="reference: as in Transformer²'s code")


def evaluation_arguments(known: argparse.Namespace, **others: Any) -> "EvaluationArguments":
    """What was given as [`EvaluationArguments`]; `others` goes before it. Raises `SVFError` for what does not fit."""
    from svf_rl.evaluation.arguments import EvaluationArguments
    from svf_rl.tasks import TaskOptions

    given = vars(known)
    options = TaskOptions(**{f.name: given[f.name] for f in fields(TaskOptions) if f.name in given})
    own = {f.name: given[f.name] for f in fields(EvaluationArguments) if f.name in given}
    own["chat_template_kwargs"] = mapping(known.chat_template_kwargs)
    if known.reward is not None and known.reward.startswith("{"):
        own["reward"] = mapping(known.reward)
    return EvaluationArguments(**{**own, "options": options, **others})


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} are no whole numbers, as in 1,10") from error


def mapping(text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise SVFError(f"{text} is no mapping in YAML, such as {{key: value}}")
    return value
