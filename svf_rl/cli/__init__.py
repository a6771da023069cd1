"""The console command `svf-rl`, one file a group of sub-commands. Slow imports wait until a command runs."""

import argparse
import sys
from collections.abc import Sequence

from svf_rl import __version__
from svf_rl.cli import adaptation, decompose, evaluation, experts, recipes, report, reproduce
from svf_rl.cli.flags import LazyParser
from svf_rl.errors import one_line_errors


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:  # its options are the keys of the recipe, which argparse does not know
        from svf_rl.train import main as train

        return train(given[1:])
    if given[:1] == ["plan"]:
        from svf_rl.cli.plan import main as plan

        return plan(given[1:])
    if given[:1] == ["serve"]:
        from svf_rl.cli.serve import serve

        return serve(given[1:])
    parser = argparse.ArgumentParser("svf-rl", description="Reinforcement learning on singular values.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=LazyParser)
    commands.add_parser("train", help="train from a recipe: svf-rl train RECIPE [--key value ...]", add_help=False)
    commands.add_parser("plan", help="memory of a run by ZeRO stage, and whether it fits", add_help=False)
    commands.add_parser("serve", help="start a vLLM server for runs of a recipe", add_help=False)
    for group in (evaluation, report, experts, adaptation, reproduce, decompose, recipes):
        group.add_to(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    known = parser.parse_args(given)
    with one_line_errors(known.debug) as outcome:
        known.run(known)
    return outcome.status
