"""The console command `svf-rl`, one file a group of sub-commands. Slow imports wait until a command runs."""

import argparse
import os
import sys
from collections.abc import Sequence

from svf_rl import __version__
from svf_rl.cli import adaptation, decompose, evaluation, experts, export, plan, recipes, report, reproduce, serve
from svf_rl.errors import SVFError, one_line_errors, whole_output
from svf_rl.storage.bundled import check_recipe_file
from svf_rl.storage.environment import check_environment
from svf_rl.train import fill as fill_train
from svf_rl.train import main as train
from svf_rl.train import quiet_libraries

COMMANDS = (
    plan.PLAN, serve.SERVE, evaluation.EVAL, report.REPORT, experts.EXPERTS, experts.MERGE, experts.EXTRACT,
    export.EXPORT, experts.PUSH,
    adaptation.FEW_SHOT, adaptation.DISPATCH, reproduce.REPRODUCE, decompose.DECOMPOSE, recipes.RECIPES,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with whole_output():
        return train(given[1:]) if given[:1] == ["train"] else _run(given)


def _run(given: list[str]) -> int:
    done = None
    with one_line_errors("--debug" in given) as outcome:
        known = _parse(given)
        quiet_libraries()
        check_environment()
        if "recipe" in known:
            check_recipe_file(known.recipe)  # before what takes seconds
        try:
            done = known.of.run(known)
        except KeyboardInterrupt as error:
            if known.of.interrupted is None:
                raise
            raise SVFError(f"interrupted; {known.of.interrupted}") from error
    return outcome.status or int(done is False)


def _parse(given: list[str]) -> argparse.Namespace:
    completing = "_ARGCOMPLETE" in os.environ
    if completing:
        given = os.environ.get("COMP_LINE", "").split()[1:]
    parser = argparse.ArgumentParser("svf-rl", description="Reinforcement learning on singular values.")
    parser.add_argument("--version", action="version", version=__version__)
    parsers = parser.add_subparsers(dest="command", required=True)
    fill_train(parsers.add_parser("train", help="train from a recipe: svf-rl train RECIPE [--key value ...]"))
    for command in COMMANDS:
        own = parsers.add_parser(
            command.name, help=command.help, description=command.description, epilog=command.keys,
            allow_abbrev=command.keys is None,
        )  # fmt: skip
        if command.name in given:
            command.fill(own)
            own.add_argument("--debug", action="store_true", help="show tracebacks")
        own.set_defaults(of=command)
    if completing:  # a shell asks what may come next
        import argcomplete

        argcomplete.autocomplete(parser)
    # what stands behind -- goes to vLLM as it is
    cut = given.index("--") if given[:1] == ["serve"] and "--" in given else len(given)
    known, keys = parser.parse_known_args(given[:cut])
    if keys and known.of.keys is None:
        parser.error(f"unrecognized arguments: {' '.join(keys)}")
    known.keys, known.vllm = keys, given[cut + 1 :]
    return known
