"""The console command `svf-rl`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import yaml

from svf_rl import __version__
from svf_rl.errors import SVFError, one_line_errors


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:  # its options are the keys of the recipe, which argparse does not know
        from svf_rl.train import main as train

        return train(given[1:])
    parser = argparse.ArgumentParser("svf-rl", description="Reinforcement learning on singular values.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="train from a recipe: svf-rl train RECIPE.yaml [--key value ...]", add_help=False)
    _add_decompose(commands)
    _add_eval(commands)
    known = parser.parse_args(given)
    with one_line_errors(known.debug) as outcome:
        known.run(known)
    return outcome.status


def _add_decompose(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("decompose", help="put the factors of a model's weights into the cache")
    parser.add_argument("model", help="local folder or Hub name; 'quickstart' is the bundled model")
    parser.add_argument(
        "--targets", default="mlp", help="mlp, attention, mlp+attention, or a regular expression (default: mlp)"
    )
    parser.add_argument("--dtype", help="type the model will be loaded in (default: that of the checkpoint)")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu or cuda (default: cpu)")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--trust-remote-code", action="store_true", help="run model code that comes from the Hub")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(run=_decompose)


def _decompose(known: argparse.Namespace) -> None:
    import torch

    from svf_rl.quickstart import model_path
    from svf_rl.svf.checkpoint import decompose_checkpoint

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if known.device not in devices:
        raise SVFError(f"device {known.device!r} is not there: use {' or '.join(devices)}")
    model = str(model_path()) if known.model == "quickstart" else known.model
    index = decompose_checkpoint(
        model,
        known.targets,
        dtype=known.dtype,
        device=known.device,
        revision=known.revision,
        trust_remote_code=known.trust_remote_code,
    )
    print(
        f"{index.count} matrices, {index.cached} of them cached before; {index.bytes / 1e6:.1f} MB of factors, "
        f"{index.seconds:.1f} s; index: {index.path}"
    )


def _add_eval(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("eval", help="grade a model and its adapters on tasks")
    add = parser.add_argument
    add("model", help="local folder or Hub name; 'quickstart' is the bundled model")
    add(
        "--adapter",
        action="append",
        default=[],
        dest="adapters",
        metavar="PATH",
        help="a saved SVF or LoRA adapter, compared with the base; may be given several times",
    )
    add(
        "--tasks", required=True, type=_names, help="such as gsm8k,math or quickstart:choice; columns for your own data"
    )
    add("--limit", type=int, help="only the first so many items of each task")
    add("--samples", type=int, default=1, help="completions an item (default: 1)")
    add("--temperature", type=float, help="default: 0, greedy; 0.8 with several samples")
    add("--top-p", type=float, default=1.0, help="default: 1.0")
    add("--k", type=_numbers, help="the k of pass@k, as in 1,10 (default: 1 and --samples)")
    add("--out", help="folder of the results; a second call goes on there (default: runs/eval-MODEL)")
    add("--backend", choices=["vllm", "transformers"], default="vllm", help="default: vllm")
    add("--seed", type=int, default=0, help="of the samples (default: 0)")
    add("--max-tokens", type=int, help="of a completion (default: the task's)")
    add("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="of the weights")
    add("--batch-size", type=int, help="completions written together (default: 512, or 32 with transformers)")
    add("--chat-template-kwargs", default="{}", help="for the template: '{enable_thinking: false}'")
    add("--max-failed", type=float, default=0.25, help="share of checks that may fail by themselves (default: 0.25)")
    add("--gpu-memory-utilization", type=float, default=0.85, help="vLLM's share of the GPU (default: 0.85)")
    add("--enforce-eager", action="store_true", help="vLLM compiles nothing: a faster start, slower tokens")
    add("--trust-remote-code", action="store_true", help="run model code that comes from the Hub")
    add("--debug", action="store_true", help="show tracebacks")
    data = parser.add_argument_group("data").add_argument
    data("--data-dir", help="folder with a folder a benchmark (gsm8k, math, ...), in place of the Hub")
    data("--data-path", help="the task's own file or folder, in place of the Hub")
    data("--dataset-name", help="another dataset on the Hub")
    data("--dataset-config", help="its configuration")
    data("--prompt-column", default="prompt", help="task columns: the column with the question (default: prompt)")
    data("--answer-column", help="task columns: the column with the answer")
    data("--reward", help="grades in place of the task's own: a name, or {name: numeric, column: gold}")
    data("--skill", default="math", help="task quickstart: math, choice or code (default: math)")
    data("--system-prompt", help="in place of the task's own; '' for none")
    data("--profile", choices=["default", "reference"], default="default", help="reference: as in Transformer²'s code")
    parser.set_defaults(run=_eval)


def _eval(known: argparse.Namespace) -> None:
    from svf_rl.train import quiet_libraries

    quiet_libraries()
    from svf_rl.evaluation.arguments import EvaluationArguments
    from svf_rl.tasks import TaskOptions

    given = vars(known)
    options = TaskOptions(**{f.name: given[f.name] for f in fields(TaskOptions) if f.name in given})
    own = {f.name: given[f.name] for f in fields(EvaluationArguments) if f.name in given}
    own["chat_template_kwargs"] = _mapping(known.chat_template_kwargs)
    if known.reward is not None and known.reward.startswith("{"):
        own["reward"] = _mapping(known.reward)
    arguments = EvaluationArguments(**own, options=options)
    try:
        from svf_rl.evaluation.run import evaluate  # takes seconds
        from svf_rl.evaluation.table import table

        results = evaluate(arguments)
    except KeyboardInterrupt as error:
        raise SVFError("interrupted; the same command goes on from here") from error
    print(table(results))


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise SVFError(f"{text} is no mapping in YAML, such as {{key: value}}")
    return value


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} are no whole numbers, as in 1,10") from error


if __name__ == "__main__":
    sys.exit(main())
