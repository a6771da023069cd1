"""`svf-rl few-shot` and `dispatch`: a set of experts on a task that none of them was trained for."""

import argparse
from pathlib import Path

from svf_rl.cli.evaluation import ANSWERING, RESUMES, add_evaluation, read_evaluation
from svf_rl.cli.flags import Command, add_experts, add_flags, read_flags

_WEIGHTS = ("greedy", "sampled", "likelihood")


def _fill_few_shot(parser: argparse.ArgumentParser) -> None:
    from svf_rl.adaptation.arguments import FewShotArguments, FitnessWeights

    add = parser.add_argument
    add_experts(parser, "[NAME=]DIR", "a saved SVF adapter; given once for each expert", required=True)
    add("--task", required=True, help="such as math, or exam for the bundled model")
    add("--out", help="folder of the results, where a second call resumes (default: runs/few-shot-TASK)")
    names = ("shots", "scope", "form", "normalized", "method", "population", "generations", "samples", "seed")
    add_flags(parser, FewShotArguments, names)
    add_flags(parser, FitnessWeights, suffix="-weight")
    add_evaluation(parser, ANSWERING)


def _few_shot(known: argparse.Namespace) -> None:
    arguments = read_evaluation(known, tasks=[known.task], samples=1)
    out = Path(known.out or f"runs/few-shot-{known.task.replace(':', '-')}").expanduser()
    from svf_rl.adaptation.arguments import FewShotArguments, FitnessWeights
    from svf_rl.adaptation.few_shot_run import alpha_table, experts_by_name, few_shot
    from svf_rl.evaluation.table import table
    from svf_rl.text_table import aligned

    weights = FitnessWeights(**{name: getattr(known, f"{name}_weight") for name in _WEIGHTS})
    search = read_flags(known, FewShotArguments, weights=weights)
    found, results = few_shot(arguments, experts_by_name(known.experts), search, out)
    print(f"{aligned(alpha_table(found))}\n\n{table(results)}\n\nThe combination is the adapter {out / 'adapter'}")


def _fill_dispatch(parser: argparse.ArgumentParser) -> None:
    from svf_rl.adaptation.arguments import DispatchArguments

    text = "the SVF adapter for a class (code, math, reasoning); may be given several times"
    add_experts(parser, "CLASS=DIR", text, default=[])
    names = ("classifier", "method", "classifier_prompt", "classifier_tokens")
    add_flags(parser, DispatchArguments, names, classifier={"metavar": "DIR"})
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--task", help="such as gsm8k, exam or quickstart:choice: answers are graded")
    add_flags(work, DispatchArguments, ["prompts"], prompts={"metavar": "FILE"})
    parser.add_argument("--out", help="folder of the results (default: runs/dispatch-MODEL)")
    add_evaluation(parser, ANSWERING)


def _dispatch(known: argparse.Namespace) -> None:
    evaluation = read_evaluation(known, tasks=[known.task or "prompts"])
    from svf_rl.adaptation.arguments import DispatchArguments, named_by_class
    from svf_rl.adaptation.dispatch_run import run_dispatch

    experts = named_by_class(known.experts)
    print(run_dispatch(read_flags(known, DispatchArguments, evaluation=evaluation, experts=experts)))


FEW_SHOT = Command(
    "few-shot", "find the weights of several experts on a few labelled prompts", _fill_few_shot, _few_shot, RESUMES
)
DISPATCH = Command(
    "dispatch", "answer each prompt with the expert for its class", _fill_dispatch, _dispatch,
    "nothing of this call is kept but graded answers of the base model",
)  # fmt: skip
