"""`svf-rl reproduce`."""

import argparse

from svf_rl.cli.flags import Command, add_flags, read_flags
from svf_rl.reproduce.arguments import ReproduceArguments
from svf_rl.storage.bundled import check_recipe_file


def _fill(parser: argparse.ArgumentParser) -> None:
    text = "a YAML file, or a name that svf-rl recipes lists; or raw.json files of one comparison"
    parser.add_argument("comparison", nargs="*", default=["reproduce/quickstart"], help=text)
    add_flags(parser, ReproduceArguments)


def _run(known: argparse.Namespace) -> None:
    arguments = read_flags(known, ReproduceArguments)
    first, *others = known.comparison
    if not first.endswith(".json"):
        check_recipe_file(first)  # before what takes seconds
    from svf_rl.reproduce.run import reproduce

    reproduce(first, arguments, others)


REPRODUCE = Command("reproduce", "the comparison of Transformer², as tables and pictures", _fill, _run)
