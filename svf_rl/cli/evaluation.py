"""`svf-rl eval`, and the flags that other commands share with it."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from svf_rl.cli.flags import Command, add_flags, read_flags

if TYPE_CHECKING:
    from svf_rl.evaluation.arguments import EvaluationArguments

_DATA = ("data_dir", "data_path", "dataset_name", "dataset_config", "prompt_column", "answer_column", "skill",
         "wording", "system_prompt", "dataset", "config", "profile")  # fmt: skip
RESUMES = "the same command resumes from here"
# Of every command that lets a model answer the items of a task.
ANSWERING = ("limit", "backend", "max_tokens", "dtype", "batch_size", "chat_template_kwargs", "max_failed",
             "gpu_memory_utilization", "enforce_eager", "trust_remote_code")  # fmt: skip

_TOOLS = ("tools", "environment", "max_tool_calling_iterations", "tool_timeout", "max_model_length")


def add_evaluation(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """The model, those fields of [`EvaluationArguments`] and, in a group, where the rows come from."""
    from svf_rl.evaluation.arguments import EvaluationArguments
    from svf_rl.tasks import TaskOptions

    parser.add_argument("model", help="local folder or Hub name of the base model; 'quickstart' is the bundled model")
    add_flags(parser, EvaluationArguments, names)
    data = parser.add_argument_group("data")
    add_flags(data, TaskOptions, _DATA)
    # few-shot adaptation has `--shots` of its own
    add_flags(data, TaskOptions, ["shots"], suffix="-in-prompt")
    add_flags(data, EvaluationArguments, ["reward"])


def read_evaluation(known: argparse.Namespace, **others: Any) -> "EvaluationArguments":
    """What was given as [`EvaluationArguments`]; `others` goes before it. Raises `SVFError` for what does not fit."""
    from svf_rl.evaluation.arguments import EvaluationArguments
    from svf_rl.tasks import TaskOptions

    options = read_flags(known, TaskOptions, shots=known.shots_in_prompt)
    return read_flags(known, EvaluationArguments, options=options, **others)


def _fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        dest="adapters",
        metavar="PATH",
        help="a saved SVF or LoRA adapter, compared with the base; may be given several times",
    )
    from svf_rl.evaluation.arguments import EvaluationArguments

    add_evaluation(parser, ("tasks", "samples", "temperature", "top_p", "k", "out", "seed", *ANSWERING))
    add_flags(parser.add_argument_group("several turns"), EvaluationArguments, _TOOLS)


def _run(known: argparse.Namespace) -> None:
    arguments = read_evaluation(known)  # before what takes seconds
    from svf_rl.evaluation.run import evaluate
    from svf_rl.evaluation.table import table

    print(table(evaluate(arguments)))


EVAL = Command("eval", "grade a model and its adapters on tasks", _fill, _run, RESUMES)
