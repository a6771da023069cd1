"""`svf-rl few-shot` and `dispatch`: a set of experts on a task that none of them was trained for."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from svf_rl.cli.options import add_data, add_engine, evaluation_arguments
from svf_rl.errors import SVFError


def add_to(commands: "argparse._SubParsersAction[Any]") -> None:
    _add_few_shot(commands)
    _add_dispatch(commands)


def _add_few_shot(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser("few-shot", help="find the weights of several experts on a few labelled prompts")
    add = parser.add_argument
    add("model", help="local folder or Hub name; 'quickstart' is the bundled model")
    add(
        "--expert",
        action="append",
        required=True,
        dest="experts",
        metavar="[NAME=]DIR",
        help="a saved SVF adapter; given once for each expert",
    )
    add("--task", required=True, help="such as math, or exam for the bundled model")
    add("--out", help="folder of the results; a second call goes on there (default: runs/few-shot-TASK)")
    add("--shots", type=int, default=10, help="labelled prompts that the search sees (default: 10)")
    add("--scope", choices=["global", "layer", "matrix"], default="global", help="what has its own α (default: global)")
    add("--form", choices=["mask", "deviation"], default="deviation", help="Σ α m, or 1 + Σ α (m - 1), the default")
    add("--normalized", action="store_true", help="divide the α by their sum")
    add("--method", choices=["cem", "random"], default="cem", help="of searching (default: cem)")
    add("--population", type=int, default=16, help="candidates a generation (default: 16)")
    add("--generations", type=int, default=5, help="default: 5")
    add("--samples", type=int, default=2, help="completions of each prompt beside the greedy one (default: 2)")
    add("--greedy-weight", type=float, default=1.0, help="of greedy accuracy in the fitness (default: 1)")
    add("--sampled-weight", type=float, default=1.0, help="of the accuracy of samples (default: 1)")
    add("--likelihood-weight", type=float, default=1.0, help="of right completions' likelihood (default: 1)")
    add("--seed", type=int, default=0, help="of the labelled prompts and the search (default: 0)")
    add("--limit", type=int, help="report only the first so many items")
    add_engine(parser, gpu_memory_utilization=0.4)
    add_data(parser)
    parser.set_defaults(run=_few_shot)


def _few_shot(known: argparse.Namespace) -> None:
    from svf_rl.train import quiet_libraries

    quiet_libraries()
    arguments = evaluation_arguments(known, tasks=[known.task], samples=1)
    out = Path(known.out or f"runs/few-shot-{known.task.replace(':', '-')}").expanduser()
    given = vars(known)
    try:
        from svf_rl.adaptation.few_shot import FewShotArguments  # takes seconds
        from svf_rl.adaptation.few_shot_run import alpha_table, experts_by_name, few_shot
        from svf_rl.adaptation.fitness import FitnessWeights
        from svf_rl.evaluation.table import table
        from svf_rl.text_table import aligned

        weights = FitnessWeights(known.greedy_weight, known.sampled_weight, known.likelihood_weight)
        search = FewShotArguments(
            **{f.name: given[f.name] for f in fields(FewShotArguments) if f.name in given}, weights=weights
        )
        run = few_shot(arguments, experts_by_name(known.experts), search, out)
    except KeyboardInterrupt as error:
        raise SVFError("interrupted; the same command goes on from here") from error
    print(aligned(alpha_table(run.found)))
    print()
    print(table(run.results))
    print(f"\nThe combination is the adapter {out / 'adapter'}")


def _add_dispatch(commands: "argparse._SubParsersAction[Any]") -> None:
    parser = commands.add_parser("dispatch", help="answer each prompt with the expert for its class")
    add = parser.add_argument
    add("model", help="local folder or Hub name; 'quickstart' is the bundled model")
    add(
        "--expert",
        action="append",
        default=[],
        dest="experts",
        metavar="CLASS=DIR",
        help="the SVF adapter for a class (code, math, reasoning); may be given several times",
    )
    add("--classifier", metavar="DIR", help="a trained dispatch expert (default: the base model classifies)")
    add(
        "--method",
        choices=["generate", "loglikelihood"],
        default="generate",
        help="read the class from what the classifier writes, or take the likeliest one (default: generate)",
    )
    add("--classifier-prompt", help="system message that asks for the class (default: the classifier's own)")
    add("--classifier-tokens", type=int, default=256, help="of what the classifier writes (default: 256)")
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--task", help="such as gsm8k, exam or quickstart:choice: answers are graded")
    work.add_argument(
        "--prompts", metavar="FILE", help="a prompt a line, or rows with a column prompt (.jsonl, .csv, ...)"
    )
    add("--limit", type=int, help="only the first so many prompts")
    add("--out", help="folder of the results (default: runs/dispatch-MODEL)")
    add_engine(parser, gpu_memory_utilization=0.4)
    add_data(parser)
    parser.set_defaults(run=_dispatch)


def _dispatch(known: argparse.Namespace) -> None:
    from svf_rl.train import quiet_libraries

    quiet_libraries()
    arguments = evaluation_arguments(known, tasks=[known.task or "prompts"])
    try:
        from svf_rl.adaptation.dispatch_run import DispatchArguments, named_by_class, run_dispatch  # takes seconds

        report = run_dispatch(
            DispatchArguments(
                arguments,
                named_by_class(known.experts),
                classifier=known.classifier,
                method=known.method,
                system_prompt=known.classifier_prompt,
                max_tokens=known.classifier_tokens,
                prompts=known.prompts,
            )
        )
    except KeyboardInterrupt as error:
        raise SVFError("interrupted: nothing of this call is kept but graded answers of the base model") from error
    print(report)
